"""The playground, in a real browser, against a real server."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from ppio_agent import ApiKeyAuth
from ppio_agent.agent import Chunk, Invocation
from ppio_agent.serving import PPIOAgentRuntimeApp
from tests.serving.conftest import Serve
from tests.serving.support import Gate
from tests.serving.support_browser import Relay, Visit, open_browser
from tests.support import wait_until

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
KEY = "sk-0123456789abcdef"
PHONE = {
    "viewport": {"width": 360, "height": 640},
    "is_mobile": True,
    "has_touch": True,
}

Open = Callable[..., Visit]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each visit has a profile of its own."""
    with open_browser() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, serve: Serve) -> Open:
    """Serve an agent and open its playground."""

    def visit(agent: Any, *, auth: Any = (), **context: Any) -> Visit:
        app = PPIOAgentRuntimeApp(name="echo", auth=auth)
        app.entrypoint(agent)
        return Visit(browser, serve(app).server.url + "/", **context)

    return visit


def echo(request: dict[str, Any]) -> Any:
    return request["prompt"]


# What is served, and to whom.


def test_only_a_browser_gets_the_page(serve: Serve) -> None:
    """Programs go on getting JSON, whatever they say they accept."""
    app = PPIOAgentRuntimeApp()
    http = serve(app)
    page = http.get("/", Accept=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert b"<!doctype html>" in page.body
    for accept in ("*/*", "application/json", "application/json, text/html;q=0.9"):
        answer = http.get("/", Accept=accept)
        assert answer.json["service"] == "ppio-agent"
        assert (page.headers["vary"], answer.headers["vary"]) == ("Accept", "Accept")
    assert http.get("/").json["status"] == "running"


def test_the_page_is_sent_under_a_strict_policy(serve: Serve) -> None:
    """With a nonce that is never used twice, and it is not kept by any cache."""
    http = serve(PPIOAgentRuntimeApp())
    nonces = set()
    for _ in range(3):
        page = http.get("/", Accept=BROWSER)
        policy = page.headers["content-security-policy"]
        nonce = re.search(r"script-src 'nonce-([\w-]{20,})'", policy)
        assert nonce is not None
        nonces.add(nonce[1])
        assert f"style-src 'nonce-{nonce[1]}'" in policy
        assert policy.startswith("default-src 'none'; connect-src 'self'; ")
        assert page.body.count(f'nonce="{nonce[1]}"'.encode()) == 2
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["x-content-type-options"] == "nosniff"
    assert len(nonces) == 3


@pytest.mark.parametrize(
    ("settings", "host", "shown"),
    [
        ({}, "127.0.0.1", True),
        ({}, "0.0.0.0", False),
        ({"debug": True}, "0.0.0.0", True),
        ({"playground": False, "debug": True}, "127.0.0.1", False),
        ({"playground": True}, "0.0.0.0", True),
    ],
)
def test_it_is_shown_on_loopback_in_debug_or_when_wanted(
    settings: dict[str, Any], host: str, shown: bool
) -> None:
    """Of the setting None means the first two."""
    app = PPIOAgentRuntimeApp(allow_unauthenticated=True, **settings)
    with app.server(host=host, port=0) as server:
        assert server.shows_playground is shown
        with app.test_client() as client:
            answer = client.get("/", headers={"Accept": BROWSER})
    assert ("html" in answer.headers["content-type"]) is shown


def test_behind_another_server_it_is_shown_when_wanted() -> None:
    """Who can reach that is not known to the app."""
    for wanted in (None, True):
        with PPIOAgentRuntimeApp(playground=wanted).test_client() as client:
            answer = client.get("/", headers={"Accept": BROWSER})
        assert ("html" in answer.headers["content-type"]) is (wanted is True)


# What a person sees and does.


def test_an_answer_grows_while_it_streams(visit: Open, gate: Gate) -> None:
    """Texts become one; other chunks are shown as JSON, with their names."""

    def agent(request: dict[str, Any]) -> Iterator[Any]:
        yield "Let me "
        yield "see …"
        gate.stand()
        yield " found:\n"
        yield Chunk({"city": "Lisbon", "id": 12345678901234567890}, event="place")

    with visit(agent) as person:
        person.say("where to?")
        person.expect_answer("Let me see …")
        person.expect_state("Answering…")
        expect(person.page.locator("#health")).to_have_text("Busy")
        gate.open()
        person.expect_state("Done")
        person.expect_answer(
            "Let me see … found:",
            '{\n  "city": "Lisbon",\n  "id": 12345678901234567890\n}',
        )
        expect(person.page.locator(".label")).to_have_text("place")
        expect(person.page.locator(".figures")).to_contain_text("4 chunks")
        expect(person.page.locator("#health")).to_have_text("Healthy")
        assert person.page.title() == "echo · playground"


def test_a_value_is_an_answer_too(visit: Open) -> None:
    """Text as text, anything else as JSON; and nothing is told as such."""
    values = {"text": "plain", "none": None, "list": [1, {"a": True}]}
    with visit(lambda request: values[request["prompt"]]) as person:
        for prompt, shown in (
            ("text", "plain"),
            ("none", "null"),
            ("list", '[\n  1,\n  {\n    "a": true\n  }\n]'),
        ):
            person.say(prompt)
            person.expect_answer(shown)
            person.expect_state("Done")


def test_the_ids_are_those_of_the_invocation(visit: Open) -> None:
    """One session for a conversation, another one for the next."""

    def agent(request: dict[str, Any], context: Any) -> list[str]:
        seen.append((context.invocation_id, context.session_id, context.request_id))
        return []

    seen: list[tuple[str, str, str]] = []
    with visit(agent) as person:
        for _ in range(2):
            person.say("hi")
            person.expect_state("Done")
        found = (person.id_of("Invocation"), person.page.text_content("#session"))
        assert found == seen[1][:2]
        assert person.id_of("Request") == seen[1][2]
        person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        person.page.get_by_role("button", name="Copy session id").first.click()
        expect(person.page.get_by_text("Copied")).to_be_visible()
        copied = person.page.evaluate("navigator.clipboard.readText()")
        assert copied == seen[1][1]
        person.page.get_by_role("button", name="New conversation").click()
        expect(person.page.locator(".turn")).to_have_count(0)
        person.say("hi")
        person.expect_state("Done")
    sessions = [session for _, session, _ in seen]
    assert sessions[0] == sessions[1] != sessions[2]


def test_stop_cancels_and_says_whether_it_did(visit: Open) -> None:
    """The agent's code is over when the page says that this is confirmed."""
    ended = threading.Event()

    def agent(request: dict[str, Any], context: Any) -> Iterator[str]:
        try:
            yield "thinking"
            context.sleep(60)
        finally:
            ended.set()

    with visit(agent) as person:
        person.say("think")
        person.expect_answer("thinking")
        person.page.get_by_role("button", name="Stop").click()
        person.expect_state("Stopped, confirmed")
        assert ended.wait(1)
        expect(person.page.locator(".problem")).to_be_hidden()
        expect(person.page.get_by_role("button", name="Send")).to_be_visible()
        person.say("again")
        person.expect_answer("thinking")
        person.page.keyboard.press("Escape")
        person.expect_state("Stopped, confirmed")


def test_code_that_ignores_a_stop_is_not_said_to_have_stopped(
    visit: Open, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only once it has really ended."""
    # The app gives it five seconds; here a fifth of one will do.
    monkeypatch.setitem(Invocation.__init__.__kwdefaults__, "cancel_grace", 0.2)

    def agent(request: dict[str, Any], context: Any) -> Iterator[str]:
        yield "busy"
        gate.stand()

    with visit(agent) as person:
        person.say("stop me if you can")
        person.expect_answer("busy")
        person.page.get_by_role("button", name="Stop").click()
        person.expect_state("Stopping…")
        person.expect_state("Asked to stop, still running")
        gate.open()
        person.expect_state("Stopped, confirmed")


def test_a_message_that_waits_for_a_slot_can_be_withdrawn(
    browser: Browser, serve: Serve, gate: Gate
) -> None:
    """The agent never hears of it."""
    heard = []

    def agent(request: dict[str, Any]) -> Iterator[str]:
        heard.append(request["prompt"])
        yield "first"
        gate.stand()

    app = PPIOAgentRuntimeApp(name="echo", max_concurrency=1)
    app.entrypoint(agent)
    http = serve(app)
    connection, _ = http.stream({"prompt": "somebody else's"})
    with (
        contextlib.closing(connection),
        Visit(browser, f"{http.server.url}/") as person,
    ):
        gate.wait_reached()
        person.say("mine")
        person.expect_state("Working…")
        wait_until(lambda: http.lane("invoke")["waiting"], what="it waits")
        person.page.keyboard.press("Escape")
        person.expect_state("Stopped before it began")
        gate.open()
    assert heard == ["somebody else's"]


def test_an_error_is_told_with_code_and_request(visit: Open) -> None:
    """Before the first chunk and after it; what was answered stays."""

    def agent(request: dict[str, Any]) -> Iterator[str]:
        yield "so far"
        raise ValueError("no seats left")

    with visit(agent) as person:
        person.say("book")
        person.expect_state("Failed")
        person.expect_answer("so far")
        person.expect_problem("no seats left", "invocation_failed", "request ")
        shown = person.page.text_content(".problem .code") or ""
        assert shown.endswith(person.id_of("Request"))
        person.page.get_by_role("button", name="JSON").click()
        person.page.get_by_label("Message", exact=True).fill("null")
        person.page.keyboard.press("Control+Enter")
        person.expect_state("Refused")
        person.expect_problem("validation_error", "request ")


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Open) -> None:
    """A wrong one is asked for again; the message is not lost over it."""
    with visit(echo, auth=ApiKeyAuth({"me": KEY})) as person:
        page = person.page
        person.say("hello")
        field = page.get_by_label("This agent asks for a key.")
        person.expect_state("Waiting for a key")
        field.fill("wrong")
        page.keyboard.press("Enter")
        field = page.get_by_label("That key was not accepted.")
        field.fill(KEY)
        page.keyboard.press("Enter")
        person.expect_answer("hello")
        person.say("more")
        person.expect_answer("more")
        kept = page.evaluate(
            """async () => JSON.stringify([
                 {...localStorage}, {...sessionStorage}, document.cookie,
                 await indexedDB.databases(), await caches.keys(), location.href,
                 document.documentElement.outerHTML,
                 [...document.querySelectorAll("input, textarea")].map((e) => e.value),
               ])"""
        )
        assert KEY not in kept
        assert not any(KEY in url for url in person.requested)
        page.get_by_role("button", name="Forget key").click()
        person.say("who am I?")
        person.expect_state("Waiting for a key")
        page.keyboard.press("Escape")
        person.expect_state("Refused")
        person.expect_problem("authentication_required")


def test_any_json_can_be_sent(visit: Open) -> None:
    """It is checked before it leaves; Enter makes a new line in it."""
    with visit(lambda request: request) as person:
        page = person.page
        message = page.get_by_label("Message", exact=True)
        message.fill("hello")
        page.get_by_role("button", name="JSON").click()
        expect(message).to_have_value('{\n  "prompt": "hello"\n}')
        message.fill('{"a": [1, 2')
        expect(page.get_by_text("Not JSON")).to_be_visible()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        page.keyboard.press("Control+Enter")
        message.fill('{"a": [1, 2],')
        page.keyboard.press("Enter")
        page.keyboard.type('"big": 10000000000000000001}')
        page.keyboard.press("Control+Enter")
        person.expect_answer(
            '{\n  "a": [\n    1,\n    2\n  ],\n  "big": 10000000000000000001\n}'
        )
        expect(page.locator(".turn")).to_have_count(1)


def test_text_is_never_html(visit: Open) -> None:
    """Neither of the person, nor of the agent, nor of an error, nor a name."""
    evil = "<img src=x onerror=\"document.title='owned'\"><script>alert(1)</script>"

    def agent(request: dict[str, Any]) -> Iterator[Any]:
        yield request["prompt"]
        yield {"html": evil}
        raise ValueError(evil)

    with visit(agent) as person:
        person.say(evil)
        person.expect_state("Failed")
        person.expect_problem(evil)
        expect(person.page.locator(".said")).to_have_text(evil)
        expect(person.page.locator(".answer .text")).to_have_text(evil)
        assert person.page.locator("img, .turn script").count() == 0
        assert person.page.title() == "echo · playground"


def test_nothing_comes_from_elsewhere(visit: Open) -> None:
    """All requests go to the agent itself; the policy has nothing to refuse."""
    with visit(echo) as person:
        person.say("hello")
        person.expect_state("Done")
        assert person.requested
        assert {url.startswith((person.url, "data:")) for url in person.requested} == {
            True
        }


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_colours_of_the_system(visit: Open, scheme: str) -> None:
    """Dark text on light ground, or the other way round."""
    with visit(echo, color_scheme=scheme) as person:
        ground, ink = person.page.evaluate(
            """() => ["backgroundColor", "color"].map((name) =>
                 getComputedStyle(document.body)[name].match(/\\d+/g)
                 .reduce((sum, part) => sum + Number(part), 0))"""
        )
        dark, light = (ground, ink) if scheme == "dark" else (ink, ground)
        assert dark < 150
        assert light > 600


def test_it_fits_a_phone(visit: Open) -> None:
    """However long the words: nothing lies outside, and what is sent on is in view."""

    def agent(request: dict[str, Any]) -> Iterator[Any]:
        yield "w" * 300
        yield {"key" * 50: "v" * 300}
        raise ValueError("e" * 300)

    with visit(agent, **PHONE) as person:
        person.say("m" * 300)
        person.expect_state("Failed")
        person.id_of("Invocation")
        width, inner = person.page.evaluate(
            "[document.documentElement.scrollWidth, innerWidth]"
        )
        assert width <= inner == 360
        beyond = person.page.evaluate(
            """[...document.querySelectorAll("body *")].filter(
                 (e) => e.getBoundingClientRect().right > innerWidth + 1
               ).map((e) => e.className || e.tagName)"""
        )
        assert beyond == []
        expect(person.page.get_by_role("button", name="Send")).to_be_in_viewport(
            ratio=1
        )
        expect(person.page.locator(".ids")).to_be_in_viewport(ratio=1)


def test_it_scrolls_along_until_the_reader_scrolls_up(visit: Open, gate: Gate) -> None:
    """Then it leaves the reader where they are, and offers the way back."""

    def agent(request: dict[str, Any]) -> Iterator[str]:
        yield "line\n" * 100
        gate.stand()
        yield "line\n" * 100 + "last line"

    with visit(agent) as person:
        page = person.page
        offset = "(() => { const log = document.getElementById('log');"
        offset += " return log.scrollHeight - log.scrollTop - log.clientHeight; })()"
        latest = page.get_by_role("button", name="Latest")
        person.say("long")
        expect(page.locator(".text")).to_contain_text("line")
        expect(page.locator(".facts")).to_be_in_viewport()
        expect(latest).to_be_hidden()
        page.locator("#log").hover()
        page.mouse.wheel(0, -500)
        expect(latest).to_be_visible()
        gate.open()
        person.expect_state("Done")
        assert page.evaluate(offset) > 1000
        latest.click()
        expect(latest).to_be_hidden()
        assert page.evaluate(offset) < 5


def test_a_cut_stream_is_gone_on_with(
    browser: Browser, serve: Serve, gate: Gate
) -> None:
    """The rest comes by the events after the last one; the agent is not run again."""
    starts = []

    def agent(request: dict[str, Any]) -> Iterator[str]:
        starts.append(request)
        yield "before "
        yield "it, "
        gate.stand()
        yield "after it"

    app = PPIOAgentRuntimeApp(name="echo")
    app.entrypoint(agent)
    with Relay(serve(app).port) as relay, Visit(browser, relay.url) as person:
        person.say("go")
        person.expect_answer("before it,")
        gate.wait_reached()
        relay.cut()
        person.expect_state("Connection lost, reconnecting…")
        gate.open()
        person.expect_state("Done")
        person.expect_answer("before it, after it")
    assert len(starts) == 1


def test_events_cut_at_every_byte_are_the_same(browser: Browser, serve: Serve) -> None:
    """Even inside a letter; line ends within a text are no ends of lines."""
    text = "Grüße, 世界 🌍\r\nand more\rdata: none\n"
    app = PPIOAgentRuntimeApp(name="echo")
    app.entrypoint(lambda request: iter([text, {"n": 1}]))
    with Relay(serve(app).port) as relay, Visit(browser, relay.url) as person:
        relay.step = 1
        person.say("go")
        person.expect_answer(text.strip(), '{\n  "n": 1\n}')
        person.expect_state("Done")
        assert person.page.text_content(".answer .text") == text


def test_an_unreachable_agent_can_be_asked_again(
    browser: Browser, serve: Serve
) -> None:
    """By one click, with the same id: it is run once, whatever had arrived."""
    app = PPIOAgentRuntimeApp(name="echo")
    app.entrypoint(echo)
    http = serve(app)
    with Visit(browser, http.server.url + "/") as person:
        person.page.context.set_offline(True)
        person.say("are you there?")
        person.expect_problem("cannot be reached", "unreachable")
        expect(person.page.locator("#health")).to_have_text("Unreachable")
        person.page.context.set_offline(False)
        person.page.get_by_role("button", name="Try again").click()
        person.expect_answer("are you there?")
        expect(person.page.locator(".problem")).to_be_hidden()
        expect(person.page.locator("#health")).to_have_text("Healthy")


def test_one_of_several_entrypoints_is_chosen(browser: Browser, serve: Serve) -> None:
    """The one without a name stands first."""
    app = PPIOAgentRuntimeApp(name="both")
    app.entrypoint(name="alpha")(lambda request: "from alpha")

    @app.entrypoint
    def main(request: dict[str, Any]) -> str:
        return "from main"

    with Visit(browser, serve(app).server.url + "/") as person:
        chooser = person.page.get_by_label("Entrypoint")
        expect(chooser.locator("option")).to_have_text(["main", "alpha"])
        person.say("hi")
        person.expect_answer("from main")
        chooser.select_option("alpha")
        person.say("hi")
        person.expect_answer("from alpha")


@pytest.mark.parametrize("path", ["/below", "/below/"])
def test_it_works_where_the_app_is_mounted(
    browser: Browser, serve: Serve, path: str
) -> None:
    """With a slash at the end of its address, and without."""
    app = PPIOAgentRuntimeApp(name="echo")
    app.entrypoint(echo)
    app.wsgi_app = DispatcherMiddleware(NotFound(), {"/below": app.wsgi_app})
    with Visit(browser, serve(app).server.url + path) as person:
        expect(person.page.locator("#health")).to_have_text("Healthy")
        person.say("hello")
        person.expect_answer("hello")
        person.expect_state("Done")


def test_whoever_leaves_leaves_nothing_running(visit: Open) -> None:
    """Closing the page, or beginning a new conversation, cancels what runs."""
    ended = threading.Semaphore(0)

    def agent(request: dict[str, Any], context: Any) -> Iterator[str]:
        yield "thinking"
        try:
            context.sleep(60)
        finally:
            ended.release()

    with visit(agent) as person:
        person.say("one")
        person.expect_answer("thinking")
        person.page.get_by_role("button", name="New conversation").click()
        assert ended.acquire(timeout=5)
        person.say("two")
        person.expect_answer("thinking")
        person.page.goto("about:blank")
        assert ended.acquire(timeout=5)
