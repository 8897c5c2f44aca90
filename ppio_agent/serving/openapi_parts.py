"""The parts of an API's description that are the same for every app."""

from __future__ import annotations

from collections.abc import Mapping

from ppio_agent.agent import InvocationState
from ppio_agent.agent.schema import Schema
from ppio_agent.web.openapi import ID, TEXT, nullable, object_of
from ppio_agent.wire import headers as names
from ppio_agent.wire.models import PingStatus

__all__ = [
    "ANSWER_HEADERS",
    "ANY_BUT_NULL",
    "PROBLEMS",
    "REQUEST_HEADERS",
    "SCHEMAS",
]

ANY_BUT_NULL: Schema = {
    "type": ["object", "array", "string", "number", "boolean"],
    "description": 'A text s becomes `{"prompt": s}`, any other value that is no object'
    ' `{"input": …}`.',
}
_STATES = [state.value for state in InvocationState]


_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
SCHEMAS: Mapping[str, Schema] = {
    "Envelope": object_of(
        {
            "result": {},
            "status": {"enum": ["success", "error"]},
            "duration": {"type": "number", "description": "Seconds."},
            "metadata": {
                "type": "object",
                "properties": {
                    "request_id": TEXT,
                    "invocation_id": TEXT,
                    "session_id": nullable("string"),
                    "error_type": TEXT,
                    "code": TEXT,
                    "retryable": {"type": "boolean"},
                    "confirmed": {"type": "boolean"},
                    "traceback": TEXT,
                },
                "required": ["request_id", "invocation_id", "session_id"],
            },
            "error": nullable("string"),
        },
        description="The outcome of an invocation.",
    ),
    "Record": object_of(
        {
            "id": TEXT,
            "state": {"enum": _STATES},
            "confirmed": {"type": "boolean"},
            "handler_running": {"type": "boolean"},
            "attempt": {"type": "integer", "minimum": 1},
            "entrypoint": TEXT,
            "session_id": nullable("string"),
            "created_at": {"type": "string", "format": "date-time"},
            "started_at": _TIME,
            "finished_at": _TIME,
            "duration": {"type": "number"},
            "stream": {"type": "boolean"},
            "events": object_of(
                {"first": {"type": "integer"}, "last": {"type": "integer"}}
            ),
            "cancel": {
                "anyOf": [
                    object_of({"reason": TEXT, "requested_at": _TIME}),
                    {"type": "null"},
                ]
            },
            "result": {},
            "result_truncated": {"type": "boolean"},
            "late": {"type": "boolean"},
            "error": {
                "anyOf": [
                    object_of(
                        {
                            "error": TEXT,
                            "error_type": TEXT,
                            "code": TEXT,
                            "retryable": {"type": "boolean"},
                        }
                    ),
                    {"type": "null"},
                ]
            },
        },
        description="What is known of an invocation.",
    ),
    "Cancel": object_of(
        {"id": TEXT, "state": {"enum": _STATES}, "confirmed": {"type": "boolean"}}
    ),
    "Ping": object_of(
        {
            "status": {"enum": [status.value for status in PingStatus]},
            "message": nullable("string"),
            "timestamp": {"type": "string", "format": "date-time"},
            "time_of_last_update": {"type": "integer", "description": "Unix seconds."},
        }
    ),
    "Service": object_of(
        {
            "service": TEXT,
            "name": TEXT,
            "version": TEXT,
            "status": {"const": "running"},
            "timestamp": {"type": "string", "format": "date-time"},
            "entrypoints": {"type": "array", "items": TEXT},
            "endpoints": {"type": "object", "additionalProperties": TEXT},
        }
    ),
}

REQUEST_HEADERS: tuple[tuple[str, Schema, str], ...] = (
    (names.REQUEST_ID, ID, "Id of this request; the answer has it again."),
    (names.INVOCATION_ID, ID, "Id for the invocation, which is run once for it."),
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
    ("Prefer", TEXT, "`respond-async`: 202 at once, the outcome is looked up later."),
)
ANSWER_HEADERS = {
    names.INVOCATION_ID: ("Id of the invocation.", TEXT),
    names.SESSION_ID: ("The conversation, if there is one.", TEXT),
    names.IDEMPOTENCY_REPLAYED: (
        "The outcome is that of an earlier request.",
        {"const": "true"},
    ),
    "Location": ("Where the invocation is looked up.", TEXT),
}
PROBLEMS = {
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
