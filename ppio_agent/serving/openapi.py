"""The description of an app's API as an OpenAPI 3.1 document.

Loaded when it is first asked for. What is the same for every app is written out here;
what an agent takes and gives comes from its handlers' annotations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import Handler, InvocationState
from ppio_agent.wire import headers as names
from ppio_agent.wire.models import PingStatus
from ppio_agent.wire.problem import PROBLEM_CONTENT_TYPE

from .metrics import METRICS_TYPE
from .schema import Schema, Schemas, item_of_stream, summary_of

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["document"]

_JSON = "application/json"
_SSE = "text/event-stream"
_TEXT: Schema = {"type": "string"}
_ANY_BUT_NULL: Schema = {
    "type": ["object", "array", "string", "number", "boolean"],
    "description": 'A text s becomes `{"prompt": s}`, any other value that is no object'
    ' `{"input": …}`.',
}
_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"}
_STATES = [state.value for state in InvocationState]


def _object(properties: Mapping[str, Schema], **more: Any) -> Schema:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        **more,
    }


def _nullable(*kinds: str) -> Schema:
    return {"type": [*kinds, "null"]}


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
_SCHEMAS: Mapping[str, Schema] = {
    "Problem": _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer"},
            "detail": _TEXT,
            "code": _TEXT,
            "retryable": {"type": "boolean"},
            "request_id": _nullable("string"),
            "error": _TEXT,
        },
        description="Why a request was not carried out (RFC 9457).",
    ),
    "Envelope": _object(
        {
            "result": {},
            "status": {"enum": ["success", "error"]},
            "duration": {"type": "number", "description": "Seconds."},
            "metadata": {
                "type": "object",
                "properties": {
                    "request_id": _TEXT,
                    "invocation_id": _TEXT,
                    "session_id": _nullable("string"),
                    "error_type": _TEXT,
                    "code": _TEXT,
                    "retryable": {"type": "boolean"},
                    "confirmed": {"type": "boolean"},
                    "traceback": _TEXT,
                },
                "required": ["request_id", "invocation_id", "session_id"],
            },
            "error": _nullable("string"),
        },
        description="The outcome of an invocation.",
    ),
    "Record": _object(
        {
            "id": _TEXT,
            "state": {"enum": _STATES},
            "confirmed": {"type": "boolean"},
            "handler_running": {"type": "boolean"},
            "attempt": {"type": "integer", "minimum": 1},
            "entrypoint": _TEXT,
            "session_id": _nullable("string"),
            "created_at": {"type": "string", "format": "date-time"},
            "started_at": _TIME,
            "finished_at": _TIME,
            "duration": {"type": "number"},
            "stream": {"type": "boolean"},
            "events": _object(
                {"first": {"type": "integer"}, "last": {"type": "integer"}}
            ),
            "cancel": {
                "anyOf": [
                    _object({"reason": _TEXT, "requested_at": _TIME}),
                    {"type": "null"},
                ]
            },
            "result": {},
            "result_truncated": {"type": "boolean"},
            "late": {"type": "boolean"},
            "error": {
                "anyOf": [
                    _object(
                        {
                            "error": _TEXT,
                            "error_type": _TEXT,
                            "code": _TEXT,
                            "retryable": {"type": "boolean"},
                        }
                    ),
                    {"type": "null"},
                ]
            },
        },
        description="What is known of an invocation.",
    ),
    "Cancel": _object(
        {"id": _TEXT, "state": {"enum": _STATES}, "confirmed": {"type": "boolean"}}
    ),
    "Ping": _object(
        {
            "status": {"enum": [status.value for status in PingStatus]},
            "message": _nullable("string"),
            "timestamp": {"type": "string", "format": "date-time"},
            "time_of_last_update": {"type": "integer", "description": "Unix seconds."},
        }
    ),
    "Service": _object(
        {
            "service": _TEXT,
            "name": _TEXT,
            "version": _TEXT,
            "status": {"const": "running"},
            "timestamp": {"type": "string", "format": "date-time"},
            "entrypoints": {"type": "array", "items": _TEXT},
            "endpoints": {"type": "object", "additionalProperties": _TEXT},
        }
    ),
}

_REQUEST_HEADERS: tuple[tuple[str, Schema, str], ...] = (
    (names.REQUEST_ID, _ID, "Id of this request; the answer has it again."),
    (names.INVOCATION_ID, _ID, "Id for the invocation, which is run once for it."),
    (
        names.IDEMPOTENCY_KEY,
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "The invocation is run once for this key; a repetition gets its outcome.",
    ),
    (
        names.TIMEOUT,
        {"type": "number", "exclusiveMinimum": 0},
        "Seconds it may take; lowers the limit of the agent, never raises it.",
    ),
    (
        names.SESSION_ID,
        {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,256}$"},
        "The conversation.",
    ),
    ("Prefer", _TEXT, "`respond-async`: 202 at once, the outcome is looked up later."),
)
_ANSWER_HEADERS = {
    names.REQUEST_ID: ("Id of the request.", _TEXT),
    names.AGENT_VERSION: ("Version of the server.", _TEXT),
    names.INVOCATION_ID: ("Id of the invocation.", _TEXT),
    names.SESSION_ID: ("The conversation, if there is one.", _TEXT),
    names.IDEMPOTENCY_REPLAYED: (
        "The outcome is that of an earlier request.",
        {"const": "true"},
    ),
    names.RETRY_AFTER: ("Seconds to wait.", {"type": "integer"}),
    "Location": ("Where the invocation is looked up.", _TEXT),
}
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


_PROBLEMS = {
    400: "Something in the request is wrong.",
    401: "Who sent the request is not known.",
    403: "The request is not allowed.",
    404: "There is no such invocation or entrypoint, or not for this caller.",
    409: "The key was used with another body, or its run is being cancelled.",
    410: "The events to go on after are no longer kept.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    503: "There is no place, or the agent is being stopped.",
}


def document(engine: Engine) -> dict[str, Any]:
    """Return the document, without `servers`, which depends on where it is read."""
    schemas = Schemas()
    schemas.definitions.update(_SCHEMAS)
    handlers = [entrypoint.handler for entrypoint in engine.entrypoints.values()]
    invoke = _invoke(engine, handlers, schemas)
    public: Schema = {"security": []} if engine.security_schemes else {}
    lookup = {"parameters": [_parameter("id", "path", _ID, "Id of the invocation.")]}
    components: Schema = {
        "schemas": schemas.definitions,
        "headers": {
            name: {"description": text, "schema": schema}
            for name, (text, schema) in _ANSWER_HEADERS.items()
        },
        "responses": {
            f"Problem{status}": _answer(
                text,
                *([names.RETRY_AFTER] if status == 503 else ()),
                problem=_ref("schemas", "Problem"),
            )
            for status, text in _PROBLEMS.items()
        },
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": engine.name, "version": engine.version},
        "paths": {
            "/": {"get": {**_about_root(), **public}},
            "/ping": {"get": {**_about_ping(), **public}},
            "/metrics": {"get": _about_metrics()},
            "/openapi.json": {"get": _about_openapi()},
            "/invocations": {"post": invoke},
            "/invocations/{id}": {**lookup, "get": _about_record()},
            "/invocations/{id}/events": {**lookup, "get": _about_events()},
            "/invocations/{id}/cancel": {**lookup, "post": _about_cancel()},
        },
        "components": components,
    }
    if engine.security_schemes:
        components["securitySchemes"] = dict(engine.security_schemes)
        found["security"] = [{name: []} for name in engine.security_schemes]
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
    answer = _answer("The agent; a page to talk to it.", json=service, html=_TEXT)
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
        {"200": _answer("Text format 0.0.4.", text=_TEXT), **_problems(401, 403)},
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
            "200": _answer(_FULL_STREAM, *_OF_INVOCATION, sse=_TEXT),
            **_problems(400, 401, 403, 404, 410, 503),
        },
        parameters=[
            _parameter("Last-Event-ID", "header", number, "Go on after this event."),
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
    results, chunks = [], []
    for handler in handlers:
        streams, item = item_of_stream(handler.output_type)
        streams = streams or handler.is_stream is True
        hint = item if streams else handler.output_type
        schema = schemas.of(hint, inbound=False) if hint is not None else {}
        chunks.append(schema)
        # All chunks of a stream: one text, or a list of them.
        whole: Schema = {"type": "array", "items": schema}
        text = schema == _TEXT
        results.append((_TEXT if text else whole) if streams else schema)
    schemas.definitions["Chunk"] = _any_of(chunks)
    result: Schema = {"properties": {"result": _any_of(results)}}
    envelope = {"allOf": [_ref("schemas", "Envelope"), result]}
    failed = _ref("schemas", "Envelope")
    problem = _ref("schemas", "Problem")
    streams_too = (
        f"{_FULL_STREAM} Unless `Accept` names `{_SSE}`: bare `data:` lines of chunks."
    )
    responses = {
        "200": _answer(
            f"An envelope with the result; or a stream. {streams_too}",
            *_OF_INVOCATION,
            json=envelope,
            sse=_TEXT,
        ),
        "202": _answer(
            "Accepted, as `Prefer: respond-async` asks.",
            *_OF_INVOCATION,
            "Location",
            names.RETRY_AFTER,
            json=_ref("schemas", "Record"),
        ),
        **_problems(400, 401, 403, 404, 409, 413, 415),
        "499": _answer("It was cancelled.", *_OF_INVOCATION, json=failed),
        "500": _answer(
            "The agent failed, or the server.",
            *_OF_INVOCATION,
            json=failed,
            problem=problem,
        ),
        "503": _answer(
            "There is no place, or the agent is being stopped.",
            names.RETRY_AFTER,
            json=failed,
            problem=problem,
        ),
        "504": _answer("It passed its deadline.", *_OF_INVOCATION, json=failed),
    }
    parameters = [
        _parameter(name, "header", schema, text)
        for name, schema, text in _REQUEST_HEADERS
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
        responses,
        **more,
        parameters=parameters,
        requestBody={"required": True, "content": takes},
    )


def _input(handler: Handler, schemas: Schemas) -> Schema:
    """Return the schema of what a handler takes."""
    hint = handler.input_type or handler.input_hint
    schema = {} if hint is None else schemas.of(hint, inbound=True)
    said = "$ref" in schema or schema.get("additionalProperties", True) is not True
    # Whatever else is sent becomes an object, and so a handler may say nothing of it.
    return schema if said else _ANY_BUT_NULL


def _any_of(schemas: Iterable[Schema]) -> Schema:
    found: list[Schema] = []
    for schema in schemas:
        if schema not in found:
            found.append(schema)
    if len(found) == 1:
        return found[0]
    return {} if not found or {} in found else {"anyOf": found}
