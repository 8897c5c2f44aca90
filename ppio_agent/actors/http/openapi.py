"""The description of the HTTP API of actors, made of its wire types and the registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ppio_agent._version import __version__
from ppio_agent.actors._types import ActorType
from ppio_agent.agent.schema import Schema, Schemas
from ppio_agent.web.openapi import (
    ID,
    TEXT,
    Description,
    answer,
    operation,
    parameter,
    problems,
)
from ppio_agent.wire import actor_bodies as bodies
from ppio_agent.wire import headers as names

from .routes import ROUTES

__all__ = ["document"]

_INSTANCE_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._~-]{1,200}$"}
_MESSAGE_ID: Schema = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}
_TRUE: Schema = {"enum": ["true"]}
_PROBLEMS = {
    400: "The body is no JSON, or a header cannot be used.",
    401: "Who sent the request is not known.",
    403: "The request is not allowed.",
    404: "There is no such agent, conversation or request, or not for this caller.",
    409: "The id was used with another body, the actor is busy, or it has ended.",
    413: "The body is too large.",
    422: "Something in the request is wrong; `errors` says what and where.",
    429: "As many requests wait for the actor as may.",
    499: "It was cancelled.",
    500: "The agent failed, or the server.",
    503: "There is no place; the server, the runtime or the actor is stopped; or the"
    " agent says that it may be tried again.",
    504: "It passed its deadline.",
}
_ANSWER_HEADERS = {
    names.INVOCATION_ID: ("Id of the request.", TEXT),
    names.IDEMPOTENCY_REPLAYED: ("`true`: it was sent before.", TEXT),
    "Location": ("Where the request is looked up.", TEXT),
}
_PREFER = parameter(
    "Prefer",
    "header",
    TEXT,
    "`respond-async`: 202 at once; `wait=10`: 202 unless it has ended within 10 s.",
)
_STREAM = parameter("stream", "query", _TRUE, "Answer bare `data:` events.")
_TIMEOUT = parameter(
    names.TIMEOUT,
    "header",
    {"type": "number", "exclusiveMinimum": 0},
    "Seconds within which the request has to end; else it is 504, for everybody.",
)
_LAST_EVENT = parameter(
    names.LAST_EVENT_ID,
    "header",
    {"type": "integer", "minimum": 0},
    "Go on with a stream after this event.",
)
_SSE_TEXT = (
    "Events are steps, `id` their number; the last two are the outcome (`event: error`"
    " if it failed) and `event: end`."
)
_RUN_EXAMPLE = {
    "conversation_id": "test-conversation",
    "messages": [{"role": "user", "content": "Hello! How are you?"}],
}


def document(
    agents: Iterable[ActorType], security_schemes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the document, without `servers`, which depends on where it is read."""
    schemas = Schemas()
    listed = list(agents)
    name: Schema = {"type": "string"}
    if listed:
        name = {"type": "string", "enum": [one.name for one in listed]}
    operations = {
        **_service(schemas),
        **_runs(schemas, listed),
        **_requests(schemas),
        **_letters(schemas),
    }
    return Description(
        title="Agent Runtime API",
        version=__version__,
        schemas=schemas.definitions,
        headers=_ANSWER_HEADERS,
        problems=_PROBLEMS,
        places={
            "agent_name": (name, "Name of the agent."),
            "type": (name, "Type of the actor: the name of an agent."),
            "key": (_INSTANCE_ID, "Which actor: the id of a conversation."),
            "message_id": (_MESSAGE_ID, "Id of the request."),
            "id": (ID, "Id of the dead letter."),
        },
        security_schemes=security_schemes,
    ).document(ROUTES, operations)


def _out(schemas: Schemas, model: type) -> Schema:
    return schemas.of(model, inbound=False)


def _service(schemas: Schemas) -> dict[str, Schema]:
    health = _out(schemas, bodies.HealthBody)
    agents = {"type": "array", "items": _out(schemas, bodies.AgentEntry)}
    return {
        "root": operation(
            "root",
            "Say what this is",
            {"200": answer("It.", json=_out(schemas, bodies.ServiceBody))},
        ),
        "health": operation(
            "health",
            "Say how the runtime is",
            {
                "200": answer("`healthy` or `degraded`.", json=health),
                "503": answer("It does not run.", json=health),
            },
        ),
        "agents": operation(
            "agents",
            "List the agents",
            {"200": answer("By name.", json=agents), **problems(401, 403)},
        ),
        "openapi": operation(
            "openapi",
            "Give this document",
            {
                "200": answer("An OpenAPI 3.1 document.", json={"type": "object"}),
                **problems(401, 403),
            },
        ),
        "docs": operation(
            "docs",
            "Give a page that shows and calls this API",
            {"200": answer("The page.", html=TEXT), **problems(403)},
        ),
    }


def _runs(schemas: Schemas, agents: list[ActorType]) -> dict[str, Schema]:
    lines = [f"- `{one.name}` {one.description}".rstrip() for one in agents]
    more: Schema = {"description": "\n".join(lines)} if lines else {}
    key = parameter(
        names.IDEMPOTENCY_KEY,
        "header",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
        "The run is made once for this key; a repetition gets its outcome.",
    )
    takes = {
        "schema": schemas.of(bodies.RunRequest, inbound=True),
        "example": _RUN_EXAMPLE,
    }
    return {
        "run": operation(
            "run",
            "Say something to an agent",
            {
                "200": answer(
                    f"The answer; or a stream of it. {_SSE_TEXT}",
                    names.INVOCATION_ID,
                    names.IDEMPOTENCY_REPLAYED,
                    json=_out(schemas, bodies.RunAnswer),
                    sse=TEXT,
                ),
                "202": answer(
                    "Accepted; the outcome is looked up at `Location`.",
                    names.INVOCATION_ID,
                    names.IDEMPOTENCY_REPLAYED,
                    "Location",
                    names.RETRY_AFTER,
                    json=_out(schemas, bodies.PendingBody),
                ),
                **problems(400, 401, 403, 404, 409, 413, 422, 429, 499, 500, 503, 504),
            },
            **more,
            parameters=[key, _PREFER, _TIMEOUT, _STREAM],
            requestBody={"required": True, "content": {"application/json": takes}},
        )
    }


def _requests(schemas: Schemas) -> dict[str, Schema]:
    record = _out(schemas, bodies.RequestBody)
    takes = {
        "schema": schemas.of(bodies.ActorCall, inbound=True),
        "example": {"method": "run", "params": {"messages": _RUN_EXAMPLE["messages"]}},
    }
    blocking = parameter("blocking", "query", _TRUE, "Wait for the end.")
    timeout = parameter(
        "timeout",
        "query",
        {"type": "number", "minimum": 0, "maximum": 300},
        "For so many seconds at most.",
    )
    streaming = parameter("streaming", "query", _TRUE, "Answer full SSE.")
    return {
        "inspect": operation(
            "inspect",
            "Look at an actor",
            {
                "200": answer("It.", json=_out(schemas, bodies.ActorBody)),
                **problems(401, 403, 404, 422, 503),
            },
        ),
        "delete": operation(
            "delete",
            "Delete an actor with all it has",
            {"204": answer("It is gone."), **problems(401, 403, 404, 409, 422, 503)},
        ),
        "send": operation(
            "send",
            "Send a request to an actor",
            {
                "200": answer(
                    f"It has ended; or a stream. {_SSE_TEXT}",
                    names.INVOCATION_ID,
                    names.IDEMPOTENCY_REPLAYED,
                    json=record,
                    sse=TEXT,
                ),
                "202": answer(
                    "Accepted.",
                    names.INVOCATION_ID,
                    names.IDEMPOTENCY_REPLAYED,
                    "Location",
                    names.RETRY_AFTER,
                    json=record,
                ),
                **problems(400, 401, 403, 404, 409, 413, 422, 429, 499, 503),
            },
            parameters=[_PREFER, _TIMEOUT, _STREAM],
            requestBody={"required": True, "content": {"application/json": takes}},
        ),
        "status": operation(
            "status",
            "Look up a request, wait for it, or read its stream",
            {
                "200": answer(
                    f"The request; or a stream. {_SSE_TEXT}",
                    names.INVOCATION_ID,
                    json=record,
                    sse=TEXT,
                ),
                **problems(400, 401, 403, 404, 422, 499, 503),
            },
            parameters=[blocking, timeout, streaming, _LAST_EVENT],
        ),
        "cancel": operation(
            "cancel",
            "Ask for the end of a request",
            {
                "204": answer("It has ended, CANCELLED."),
                "202": answer(
                    "Its turn still runs.", json=_out(schemas, bodies.CancelBody)
                ),
                **problems(401, 403, 404, 409, 422, 503),
            },
        ),
    }


def _letters(schemas: Schemas) -> dict[str, Schema]:
    letters = {"type": "array", "items": _out(schemas, bodies.DeadLetterBody)}
    limit: Schema = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    return {
        "letters": operation(
            "letters",
            "List dead letters",
            {
                "200": answer("The oldest first.", json=letters),
                **problems(401, 403, 422, 503),
            },
            parameters=[
                parameter("limit", "query", limit, "So many at most."),
                parameter("after", "query", ID, "Go on after the one of this id."),
            ],
        ),
        "redrive": operation(
            "redrive",
            "Send the request of a dead letter again",
            {
                "202": answer(
                    "Accepted, under a new id.",
                    names.INVOCATION_ID,
                    "Location",
                    names.RETRY_AFTER,
                    json=_out(schemas, bodies.PendingBody),
                ),
                **problems(401, 403, 404, 409, 429, 503),
            },
        ),
        "discard": operation(
            "discard",
            "Remove a dead letter",
            {"204": answer("It is gone."), **problems(401, 403, 404, 503)},
        ),
    }
