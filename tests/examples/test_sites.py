"""The two sites with a chat page: four pre-forked workers, real visitors."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import psutil
import pytest
from attrs import frozen
from playwright.sync_api import Browser, Page, expect

from ppio_agent._util.threads import start_thread
from ppio_agent.sandbox import SandboxPlatform
from tests.serving.hosts import ROOT, Host, gunicorn
from tests.serving.support_browser import open_browser
from tests.support import SLOW, wait_until

WORKERS = 4
# Of the Flask site, whose configuration loads the app in the parent: its client has
# connections before there is any worker.
PRELOADED = """
from chatsite import create_app
from ppio_agent.client.flask import current_client

application = create_app()
with application.app_context():
    assert current_client.list_templates()
"""
NOTE_TIMES = """() => {
    window.times = [];
    new MutationObserver(changes => changes.forEach(change => {
        if (change.target.tagName === "P") window.times.push(performance.now());
    })).observe(document.querySelector("#turns"), {childList: true, subtree: true});
}"""


@frozen
class Site:
    """A site as its visitors see it, and the platform behind it."""

    host: Host
    platform: SandboxPlatform
    long: str  # a message whose answer takes 20 s
    said: Callable[[str], str]  # the answer to a message, in a form's request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.host.port}/"

    def statuses(self) -> list[str]:
        """Return what the agents of all conversations say of themselves."""
        return [
            self._ping(s.identity.id) for s in self.platform.sandboxes.list_sandboxes()
        ]

    def _ping(self, sandbox_id: str) -> str:
        headers = {"PPIO-Sandbox-Id": sandbox_id, "PPIO-Sandbox-Port": "8080"}
        request = Request(f"{self.platform.url}/ping", headers=headers)
        with urlopen(request, timeout=10) as answer:
            status: str = json.loads(answer.read())["status"]
        return status


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


def _parrot(message: str) -> str:
    return f"{message} "


@pytest.fixture(scope="module")
def deployed(
    platform: SandboxPlatform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SandboxPlatform]:
    """A platform with the agents of the sites, deployed from copies of their folders."""
    for name in ("django_site", "flask_site"):
        copy = tmp_path_factory.mktemp("agents") / name
        platform.deploy(shutil.copytree(ROOT / "examples" / name / "agent", copy))
    yield platform
    # The conversations, which the next workers would have found.
    for sandbox in platform.sandboxes.list_sandboxes():
        platform.sandboxes.kill(sandbox.identity.id)


@pytest.fixture(scope="module", params=["django_site", "flask_site"])
def site(
    request: Any, deployed: SandboxPlatform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One gunicorn a site, as its own configuration says, with a platform of ours."""
    name, platform = request.param, deployed
    place, folder = ROOT / "examples" / name, tmp_path_factory.mktemp(name)
    (folder / "preloaded.py").write_text(PRELOADED)
    variable = name.replace("_site", "_secret_key").upper()
    environ = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, place, folder))),
        "PPIO_API_URL": platform.url,
        "PPIO_API_KEY": platform.api_key,
        variable: "a secret of the tests",
    }
    target = "chatsite.wsgi" if name == "django_site" else "preloaded:application"
    options = ("--config", str(place / "gunicorn.conf.py"))
    if name == "django_site":
        long, said = "word " * 200, _parrot
    else:
        long, said = "200", lambda message: "1 "
    with gunicorn(target, folder, *options, **environ) as host:
        yield Site(host, platform, long, said)
        assert host.stop() == 0


def _open(page: Page, site: Site) -> Page:
    page.set_default_timeout(10_000 * SLOW)
    page.goto(site.url)
    return page


def _say(page: Page, message: str) -> Any:
    page.get_by_label("Message").fill(message)
    page.get_by_role("button", name="Send").click()
    return page.locator("#turns p").last


def _answer_in_parts(site: Site, page: Page) -> None:
    """Say something long; return when two chunks are seen and the agent is at work."""
    answer = _say(page, site.long)
    expect(answer).to_have_text(re.compile(r"\S+ \S+"))
    wait_until(lambda: "HealthyBusy" in site.statuses())


def test_a_turn_is_seen_as_it_is_said_and_remembered(
    site: Site, browser: Browser
) -> None:
    """Five chunks 0.1 s apart, not at once; the next turn knows of the first."""
    page = _open(browser.new_page(), site)
    page.evaluate(NOTE_TIMES)
    words = "one two three four 5"
    answer = _say(page, words)
    expect(answer).to_have_class("done")
    times = page.evaluate("times")
    assert len(times) == 5
    assert times[-1] - times[0] >= 300
    assert statistics.median(b - a for a, b in itertools.pairwise(times)) >= 50
    answer = _say(page, "and now?")
    expect(answer).to_have_class("done")
    expect(answer).to_contain_text("5")
    page.context.close()


def test_stop_ends_the_answer_and_the_run(site: Site, browser: Browser) -> None:
    """The page may go on at once."""
    page = _open(browser.new_page(), site)
    _answer_in_parts(site, page)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#turns p").last).to_contain_text("(stopped)")
    wait_until(lambda: set(site.statuses()) == {"Healthy"}, what="the run to end")
    expect(_say(page, "1")).to_have_class("done")
    page.context.close()


def test_a_visitor_who_leaves_ends_the_run(site: Site, browser: Browser) -> None:
    """After two chunks; the conversation is there when the visitor comes back."""
    page = _open(browser.new_page(), site)
    _answer_in_parts(site, page)
    before = len(site.statuses())
    page.goto("about:blank")
    wait_until(lambda: set(site.statuses()) == {"Healthy"}, what="the run to end")
    expect(_say(_open(page, site), "1")).to_have_class("done")
    assert len(site.statuses()) == before
    page.context.close()


class Client:
    """A visitor without a browser, with one cookie jar and many connections."""

    def __init__(self, site: Site) -> None:
        self._site = site
        connection = self._connect()
        connection.request("GET", "/")
        answer = connection.getresponse()
        pairs = [v.partition(";")[0] for v in answer.headers.get_all("Set-Cookie")]
        token = dict(pair.split("=", 1) for pair in pairs).get("csrftoken", "")
        self._headers = {
            "Cookie": "; ".join(pairs),
            "X-CSRFToken": token,
            "Content-Type": "application/x-www-form-urlencoded",
        }
        answer.read()
        connection.close()

    def _connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self._site.host.port, timeout=30)

    def ask(self, message: str, accept: str) -> tuple[HTTPConnection, Any]:
        connection = self._connect()
        headers = {**self._headers, "Accept": accept}
        connection.request("POST", "/ask", urlencode({"message": message}), headers)
        return connection, connection.getresponse()

    def answer(self, message: str) -> str:
        connection, response = self.ask(message, "application/json")
        body = response.read()
        connection.close()
        assert response.status == 200, body
        pieces = [json.loads(line) for line in body.splitlines() if line]
        return pieces[0]["result"] if "result" in pieces[0] else "".join(pieces)


def _platform_sockets(worker: psutil.Process, port: int) -> set[str]:
    """Return the sockets of a process that lead to the platform, by their inodes."""
    found = [
        c for c in worker.net_connections("tcp") if c.raddr and c.raddr.port == port
    ]
    return {os.readlink(f"/proc/{worker.pid}/fd/{c.fd}") for c in found}


def test_forked_workers_answer_each_visitor_and_share_no_socket(site: Site) -> None:
    """Forty requests at once: each gets its own answer, by connections of its worker."""
    visitor = Client(site)
    visitor.answer("1")
    wrong: list[object] = []
    master = psutil.Process(site.host.process.pid)
    workers = master.children()
    assert len(workers) == WORKERS
    port = int(site.platform.url.rpartition(":")[2])

    def ask(message: str) -> None:
        found = visitor.answer(message)
        if not found.endswith(site.said(message)):
            wrong.append((message, found))

    def several_served() -> bool:
        asking = [start_thread("visitor", ask, f"1 w{n}") for n in range(40)]
        for thread in asking:
            thread.join(60)
        return sum(bool(_platform_sockets(one, port)) for one in workers) > 1

    wait_until(several_served, timeout=20, what="two workers to serve")
    assert wrong == []
    sockets = [_platform_sockets(one, port) for one in (master, *workers)]
    assert len(set.union(*sockets)) == sum(map(len, sockets))


def test_a_sync_worker_streams_too(deployed: SandboxPlatform, tmp_path: Path) -> None:
    """One visitor at a time; one who hangs up makes way for the next."""
    place, platform = ROOT / "examples/flask_site", deployed
    environ = {
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, place))),
        "PPIO_API_URL": platform.url,
        "PPIO_API_KEY": platform.api_key,
        "FLASK_SECRET_KEY": "a secret of the tests",
    }
    options = ("--worker-class", "sync", "--workers", "1")
    with gunicorn("chatsite:create_app()", tmp_path, *options, **environ) as host:
        visitor = Client(Site(host, platform, "", str))
        connection, response = visitor.ask("200", "*/*")
        lines = [response.readline() for _ in range(3)]
        assert lines == [b"\n", b'"1 "\n', b'"2 "\n']
        connection.close()
        response.close()
        assert visitor.answer("2") == "1 2 "
