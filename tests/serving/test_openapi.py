"""The description of an app's API, and that the app does what it says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, TypedDict

import attrs
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from ppio_agent import HmacAuth, PPIOAgentRuntimeApp, Principal
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import ApiKeyAuth
from ppio_agent.serving.routes import ROUTES
from ppio_agent.web.front import Front
from tests.serving.conftest import Serve
from tests.serving.support import SSE, make_app

KEY = "sk-0123456789abcdef"


@attrs.define
class Question:
    """What is asked."""

    text: str
    tone: Literal["kind", "curt"] = "kind"


class Reply(TypedDict):
    text: str
    score: float


def ask(request: Question) -> Reply:
    """Answer a question.

    At length.
    """
    return {"text": request.text, "score": 1.0}


def talk(request: dict[str, Any]) -> Iterator[str]:
    """Talk on and on."""
    yield "a"
    yield "b"


async def count(request: Any) -> AsyncIterator[int]:
    yield 1


def app_of(*agents: Any, **settings: Any) -> PPIOAgentRuntimeApp:
    app = make_app(**settings)
    for agent in agents:
        app.entrypoint(name=agent.__name__)(agent)
    return app


def document_of(app: PPIOAgentRuntimeApp, **headers: str) -> dict[str, Any]:
    """Return the document of an app; it is a valid one."""
    with app.test_client(headers=headers) as client:
        answer = client.get("/openapi.json")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    found: dict[str, Any] = answer.json
    OpenAPIV31SpecValidator(found).validate()
    return found


def input_of(document: dict[str, Any]) -> Any:
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]
    return content["application/json"]["schema"]


def result_of(document: dict[str, Any]) -> Any:
    responses = document["paths"]["/invocations"]["post"]["responses"]
    schema = responses["200"]["content"]["application/json"]["schema"]
    return schema["allOf"][1]["properties"]["result"]


def test_every_route_is_described_and_no_other() -> None:
    """By path and method."""
    document = document_of(app_of(ask))
    described = {
        (method.upper(), path)
        for path, item in document["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == {(route.method, route.template) for route in ROUTES}


def test_the_agent_is_described_as_it_is_written() -> None:
    """Name, version, docstring, what it takes and gives."""
    document = document_of(app_of(ask, name="oracle", version="2.1"))
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "oracle", "version": "2.1"}
    operation = document["paths"]["/invocations"]["post"]
    assert operation["summary"] == "Answer a question."
    assert operation["description"] == "Answer a question.\n\nAt length."
    assert input_of(document) == {"$ref": "#/components/schemas/Question"}
    assert result_of(document) == {"$ref": "#/components/schemas/Reply"}
    assert document["components"]["schemas"]["Question"]["required"] == ["text"]
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names == {
        "X-Request-Id",
        "X-Invocation-Id",
        "Idempotency-Key",
        "X-PPIO-Timeout",
        "X-PPIO-Session-Id",
        "Prefer",
    }
    content = operation["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}


def test_a_stream_is_described_by_its_chunks() -> None:
    """There is no envelope then."""
    for agent, chunk in ((talk, "string"), (count, "integer")):
        document = document_of(app_of(agent))
        assert document["components"]["schemas"]["Chunk"] == {"type": chunk}
        responses = document["paths"]["/invocations"]["post"]["responses"]
        assert list(responses["200"]["content"]) == ["text/event-stream"]


def test_several_entrypoints_are_a_choice() -> None:
    """Of names, inputs and results."""
    document = document_of(app_of(ask, talk))
    operation = document["paths"]["/invocations"]["post"]
    (choice,) = (p for p in operation["parameters"] if p["in"] == "query")
    assert (choice["name"], choice["required"]) == ("entrypoint", True)
    assert choice["schema"] == {"enum": ["ask", "talk"]}
    assert (
        operation["description"]
        == "- `ask` Answer a question.\n- `talk` Talk on and on."
    )
    question, anything = input_of(document)["anyOf"]
    assert question == {"$ref": "#/components/schemas/Question"}
    assert "null" not in anything["type"]
    assert result_of(document) == {"$ref": "#/components/schemas/Reply"}
    chunks = document["components"]["schemas"]["Chunk"]["anyOf"]
    assert {"type": "string"} in chunks


def test_the_default_entrypoint_need_not_be_named() -> None:
    """With one without a name, the choice is free."""
    app = app_of(talk)
    app.entrypoint(ask)
    parameters = document_of(app)["paths"]["/invocations"]["post"]["parameters"]
    assert parameters[-1]["required"] is False


@pytest.mark.parametrize("agents", [(), (lambda: 1,), (lambda request: request,)])
def test_without_annotations_anything_goes(agents: Any) -> None:
    """And without an agent there still is a document."""
    document = document_of(app_of(*agents))
    assert result_of(document) == {}
    assert document["paths"]["/invocations"]["post"]["summary"] == "Call the agent"


class TokenAuth:
    """A plug-in that says how it is used."""

    security_schemes = {"token": {"type": "apiKey", "in": "query", "name": "token"}}  # noqa: RUF012 - as a user writes it

    @hookimpl
    def ppio_authenticate(self, request: Any) -> Principal | None:
        return None


def test_authentication_is_described_by_its_plug_ins() -> None:
    """Any one of their schemes will do; what is public needs none."""
    auth = [ApiKeyAuth({"a": KEY}), HmacAuth({"b": "s" * 16}), TokenAuth()]
    app = app_of(ask, auth=auth, allow_unauthenticated=True)
    document = document_of(app, **{"X-API-Key": KEY})
    schemes = document["components"]["securitySchemes"]
    assert set(schemes) == {"bearer", "apiKey", "hmac", "token"}
    assert document["security"] == [{name: []} for name in schemes]
    assert document["paths"]["/ping"]["get"]["security"] == []
    assert document["paths"]["/"]["get"]["security"] == []
    assert "security" not in document["paths"]["/invocations"]["post"]


def test_without_authentication_none_is_described() -> None:
    """Nor with a function, of which nothing is known."""
    assert "security" not in document_of(app_of(ask))
    app = app_of(ask, auth=lambda request: Principal("a", "b"))
    assert "security" not in document_of(app)


def test_it_says_where_the_app_is_mounted() -> None:
    """Paths are relative to that."""
    app = app_of(ask)
    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "/agents/a",
        "PATH_INFO": "/openapi.json",
        "HTTP_HOST": "localhost",
    }
    body = b"".join(app(environ, lambda status, headers, exc_info=None: None))
    assert b'"servers":[{"url":"/agents/a"}]' in body
    assert document_of(app)["servers"] == [{"url": "/"}]


def test_it_is_made_once_and_only_when_asked_for() -> None:
    """An app that nobody asks does not pay for it."""
    app = app_of(ask)
    with app.test_client() as client:
        client.get("/ping")
        assert "openapi" not in vars(app._engine)
        client.get("/openapi.json")
        made = app._engine.openapi
        client.get("/openapi.json")
        assert app._engine.openapi is made


def test_the_page_of_flask_is_the_same() -> None:
    """Routes of the user's own are not in it: only Flask knows them."""
    plain, through_flask = app_of(ask), app_of(ask, through_flask=True)
    through_flask.flask.add_url_rule("/own", view_func=lambda: "x")
    assert document_of(plain)["paths"] == document_of(through_flask)["paths"]


def _fits(document: dict[str, Any], schema: Any, value: Any) -> None:
    whole = {**schema, "components": document["components"]}
    Draft202012Validator(whole).validate(value)


def test_what_the_app_answers_is_what_it_says(serve: Serve) -> None:
    """Envelope, record, problem, ping: each fits its schema, and has its headers."""
    app = app_of(ask)
    http = serve(app)
    document = http.get("/openapi.json").json
    question = {"text": "why?"}
    calls: list[tuple[str, str, Any, dict[str, str]]] = [
        ("get", "/", None, {}),
        ("get", "/ping", None, {}),
        ("post", "/invocations", question, {"X-Invocation-Id": "inv_1"}),
        ("post", "/invocations", question, {"X-Invocation-Id": "inv_1"}),
        ("post", "/invocations", {"text": 1}, {}),
        ("post", "/invocations", question, {"X-PPIO-Timeout": "x"}),
        ("post", "/invocations", question, {"Prefer": "respond-async"}),
        ("get", "/invocations/inv_1", None, {}),
        ("get", "/invocations/inv_1/events", None, SSE),
        ("get", "/invocations/inv_1/events", None, {"Last-Event-ID": "99"}),
        ("get", "/invocations/inv_2", None, {}),
        ("post", "/invocations/inv_1/cancel", {}, {}),
        ("get", "/metrics", None, {}),
        ("get", "/openapi.json", None, {}),
    ]
    for method, path, payload, headers in calls:
        body = None if payload is None else json.dumps(payload).encode()
        answer = http.request(method.upper(), path, body, headers)
        template = path.replace("inv_1", "{id}").replace("inv_2", "{id}")
        operation = document["paths"][template][method]
        response = operation["responses"][str(answer.status)]
        if "$ref" in response:
            response = document["components"]["responses"][
                response["$ref"].split("/")[-1]
            ]
        media = answer.headers["content-type"].removesuffix("; charset=utf-8")
        known = {
            name.removesuffix("; charset=utf-8"): it
            for name, it in response["content"].items()
        }
        assert media in known, (path, answer.status)
        if media.endswith("json"):
            _fits(document, known[media]["schema"], answer.json)
        told = {name for name in answer.headers if name.startswith("x-")}
        assert told >= {"x-request-id", "x-ppio-agent"}
        told.discard("x-accel-buffering")  # for proxies
        assert told <= {name.lower() for name in response["headers"]}


def test_the_lane_never_waits_for_agents() -> None:
    """Metrics and description are answered whatever runs."""
    front: Front = app_of(ask)._front
    for path in ("/metrics", "/openapi.json", "/metrics/"):
        assert front.lane("GET", path, {}).value == "express"
