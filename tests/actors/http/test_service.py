"""What the service says of itself: name, health, agents, description."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ppio_agent import __version__
from ppio_agent.actors import ActorOptions, InProcessActorRuntime, Supervision
from ppio_agent.actors.http.routes import ROUTES
from ppio_agent.serving import ApiKeyAuth
from tests.actors.http.conftest import Serve
from tests.actors.http.support import Http, said
from tests.serving.support import JSON
from tests.support import wait_until

SECRET = "sk-0123456789abcdef"


def test_the_root_says_what_this_is(shared: Http) -> None:
    """As clients in the field know it."""
    assert shared.get("/").json == {
        "message": "Agent Runtime API",
        "version": __version__,
        "status": "running",
    }


def test_the_agents_are_listed_by_name(shared: Http) -> None:
    """Those that can be reached."""
    listed = shared.get("/agents").json
    names = [one["name"] for one in listed]
    assert names == sorted(names)
    assert "hidden" not in names
    assert {"name": "echo", "type": "test", "description": "Says it."} in listed


def test_health_follows_the_runtime(serve: Serve) -> None:
    """Types whose actors are stopped again and again are named."""
    runtime = InProcessActorRuntime()
    policy = Supervision(max_restarts=0, escalate_after=1)
    http = serve(runtime)
    assert http.get("/health").json == {"status": "healthy", "runtime_running": True}
    runtime.register_actor_type(
        "frail",
        lambda context: 1 / 0,  # type: ignore[arg-type,return-value] # fails before that matters
        options=ActorOptions(supervision=policy),
        expose=True,
    )
    http.post("/actors/v1/frail/a/m-1", {"method": "x"}, Prefer="wait=20")
    # The request has its answer a moment before its actor is stopped.
    wait_until(lambda: runtime.degraded)
    degraded = http.get("/health")
    assert (degraded.status, degraded.json["status"]) == (200, "degraded")
    assert degraded.json["degraded"] == ["frail"]
    stopped = http.post("/actors/v1/frail/a/m-2", {"method": "x"})
    assert (stopped.status, stopped.json["code"]) == (503, "actor_stopped")
    assert int(stopped.headers["retry-after"]) >= 1
    runtime.stop()
    ended = http.get("/health")
    assert (ended.status, ended.json) == (
        503,
        {"status": "unhealthy", "runtime_running": False},
    )
    refused = http.run("echo", said())
    assert (refused.status, refused.json["code"]) == (503, "runtime_not_running")
    assert http.get("/agents").status == 200


def test_the_description_is_valid_and_whole(serve: Serve) -> None:
    """Every route is there, and every agent."""
    document = serve().get("/openapi.json").json
    OpenAPIV31SpecValidator(document).validate()
    described = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == {(route.method, route.template) for route in ROUTES}
    (name,) = document["paths"]["/agents/{agent_name}/run"]["parameters"]
    assert "echo" in name["schema"]["enum"]
    assert "hidden" not in name["schema"]["enum"]


def test_with_authentication_the_description_says_so(serve: Serve) -> None:
    """And shows no key; what is public is."""
    http = serve(auth=ApiKeyAuth([SECRET]))
    assert http.get("/openapi.json").status == 401
    answer = http.get("/openapi.json", Authorization=f"Bearer {SECRET}")
    OpenAPIV31SpecValidator(answer.json).validate()
    assert SECRET not in json.dumps(answer.json)
    assert answer.json["security"]
    for path in ("/", "/health", "/docs"):
        assert http.get(path).status == 200
        assert answer.json["paths"][path]["get"]["security"] == []


def test_the_description_follows_the_types(serve: Serve) -> None:
    """Those that are registered later are in it, too."""
    http = serve()

    def described() -> Any:
        document = http.get("/openapi.json").json
        (name,) = document["paths"]["/agents/{agent_name}/run"]["parameters"]
        return name["schema"]["enum"]

    assert "later" not in described()
    http.runtime.register_agent("later", lambda request: "ok")
    assert "later" in described()


_PLACE = "/actors/v1/echo/told/m-1"
_CALL = {"method": "run", "params": said()}
_TOLD = [
    ("POST", "/agents/{agent_name}/run", "/agents/echo/run", said()),
    ("POST", "/actors/v1/{type}/{key}/{message_id}", _PLACE, _CALL),
    ("POST", "/actors/v1/{type}/{key}/{message_id}", _PLACE, {**_CALL, "params": {}}),
    ("GET", "/actors/v1/{type}/{key}/{message_id}", _PLACE, None),
    ("GET", "/actors/v1/{type}/{key}/{message_id}", f"{_PLACE}?streaming=true", None),
    ("POST", "/actors/v1/{type}/{key}/{message_id}:cancel", f"{_PLACE}:cancel", None),
    ("GET", "/actors/v1/{type}/{key}", "/actors/v1/echo/told", None),
    ("DELETE", "/actors/v1/{type}/{key}", "/actors/v1/echo/told", None),
    ("GET", "/dead-letters", "/dead-letters", None),
    ("POST", "/dead-letters/{id}:redrive", "/dead-letters/x:redrive", None),
    ("DELETE", "/dead-letters/{id}", "/dead-letters/x", None),
]
_OURS = {"location", "idempotency-replayed", "x-invocation-id"}


def test_what_is_answered_is_described(serve: Serve) -> None:
    """Status and headers, before and after the runtime was stopped."""
    http = serve()
    paths = http.get("/openapi.json").json["paths"]
    answered = set()
    for stop in (False, True, False):
        for method, template, path, body in _TOLD:
            data = None if body is None else json.dumps(body).encode()
            answer = http.request(method, path, data, JSON)
            answered.add(answer.status)
            responses = paths[template][method.lower()]["responses"]
            assert str(answer.status) in responses, (method, path, answer.body)
            told = responses[str(answer.status)].get("headers", {})
            ours = _OURS & answer.headers.keys() if answer.status < 400 else set()
            assert ours <= {name.lower() for name in told}, (method, path)
        if stop:
            http.runtime.stop()
    assert answered >= {200, 202, 204, 404, 409, 503}


def test_the_page_needs_nobody_else(shared: Http) -> None:
    """No address of another host is in it, and its policy allows none."""
    answer = shared.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    links = re.findall(rb"(?:src|href)=[\"']?([^\"' >]+)", answer.body)
    assert [link for link in links if not link.startswith(b"data:")] == []


@pytest.mark.parametrize("path", ["/health", "/agents", "/actors/v1/echo/x"])
def test_what_only_looks_takes_no_place_of_runs(shared: Http, path: str) -> None:
    """It is served beside them."""
    front = shared.server._api.front
    assert front.lane("GET", path, {}).value in ("express", "read")
    assert front.lane("POST", "/agents/echo/run", {}).value == "invoke"
