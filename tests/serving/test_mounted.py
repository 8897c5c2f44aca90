"""An app inside a site, below a prefix."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import AuthenticationError
from ppio_agent.serving import PPIOAgentRuntimeApp
from ppio_agent.web import Server
from ppio_agent.wire.models import Principal
from tests.serving.support import Gate, Http, make_app
from tests.support import wait_until

Mount = Callable[[PPIOAgentRuntimeApp], "tuple[Http, Site]"]


class Site:
    """A Flask site with a page, and what it counts of the requests through it."""

    def __init__(self, app: PPIOAgentRuntimeApp) -> None:
        site = flask.Flask(__name__)
        site.add_url_rule("/", "home", lambda: "home")
        site.add_url_rule("/ping", "ping", lambda: "the site's own")
        site.add_url_rule("/stand", "stand", self.stand)
        self.gate = Gate()
        self.requests: list[str] = []
        self._inner = DispatcherMiddleware(
            site.wsgi_app, {"/shop/agent s": app.wsgi_app}
        )

    def stand(self) -> str:
        self.gate.stand()
        return "stood"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(environ["PATH_INFO"])
        return self._inner(environ, start_response)


PREFIX = "/shop/agent%20s"


@pytest.fixture(params=["by the app", "by a server of the site"])
def mount(request: pytest.FixtureRequest) -> Iterator[Mount]:
    """Serve a site with an app in it."""
    closing: list[Callable[[], object]] = []

    def mount(app: PPIOAgentRuntimeApp) -> tuple[Http, Site]:
        site = Site(app)
        closing.extend((app.close, site.gate.open))
        server: Any
        if request.param == "by the app":
            app.wsgi_app = site
            server = app.server(port=0).start()
        else:
            server = Server(site).start()
        closing.append(server.close)
        return Http(server), site

    yield mount
    for close in reversed(closing):
        close()


def echo_app(**settings: Any) -> PPIOAgentRuntimeApp:
    app = make_app(**settings)

    @app.entrypoint
    def agent(request: Any) -> Any:
        seconds = request.get("seconds")
        if seconds:
            threading.Event().wait(seconds)
        return iter("abc") if request.get("stream") else request

    return app


def test_both_answer_at_their_places(mount: Mount) -> None:
    """The site where it was, the agent with all its routes below the prefix."""
    http, _ = mount(echo_app())
    assert http.get("/").body == b"home"
    assert http.get("/ping").body == b"the site's own"
    assert http.get(f"{PREFIX}/ping").json["status"] == "Healthy"
    assert http.invoke({"n": 1}, f"{PREFIX}/invocations").json["result"] == {"n": 1}
    missing = http.get(f"{PREFIX}/nothing")
    assert (missing.status, missing.json["code"]) == (404, "not_found")


def test_every_url_it_names_has_the_prefix(mount: Mount) -> None:
    """So that a client may follow it as it stands."""
    http, _ = mount(echo_app())
    endpoints = http.get(f"{PREFIX}/").json["endpoints"]
    assert endpoints["invocations"] == f"{PREFIX}/invocations"
    assert all(path.startswith(f"{PREFIX}/") for path in endpoints.values())
    promised = http.invoke(
        {"stream": True}, endpoints["invocations"], Prefer="respond-async"
    )
    place = promised.headers["location"]
    assert place == f"{PREFIX}/invocations/{promised.json['id']}"
    wait_until(lambda: http.get(place).json["state"] == "succeeded")
    assert b"event: end" in http.get(f"{place}/events").body


def test_a_slow_answer_passes_the_site_once(mount: Mount) -> None:
    """Its thread waits, as for a page of the site: nothing is called again."""
    http, site = mount(echo_app())
    assert http.invoke({"seconds": 0.05}, f"{PREFIX}/invocations").status == 200
    assert site.requests == ["/shop/agent s/invocations"]


def test_a_signature_covers_the_path_as_it_was_sent(mount: Mount) -> None:
    """With the prefix, still encoded: the client knows no other."""
    targets = []

    def authenticate(request: Any) -> Principal | None:
        targets.append((request.target, request.path))
        if "authorization" not in request.headers:
            raise AuthenticationError("who are you")
        return Principal("somebody", "test")

    http, _ = mount(echo_app(auth=authenticate))
    assert http.invoke({}, f"{PREFIX}/invocations?a=%20b").status == 401
    assert http.invoke({}, f"{PREFIX}/invocations", Authorization="x").status == 200
    assert http.get(f"{PREFIX}/ping").status == 200
    assert http.get("/").status == 200
    assert targets == [
        (f"{PREFIX}/invocations?a=%20b", "/invocations"),
        (f"{PREFIX}/invocations", "/invocations"),
    ]


@pytest.mark.parametrize("mount", ["by the app"], indirect=True)
def test_health_checks_below_the_prefix_do_not_wait(mount: Mount) -> None:
    """Once a request has told the prefix; pages of the site never take their threads."""
    http, site = mount(echo_app(max_concurrency=3, max_queue=8))
    assert http.get(f"{PREFIX}/ping").status == 200
    visitors = [start_thread("visitor", http.get, "/stand") for _ in range(3)]
    site.gate.wait_reached(3)
    visitors += [start_thread("visitor", http.get, p) for p in ("/", "/ping", "/no")]
    wait_until(lambda: http.lane("invoke")["waiting"] == 3)
    assert http.get(f"{PREFIX}/ping").json["status"] == "Healthy"
    assert http.get(f"{PREFIX}/invocations/none").status == 404
    wait_until(lambda: http.lane("express")["busy"] == 0)
    site.gate.open()
    for visitor in visitors:
        visitor.join(10)


def test_the_host_check_holds_below_a_prefix(mount: Mount) -> None:
    """Without authentication only names of this machine are served."""
    http, _ = mount(echo_app())
    refused = http.get(f"{PREFIX}/ping", Host="shop.example")
    assert (refused.status, refused.json["code"]) == (403, "host_not_allowed")
    assert http.get("/", Host="shop.example").status == 200
