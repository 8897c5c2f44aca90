"""The routes: what is there, what is not, and how that is said; also by Flask."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.exceptions import PermissionDeniedError
from ppio_agent.web import Lane
from ppio_agent.web.front import Front
from tests.serving.conftest import Serve
from tests.serving.support import make_app


@pytest.fixture
def client(through_flask: bool) -> Any:
    app = make_app(through_flask=through_flask, name="greeter", version="1.2")
    app.entrypoint(lambda request: request)
    return app.test_client()


def test_the_root_says_what_this_is(client: Any) -> None:
    """Name, version, entrypoints."""
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.json["service"] == "ppio-agent"
    assert (answer.json["name"], answer.json["version"]) == ("greeter", "1.2")
    assert answer.json["status"] == "running"
    assert answer.json["entrypoints"] == ["<lambda>"]
    assert answer.json["endpoints"] == {
        "ping": "/ping",
        "metrics": "/metrics",
        "openapi": "/openapi.json",
        "invocations": "/invocations",
        "invocation": "/invocations/{id}",
        "events": "/invocations/{id}/events",
        "cancel": "/invocations/{id}/cancel",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/invocations", 405, "method_not_allowed"),
        ("DELETE", "/ping", 405, "method_not_allowed"),
        ("GET", "/invocations/unknown", 404, "invocation_not_found"),
        ("POST", "/invocations/unknown/cancel", 404, "invocation_not_found"),
        ("GET", "/invocations/unknown/events", 404, "invocation_not_found"),
        ("GET", "/invocations/a/b/c", 404, "not_found"),
    ],
)
def test_what_is_not_there_is_a_problem(
    client: Any, method: str, path: str, status: int, code: str
) -> None:
    """JSON with an id, never HTML."""
    answer = client.request(method, path)
    assert (answer.status_code, answer.json["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert ("allow" in answer.headers) == (status == 405)


def test_a_trailing_slash_is_the_same(client: Any) -> None:
    """No redirect, which would lose the body."""
    assert client.get("/ping/").status_code == 200
    assert client.post("/invocations/", json={"a": 1}).result == {"a": 1}


def test_head_is_get_without_a_body(client: Any) -> None:
    """With its length."""
    answer = client.request("HEAD", "/ping")
    assert (answer.status_code, answer.body) == (200, b"")
    assert int(answer.headers["content-length"]) > 0


def test_options_says_what_is_allowed(client: Any) -> None:
    """Unless it is a preflight."""
    answer = client.request("OPTIONS", "/invocations")
    assert answer.status_code == 200
    assert set(answer.headers["allow"].split(", ")) >= {"POST", "OPTIONS"}


def test_no_answer_is_a_redirect_or_html(client: Any) -> None:
    """Flask's own habits do not show."""
    doubled = client.get("/ping//")
    assert doubled.headers["content-type"].startswith("application/")
    assert doubled.status_code in (200, 404)
    options = client.request("OPTIONS", "/invocations/x/events")
    assert "content-type" not in options.headers
    assert options.headers["allow"] == "GET, HEAD, OPTIONS"


def test_every_answer_names_the_app_and_the_request(client: Any) -> None:
    """Also those that refuse; a caller's id is kept."""
    for path in ("/", "/ping", "/nothing", "/invocations/x"):
        answer = client.get(path, headers={"X-Request-Id": "mine"})
        assert answer.headers["x-request-id"] == "mine"
        assert answer.headers["x-ppio-agent"]


def test_an_unknown_entrypoint_is_404() -> None:
    """And the known ones are named."""
    app = make_app()
    app.entrypoint(name="a")(lambda request: "a")
    app.entrypoint(name="b")(lambda request: "b")
    client = app.test_client()
    assert client.post("/invocations?entrypoint=b", json={}).result == "b"
    for path in ("/invocations", "/invocations?entrypoint=c"):
        answer = client.post(path, json={})
        assert (answer.status_code, answer.json["code"]) == (
            404,
            "entrypoint_not_found",
        )
        assert "a, b" in answer.json["detail"]


def test_without_an_entrypoint_that_is_said(through_flask: bool) -> None:
    """500: it is the app that is wrong."""
    answer = make_app(through_flask=through_flask).test_client().invoke({})
    assert (answer.status_code, answer.json["detail"]) == (
        500,
        "No entrypoint defined",
    )


def test_the_only_entrypoint_needs_no_name_in_the_request() -> None:
    """Even if it has one."""
    app = make_app()
    app.entrypoint(name="main")(lambda request: "main")
    assert app.test_client().invoke({}).result == "main"


def test_a_flask_app_takes_further_routes(serve: Serve) -> None:
    """With our errors, ids and authentication, and its own answers."""
    import flask

    app = make_app()
    app.entrypoint(lambda request: flask.Response("raw", 201, {"X-Own": "1"}))

    @app.flask.get("/own/<name>")
    def own(name: str) -> Any:
        if name == "denied":
            raise PermissionDeniedError("not you")
        if name == "missing":
            flask.abort(404, "no such thing")
        if name == "broken":
            raise LookupError(name)
        return {"name": name}

    http = serve(app)
    assert http.get("/own/x").json == {"name": "x"}
    assert http.get("/own/x/").status == 200
    denied = http.get("/own/denied")
    assert (denied.status, denied.json["code"]) == (403, "permission_denied")
    assert http.get("/own/missing").json["detail"] == "no such thing"
    broken = http.get("/own/broken")
    assert (broken.status, broken.json["detail"]) == (500, "internal error")
    raw = http.invoke({})
    assert (raw.status, raw.body, raw.headers["x-own"]) == (201, b"raw", "1")
    assert raw.headers["x-invocation-id"]
    assert http.get("/ping").status == 200


def test_flask_errors_of_a_handler_keep_their_status() -> None:
    """An `HTTPException` is an answer that its author chose."""
    import flask

    app = make_app()

    @app.entrypoint
    def agent(request: Any) -> None:
        flask.abort(409, "taken")

    answer = app.test_client().invoke({})
    assert (answer.status_code, answer.error) == (409, "taken")
    assert answer.json["metadata"]["error_type"] == "Conflict"


def test_a_response_that_a_handler_aborts_with_keeps_its_status() -> None:
    """Its text is the error."""
    import flask

    app = make_app()
    app.entrypoint(lambda request: flask.abort(flask.Response("gone", 410)))
    answer = app.test_client().invoke({})
    assert (answer.status_code, answer.error) == (410, "gone")


def front_of(app: Any) -> Front:
    found: Front = app.listen_on("127.0.0.1").front
    return found


@pytest.mark.parametrize(
    ("method", "path", "lane"),
    [
        ("GET", "/ping", Lane.EXPRESS),
        ("GET", "/ping/", Lane.EXPRESS),
        ("GET", "/nothing", Lane.EXPRESS),
        ("POST", "/invocations", Lane.QUEUED),
        ("POST", "/invocations/", Lane.QUEUED),
        ("GET", "/invocations", Lane.EXPRESS),
        ("GET", "/invocations/i1", Lane.EXPRESS),
        ("POST", "/invocations/i1/cancel", Lane.EXPRESS),
        ("GET", "/invocations/i1/events", Lane.READ),
        ("OPTIONS", "/invocations", Lane.EXPRESS),
    ],
)
def test_only_what_may_take_long_leaves_the_express_lane(
    method: str, path: str, lane: Lane
) -> None:
    """Refusals are quick."""
    assert front_of(make_app()).lane(method, path, {}) is lane


def test_a_users_own_routes_are_served_beside_the_agent() -> None:
    """They may take as long as an invocation."""
    front = front_of(make_app(through_flask=True))
    assert front.lane("GET", "/own", {}) is Lane.INVOKE
    asked = {"ORIGIN": "https://a", "ACCESS_CONTROL_REQUEST_METHOD": "POST"}
    assert front.lane("OPTIONS", "/own", asked) is Lane.EXPRESS
    # Without what it asks for it is no preflight, and reaches the user's code.
    assert front.lane("OPTIONS", "/own", {"ORIGIN": "https://a"}) is Lane.INVOKE


def test_foreign_pages_and_names_are_refused(serve: Serve) -> None:
    """On loopback without a key."""
    app = make_app(cors_origins=("https://app.example",))
    app.entrypoint(lambda request: request)
    http = serve(app)
    assert http.get("/ping", Host="evil.example").json["code"] == "host_not_allowed"
    foreign = http.invoke({"a": 1}, Origin="https://evil.example")
    assert (foreign.status, foreign.json["code"]) == (403, "origin_not_allowed")
    listed = http.invoke({"a": 1}, Origin="https://app.example")
    assert listed.headers["access-control-allow-origin"] == "https://app.example"
    preflight = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-ppio-timeout",
    }
    answer = http.request("OPTIONS", "/invocations", headers=preflight)
    assert (answer.status, answer.body) == (200, b"OK")
    asked = preflight["Access-Control-Request-Headers"]
    assert answer.headers["access-control-allow-headers"] == asked
    preflight["Origin"] = "https://evil.example"
    assert http.request("OPTIONS", "/any", headers=preflight).status == 403
