"""The description of an app's API as an OpenAPI 3.1 document.

Loaded when it is first asked for. What an agent takes and gives comes from its handlers'
annotations; the rest is the same for every app, and in part in `openapi_parts`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import Handler
from ppio_agent.agent.schema import Schema, Schemas, item_of_stream, summary_of
from ppio_agent.web.openapi import (
    ID,
    TEXT,
    Description,
    answer,
    operation,
    parameter,
    problems,
    ref,
)
from ppio_agent.wire import headers as names

from .metrics import METRICS_TYPE
from .openapi_parts import (
    ANSWER_HEADERS,
    ANY_BUT_NULL,
    PROBLEMS,
    REQUEST_HEADERS,
    SCHEMAS,
)
from .routes import ROUTES

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["document"]

_JSON = "application/json"
_SSE = "text/event-stream"
_OF_INVOCATION = (
    names.INVOCATION_ID,
    names.SESSION_ID,
    names.IDEMPOTENCY_REPLAYED,
)
_FULL_STREAM = (
    "Server-sent events: each has an `id`; a failure is `event: error`; the last is"
    " `event: end`. The data of the others is a `Chunk`."
)


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
    return Description(
        title=engine.name,
        version=engine.version,
        schemas=schemas.definitions,
        headers=ANSWER_HEADERS,
        problems=PROBLEMS,
        places={"id": (ID, "Id of the invocation.")},
        security_schemes=engine.security_schemes,
    ).document(ROUTES, operations)


def _about_root() -> Schema:
    service = ref("schemas", "Service")
    found = answer("The agent; a page to talk to it.", json=service, html=TEXT)
    return operation("root", "Say what is served", {"200": found, **problems(403)})


def _about_ping() -> Schema:
    ping = ref("schemas", "Ping")
    return operation(
        "ping",
        "Say whether the agent is well, and whether it works",
        {
            "200": answer("`Healthy` or `HealthyBusy`.", json=ping),
            "503": answer("`Unhealthy`, or being stopped.", json=ping),
            **problems(403),
        },
    )


def _about_metrics() -> Schema:
    return operation(
        "metrics",
        "Give the metrics as Prometheus reads them",
        {
            "200": answer("Text format 0.0.4.", **{METRICS_TYPE: TEXT}),
            **problems(401, 403),
        },
    )


def _about_openapi() -> Schema:
    found = answer("An OpenAPI 3.1 document.", json={"type": "object"})
    return operation(
        "openapi", "Give this document", {"200": found, **problems(401, 403)}
    )


def _about_record() -> Schema:
    found = answer("The record.", json=ref("schemas", "Record"))
    return operation(
        "invocation",
        "Look up an invocation",
        {"200": found, **problems(401, 403, 404)},
    )


def _about_events() -> Schema:
    number: Schema = {"type": "integer", "minimum": 0}
    return operation(
        "events",
        "Read the events of an invocation again, and on to its end",
        {
            "200": answer(_FULL_STREAM, *_OF_INVOCATION, sse=TEXT),
            **problems(400, 401, 403, 404, 410, 503),
        },
        parameters=[
            parameter(names.LAST_EVENT_ID, "header", number, "Go on after this event."),
            parameter("after", "query", number, "The same."),
        ],
    )


def _about_cancel() -> Schema:
    cancel = ref("schemas", "Cancel")
    return operation(
        "cancel",
        "Ask for the end of an invocation",
        {
            "200": answer("It had ended before.", json=cancel),
            "202": answer("Its end was asked for.", json=cancel),
            **problems(401, 403, 404),
        },
    )


def _invoke(engine: Engine, handlers: list[Handler], schemas: Schemas) -> Schema:
    """Return the operation of `POST /invocations`."""
    chunk, result = _outputs(handlers, schemas)
    schemas.definitions["Chunk"] = chunk
    parameters = [
        parameter(name, "header", schema, text)
        for name, schema, text in REQUEST_HEADERS
    ]
    if len(handlers) > 1:
        choice = {"enum": [handler.name for handler in handlers]}
        needed = engine.default is None
        parameters.append(
            parameter("entrypoint", "query", choice, "Which agent.", required=needed)
        )
    summary, more = "Call the agent", dict[str, Any]()
    if len(handlers) == 1:
        summary = summary_of(handlers[0].doc) or summary
        more["description"] = handlers[0].doc or summary
    elif handlers:
        lines = (f"- `{h.name}` {summary_of(h.doc)}".rstrip() for h in handlers)
        more["description"] = "\n".join(lines)
    takes = {_JSON: {"schema": _any_of(_input(h, schemas) for h in handlers)}}
    return operation(
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
    failed, problem = ref("schemas", "Envelope"), ref("schemas", "Problem")
    whole = {"allOf": [failed, {"properties": {"result": result}}]}
    envelope = {} if result is None else {"json": whole}
    return {
        "200": answer(
            f"An envelope with the result; or a stream. {_FULL_STREAM} Unless `Accept`"
            f" names `{_SSE}`: bare `data:` lines of chunks.",
            *_OF_INVOCATION,
            **envelope,
            sse=TEXT,
        ),
        "202": answer(
            "Accepted, as `Prefer: respond-async` asks.",
            *_OF_INVOCATION,
            "Location",
            names.RETRY_AFTER,
            json=ref("schemas", "Record"),
        ),
        "400": answer(
            "The agent cannot use the payload; or something in the request is wrong.",
            *_OF_INVOCATION,
            json=failed,
            problem=problem,
        ),
        **problems(401, 403, 404, 409, 413, 415),
        "499": answer("It was cancelled.", *_OF_INVOCATION, json=failed),
        "500": answer(
            "The agent failed, or the server.",
            *_OF_INVOCATION,
            json=failed,
            problem=problem,
        ),
        "503": answer(
            "There is no place, or the agent is being stopped.",
            *_OF_INVOCATION,
            names.RETRY_AFTER,
            json=failed,
            problem=problem,
        ),
        "504": answer("It passed its deadline.", *_OF_INVOCATION, json=failed),
        "default": answer(
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
