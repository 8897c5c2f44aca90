"""The description of an app's API as an OpenAPI 3.1 document.

Loaded when it is first asked for. What an agent takes and gives comes from its handlers'
annotations; the rest is the same for every app, and in part in `openapi_parts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import Handler
from ppio_agent.agent.schema import Schema, Schemas, item_of_stream, summary_of
from ppio_agent.wire import headers as names
from ppio_agent.wire.problem import PROBLEM_CONTENT_TYPE

from .metrics import METRICS_TYPE
from .openapi_parts import (
    ANSWER_HEADERS,
    ANY_BUT_NULL,
    ID,
    PROBLEMS,
    REQUEST_HEADERS,
    SCHEMAS,
    TEXT,
)
from .routes import ROUTES

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["document"]

_JSON = "application/json"
_SSE = "text/event-stream"
_ALWAYS = (names.REQUEST_ID, names.AGENT_VERSION)
_OF_INVOCATION = (
    names.INVOCATION_ID,
    names.SESSION_ID,
    names.IDEMPOTENCY_REPLAYED,
)
_FULL_STREAM = (
    "Server-sent events: each has an `id`; a failure is `event: error`; the last is"
    " `event: end`. The data of the others is a `Chunk`."
)


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _answer(about: str, /, *headers: str, **content: Schema) -> Schema:
    """Return a response; `content` by the keywords below."""
    kinds = {"json": _JSON, "problem": PROBLEM_CONTENT_TYPE, "sse": _SSE,
             "html": "text/html", "text": METRICS_TYPE}  # fmt: skip
    found: Schema = {
        "description": about,
        "headers": {name: _ref("headers", name) for name in (*_ALWAYS, *headers)},
    }
    if content:
        found["content"] = {kinds[k]: {"schema": v} for k, v in content.items()}
    return found


def _problems(*statuses: int) -> dict[str, Schema]:
    return {str(status): _ref("responses", f"Problem{status}") for status in statuses}


def document(engine: Engine) -> dict[str, Any]:
    """Return the document, without `servers`, which depends on where it is read."""
    schemas = Schemas()
    schemas.definitions.update(SCHEMAS)
    handlers = [entrypoint.handler for entrypoint in engine.entrypoints.values()]
    operations = {
        "root": _about_root(),
        "ping": _about_ping(),
        "metrics": _about_metrics(),
        "openapi": _about_openapi(),
        "invocations": _invoke(engine, handlers, schemas),
        "invocation": _about_record(),
        "events": _about_events(),
        "cancel": _about_cancel(),
    }
    components: Schema = {
        "schemas": schemas.definitions,
        "headers": {
            name: {"description": text, "schema": schema}
            for name, (text, schema) in ANSWER_HEADERS.items()
        },
        "responses": {
            f"Problem{status}": _answer(
                text,
                *([names.RETRY_AFTER] if status == 503 else ()),
                problem=_ref("schemas", "Problem"),
            )
            for status, text in PROBLEMS.items()
        },
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": engine.name, "version": engine.version},
        "paths": _paths(operations, secured=bool(engine.security_schemes)),
        "components": components,
    }
    if engine.security_schemes:
        components["securitySchemes"] = dict(engine.security_schemes)
        found["security"] = [{name: []} for name in engine.security_schemes]
    return found


def _paths(operations: Mapping[str, Schema], *, secured: bool) -> Schema:
    """Return the routes with their operations, which have the routes' names."""
    found: dict[str, Schema] = {}
    for route in ROUTES:
        item = found.setdefault(route.template, {})
        if route.template != route.path:
            item["parameters"] = [_parameter("id", "path", ID, "Id of the invocation.")]
        public: Schema = {"security": []} if secured and route.public else {}
        item[route.method.lower()] = {**operations[route.name], **public}
    return found


def _operation(name: str, summary: str, responses: Schema, **more: Any) -> Schema:
    return {"operationId": name, "summary": summary, **more, "responses": responses}


def _parameter(
    name: str, place: str, schema: Schema, text: str, **more: Any
) -> dict[str, Any]:
    required = {"required": True} if place == "path" else {}
    found = {"name": name, "in": place, "description": text, "schema": schema}
    return {**found, **required, **more}


def _about_root() -> Schema:
    service = _ref("schemas", "Service")
    answer = _answer("The agent; a page to talk to it.", json=service, html=TEXT)
    return _operation("root", "Say what is served", {"200": answer, **_problems(403)})


def _about_ping() -> Schema:
    ping = _ref("schemas", "Ping")
    return _operation(
        "ping",
        "Say whether the agent is well, and whether it works",
        {
            "200": _answer("`Healthy` or `HealthyBusy`.", json=ping),
            "503": _answer("`Unhealthy`, or being stopped.", json=ping),
            **_problems(403),
        },
    )


def _about_metrics() -> Schema:
    return _operation(
        "metrics",
        "Give the metrics as Prometheus reads them",
        {"200": _answer("Text format 0.0.4.", text=TEXT), **_problems(401, 403)},
    )


def _about_openapi() -> Schema:
    answer = _answer("An OpenAPI 3.1 document.", json={"type": "object"})
    return _operation(
        "openapi", "Give this document", {"200": answer, **_problems(401, 403)}
    )


def _about_record() -> Schema:
    answer = _answer("The record.", json=_ref("schemas", "Record"))
    return _operation(
        "invocation",
        "Look up an invocation",
        {"200": answer, **_problems(401, 403, 404)},
    )


def _about_events() -> Schema:
    number: Schema = {"type": "integer", "minimum": 0}
    return _operation(
        "events",
        "Read the events of an invocation again, and on to its end",
        {
            "200": _answer(_FULL_STREAM, *_OF_INVOCATION, sse=TEXT),
            **_problems(400, 401, 403, 404, 410, 503),
        },
        parameters=[
            _parameter(
                names.LAST_EVENT_ID, "header", number, "Go on after this event."
            ),
            _parameter("after", "query", number, "The same."),
        ],
    )


def _about_cancel() -> Schema:
    cancel = _ref("schemas", "Cancel")
    return _operation(
        "cancel",
        "Ask for the end of an invocation",
        {
            "200": _answer("It had ended before.", json=cancel),
            "202": _answer("Its end was asked for.", json=cancel),
            **_problems(401, 403, 404),
        },
    )


def _invoke(engine: Engine, handlers: list[Handler], schemas: Schemas) -> Schema:
    """Return the operation of `POST /invocations`."""
    chunk, result = _outputs(handlers, schemas)
    schemas.definitions["Chunk"] = chunk
    parameters = [
        _parameter(name, "header", schema, text)
        for name, schema, text in REQUEST_HEADERS
    ]
    if len(handlers) > 1:
        choice = {"enum": [handler.name for handler in handlers]}
        needed = engine.default is None
        parameters.append(
            _parameter("entrypoint", "query", choice, "Which agent.", required=needed)
        )
    summary, more = "Call the agent", dict[str, Any]()
    if len(handlers) == 1:
        summary = summary_of(handlers[0].doc) or summary
        more["description"] = handlers[0].doc or summary
    elif handlers:
        lines = (f"- `{h.name}` {summary_of(h.doc)}".rstrip() for h in handlers)
        more["description"] = "\n".join(lines)
    takes = {_JSON: {"schema": _any_of(_input(h, schemas) for h in handlers)}}
    return _operation(
        "invoke",
        summary,
        _outcomes(result),
        **more,
        parameters=parameters,
        requestBody={"required": True, "content": takes},
    )


def _outputs(handlers: list[Handler], schemas: Schemas) -> tuple[Schema, Schema | None]:
    """Return the schemas of a chunk, and of a result if any handler may give one."""
    results, chunks = [], []
    for handler in handlers:
        streams, item = item_of_stream(handler.output_type)
        streams = streams or handler.is_stream is True
        hint = item if streams else handler.output_type
        schema = {} if hint is None else schemas.of(hint, inbound=False)
        chunks.append(schema)
        if not streams:
            results.append(schema)
    return _any_of(chunks), _any_of(results) if results or not handlers else None


def _outcomes(result: Schema | None) -> Schema:
    """Return the responses to `POST /invocations`."""
    failed, problem = _ref("schemas", "Envelope"), _ref("schemas", "Problem")
    whole = {"allOf": [failed, {"properties": {"result": result}}]}
    envelope = {} if result is None else {"json": whole}
    return {
        "200": _answer(
            f"An envelope with the result; or a stream. {_FULL_STREAM} Unless `Accept`"
            f" names `{_SSE}`: bare `data:` lines of chunks.",
            *_OF_INVOCATION,
            **envelope,
            sse=TEXT,
        ),
        "202": _answer(
            "Accepted, as `Prefer: respond-async` asks.",
            *_OF_INVOCATION,
            "Location",
            names.RETRY_AFTER,
            json=_ref("schemas", "Record"),
        ),
        "400": _answer(
            "The agent cannot use the payload; or something in the request is wrong.",
            *_OF_INVOCATION,
            json=failed,
            problem=problem,
        ),
        **_problems(401, 403, 404, 409, 413, 415),
        "499": _answer("It was cancelled.", *_OF_INVOCATION, json=failed),
        "500": _answer(
            "The agent failed, or the server.",
            *_OF_INVOCATION,
            json=failed,
            problem=problem,
        ),
        "503": _answer(
            "There is no place, or the agent is being stopped.",
            *_OF_INVOCATION,
            names.RETRY_AFTER,
            json=failed,
            problem=problem,
        ),
        "504": _answer("It passed its deadline.", *_OF_INVOCATION, json=failed),
        "default": _answer(
            "The agent failed in a way that has a status of its own, or answered itself.",
            *_OF_INVOCATION,
            json=failed,
        ),
    }


def _input(handler: Handler, schemas: Schemas) -> Schema:
    """Return the schema of what a handler takes."""
    hint = handler.input_type or handler.input_hint
    schema = {} if hint is None else schemas.of(hint, inbound=True)
    said = "$ref" in schema or schema.get("additionalProperties", True) is not True
    # Whatever else is sent becomes an object, and so a handler may say nothing of it.
    return schema if said else ANY_BUT_NULL


def _any_of(schemas: Iterable[Schema]) -> Schema:
    found: list[Schema] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    if len(found) == 1:
        return found[0]
    return {} if not found or {} in found else {"anyOf": found}
