"""A Flask site that asks agents, in process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask, request
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from ppio_agent._util.threads import start_thread
from ppio_agent.client.flask import (
    PPIOAgents,
    agent_view,
    current_client,
    error_response,
    stream_response,
)
from ppio_agent.exceptions import ConfigurationError, RequestTimeoutError
from tests.client.support_web import TalkingAgent
from tests.support import wait_until
from tests.support_platform import KEY, FakePlatform

SSE = {"Accept": "text/event-stream"}


@pytest.fixture
def agent(platform: FakePlatform) -> TalkingAgent:
    platform.agent = TalkingAgent()
    return platform.agent


@pytest.fixture
def app(platform: FakePlatform, agent: TalkingAgent) -> Iterator[Flask]:
    del agent
    app = Flask("site")
    app.config["PPIO_AGENT"] = {"base_url": platform.url, "api_key": KEY}
    PPIOAgents(app)

    @app.get("/chat/<format>")
    def chat(format: Any) -> Any:
        stream = current_client.invoke_agent_stream("tpl1", request.args["prompt"])
        return stream_response(stream, format=format, heartbeat=0.05)

    @app.get("/late")
    def late() -> Any:
        return error_response(RequestTimeoutError("late", request_id="r1"))

    def who(request: Any) -> str | None:
        return request.args.get("who")

    app.add_url_rule("/ask", view_func=agent_view("tpl1"))
    app.add_url_rule("/talk", view_func=agent_view("tpl.1", session_id=who))
    app.add_url_rule("/talk-too", view_func=agent_view("tpl.1", session_id=who))
    yield app
    app.extensions["ppio_agent"].close()


@pytest.fixture
def site(app: Flask) -> FlaskClient:
    return app.test_client()


def test_a_stream_has_its_chunks_and_headers(site: FlaskClient) -> None:
    """In each format; nothing on the way may hold it back."""
    response = site.get("/chat/sse?prompt=one two")
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache, no-transform"
    assert response.headers["X-Accel-Buffering"] == "no"
    expected = b': open\n\ndata: "one"\n\ndata: "two"\n\nevent: end\ndata: {}\n\n'
    assert response.data == expected
    assert site.get("/chat/ndjson?prompt=one two").data == b'\n"one"\n"two"\n'
    assert site.get("/chat/text?prompt=one two").text == "onetwo"


def test_a_visitor_who_leaves_ends_the_run_and_its_sandbox(
    site: FlaskClient, agent: TalkingAgent, platform: FakePlatform
) -> None:
    """Also while the agent says nothing."""
    response = site.get("/chat/sse?prompt=quiet")
    pieces = iter(response.response)
    assert [next(pieces), next(pieces), next(pieces)][2] == b": hb\n\n"
    response.close()
    wait_until(lambda: agent.cancelled.is_set() and not platform.alive)


def test_a_visitor_who_hangs_up_in_silence_is_noticed(
    app: Flask, agent: TalkingAgent, platform: FakePlatform
) -> None:
    """By a heartbeat that cannot be written, on real sockets."""
    with make_server("127.0.0.1", 0, app, threaded=True) as server:
        thread = start_thread("site", server.serve_forever)
        address = ("127.0.0.1", server.server_port)
        with socket.create_connection(address, timeout=10) as visitor:
            visitor.sendall(b"GET /chat/sse?prompt=quiet HTTP/1.0\r\n\r\n")
            seen = b""
            while b'data: "a"' not in seen:
                seen += visitor.recv(4096)
            assert not agent.cancelled.is_set()
        wait_until(lambda: agent.cancelled.is_set() and not platform.alive)
        server.shutdown()
        thread.join(10)


def test_an_error_is_a_problem(site: FlaskClient) -> None:
    """And one event, where the stream has begun."""
    response = site.get("/late")
    assert response.status_code == 504
    assert response.content_type == "application/problem+json"
    assert response.get_json()["request_id"] == "r1"
    assert b"event: error\ndata: {" in site.get("/chat/sse?prompt=fail").data


def test_the_view_takes_json_and_forms(site: FlaskClient, agent: TalkingAgent) -> None:
    """And gives JSON or a stream, as it is accepted."""
    response = site.post("/ask", json={"prompt": "hi", "n": [1, 2]})
    assert response.get_json() == {"result": {"prompt": "hi", "n": [1, 2]}}
    response = site.post("/ask", data={"prompt": "hi", "csrf_token": "t"})
    assert response.get_json() == {"result": {"prompt": "hi"}}
    response = site.post("/ask", json="one two", headers=SSE)
    assert b'data: "two"' in response.data
    assert agent.asked[-1] == {"prompt": "one two"}


def test_what_cannot_be_asked_is_refused(
    site: FlaskClient, app: Flask, platform: FakePlatform
) -> None:
    """Before there is a sandbox; the methods and the limit are Flask's own."""
    assert site.get("/ask").status_code == 405
    found = [
        site.post("/ask", data="{", content_type="application/json"),
        site.post("/ask", json=[1]),
        site.post("/ask", data="hi", content_type="text/plain"),
    ]
    assert [r.status_code for r in found] == [400, 400, 415]
    assert {r.content_type for r in found} == {"application/problem+json"}
    app.config["MAX_CONTENT_LENGTH"] = 10
    assert site.post("/ask", json={"a": "b" * 20}).status_code == 413
    assert platform.sandboxes == {}


def test_a_failed_agent_is_a_bad_gateway(site: FlaskClient, caplog: Any) -> None:
    """What it said is in the site's log only."""
    response = site.post("/ask", json={"prompt": "refuse"})
    assert response.status_code == 502
    assert b"sesame" not in response.data
    assert "the password is sesame" in caplog.text


@pytest.mark.parametrize("path", ["/sandboxes$", "/invocations$"])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_a_peer_says_stays_with_the_site(
    site: FlaskClient, platform: FakePlatform, path: str, status: int
) -> None:
    """Also where it looks like a fault of the visitor's: the site had asked."""
    said = {"code": "validation_error", "message": "the password is sesame"}
    platform.on("POST", path, lambda exchange: exchange.reply(status, said))
    response = site.post("/ask", json={"prompt": "hi"})
    assert response.status_code == 502
    assert response.get_json()["detail"] == "the agent could not answer"
    assert b"sesame" not in response.data


def test_a_visitor_keeps_a_session(site: FlaskClient, platform: FakePlatform) -> None:
    """Two views do not get into each other's way, whatever their agents' names."""
    platform.templates[0]["aliases"] = ["tpl.1"]
    for who in ("ann", "bob", "ann"):
        assert site.post(f"/talk?who={who}", json={}).status_code == 200
    assert len(platform.sandboxes) == len(platform.alive) == 2


def test_settings_are_checked_at_start() -> None:
    """With the nearest name; an app of a factory is given its client later."""
    app = Flask("site")
    app.config["PPIO_AGENT"] = {"timeut": 3}
    with pytest.raises(ConfigurationError, match="did you mean 'timeout'"):
        PPIOAgents().init_app(app)


def test_an_app_without_the_extension_is_told() -> None:
    """By name, where the client is used."""
    app = Flask("site")
    with app.app_context(), pytest.raises(ConfigurationError, match="PPIOAgents"):
        current_client.list_templates()


def test_each_app_has_a_client(app: Flask) -> None:
    """The same in all its requests."""
    other = Flask("other")
    PPIOAgents(other)
    seen = []
    for one in (app, app, other):
        with one.app_context():
            seen.append(current_client._get_current_object())  # type: ignore[attr-defined]  # of the proxy
    assert seen[0] is seen[1] is not seen[2]
    other.extensions["ppio_agent"].close()
