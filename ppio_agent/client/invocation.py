"""What an agent is sent, and what its answers mean. Pure.

Agents of the field answer in more shapes than ours: an envelope, bare JSON, text, an
event stream of the full or the bare dialect. All of them end here as one response or
one `InvocationError`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from ppio_agent.exceptions import (
    InvocationError,
    SerializationError,
    StreamInterruptedError,
    ValidationError,
    WireError,
    by_code,
)
from ppio_agent.wire.json import Json, decode_json, encode_json
from ppio_agent.wire.models import InvocationRequest
from ppio_agent.wire.problem import Problem
from ppio_agent.wire.sse import Heartbeat, SSEEvent, SSEFramer

__all__ = [
    "AgentRequest",
    "EventReader",
    "decode_chunk",
    "encode_request",
    "envelope_error",
    "is_envelope",
    "join_chunks",
]

AgentRequest: TypeAlias = "str | Mapping[str, Json] | InvocationRequest"
"""What an agent may be asked: a prompt, an object, or the named members."""

_ERROR_KEYS = frozenset({"error", "error_type", "message"})


def encode_request(request: AgentRequest) -> bytes:
    """Return the body that carries `request`.

    Raises:
        ValidationError: It is of another type, or holds what has no JSON form; the
            message says where.
    """
    body: object
    if isinstance(request, str):
        body = {"prompt": request}
    elif isinstance(request, InvocationRequest):
        body = request.to_dict()
    elif isinstance(request, Mapping):
        body = request
    else:
        raise ValidationError(
            f"a request has to be a str, a mapping or an InvocationRequest, not"
            f" {type(request).__name__}"
        )
    try:
        return encode_json(body)
    except SerializationError as error:
        raise ValidationError(f"the request has no JSON form: {error}") from error


def is_envelope(value: Json) -> bool:
    """Tell whether a JSON value is the envelope of a run, not its bare result."""
    return (
        isinstance(value, dict)
        and "result" in value
        and value.get("status") in {"success", "error"}
    )


def envelope_error(
    envelope: Mapping[str, Json], *, status: int, request_id: str | None
) -> InvocationError:
    """Return the error that an envelope of a failed run tells of."""
    problem = Problem.read(encode_json(envelope))
    metadata = envelope.get("metadata")
    notes = metadata if isinstance(metadata, Mapping) else {}
    duration = envelope.get("duration")
    return _error_class(problem.code)(
        problem.message or "the agent failed without saying why",
        code=problem.code,
        retryable=problem.retryable,
        request_id=request_id,
        agent_error=problem.error_type,
        status=status,
        invocation_id=_text(notes.get("invocation_id")),
        duration=float(duration) if isinstance(duration, (int, float)) else None,
    )


def _error_class(code: str | None) -> type[InvocationError]:
    cls = by_code(code) if code else None
    if cls is not None and issubclass(cls, InvocationError):
        return cls
    return InvocationError


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def decode_chunk(data: str) -> Json:
    """Return the value of an event's data: JSON, or the text as it is."""
    try:
        return decode_json(data.encode())
    except WireError:
        return data


def join_chunks(chunks: Sequence[Json]) -> Json:
    """Return what a stream amounts to: one text if all its chunks are, else a list."""
    if chunks and all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    return list(chunks)


class EventReader:
    """Reads an agent's event stream: which events are content, and how it ended.

    In the full dialect a stream is whole only with its ``end`` event, and an ``error``
    event says what went wrong. In the bare one the end of the body is the end, and a
    last event that is nothing but an error message is the failure.

    Args:
        full: Whether the agent speaks the full dialect.
        max_event_bytes: Largest event.

    Attributes:
        final: The record of the ``end`` event, once it has come.
        failure: What an ``error`` event told, once it has come.
        done: Whether nothing of interest can follow.

    Thread safety: one thread at a time.
    """

    def __init__(self, *, full: bool, max_event_bytes: int) -> None:
        self._framer = SSEFramer(max_event_bytes)
        self._full = full
        self._held: SSEEvent | None = None
        self.failure: InvocationError | None = None
        self.final: Mapping[str, Json] | None = None
        self.done = False

    def feed(self, data: bytes) -> deque[SSEEvent]:
        """Take the next bytes; return the content events that they completed.

        Raises:
            EventTooLargeError: An event outgrew the limit.
        """
        found: deque[SSEEvent] = deque()
        take = self._take_full if self._full else self._take_bare
        for event in self._framer.feed(data):
            if not isinstance(event, Heartbeat) and not self.done:
                take(event, found)
        return found

    def _take_full(self, event: SSEEvent, found: deque[SSEEvent]) -> None:
        if event.event == "end":
            record = decode_chunk(event.data)
            self.final = record if isinstance(record, dict) else {}
            self.done = True
        elif event.event == "error":
            self.failure = _event_error(decode_chunk(event.data))
        else:
            found.append(event)

    def _take_bare(self, event: SSEEvent, found: deque[SSEEvent]) -> None:
        if self._held is not None:
            found.append(self._held)
            self._held = None
        if _looks_failed(event.data):
            self._held = event
        else:
            found.append(event)

    def finish(self) -> InvocationError | None:
        """Say that no more bytes come; return what is wrong with that, if anything."""
        if self.failure is not None:
            return self.failure
        if self._held is not None:
            return _event_error(decode_chunk(self._held.data))
        if self.done:
            return None
        lost = self._framer.finish()
        if lost is not None:
            return StreamInterruptedError(
                f"the stream ended inside an event, of which {lost.bytes_dropped}"
                " bytes had come"
            )
        if self._full:
            return StreamInterruptedError("the stream ended without its end event")
        return None


def _looks_failed(data: str) -> bool:
    if '"error"' not in data:
        return False
    value = decode_chunk(data)
    return (
        isinstance(value, dict)
        and isinstance(value.get("error"), str)
        and value.keys() <= _ERROR_KEYS
    )


def _event_error(record: Json) -> InvocationError:
    if not isinstance(record, dict):
        return InvocationError(str(record) or "the agent failed without saying why")
    problem = Problem.read(encode_json(record))
    message = _text(record.get("error")) or problem.message
    return _error_class(problem.code)(
        message or "the agent failed without saying why",
        code=problem.code,
        retryable=problem.retryable,
        request_id=problem.request_id,
        agent_error=problem.error_type,
        invocation_id=_text(record.get("invocation_id")),
    )
