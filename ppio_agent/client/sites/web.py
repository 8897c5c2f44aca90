"""What a web site gets from its visitors and tells them. Pure.

Shared by `ppio_agent.client.django` and `ppio_agent.client.flask`. A visitor is not the
site's operator: of an error a visitor learns what to do and the ids under which the
operator finds it, not the words of the platform or of the agent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from attrs import frozen

from ppio_agent.client.events import decode_chunk
from ppio_agent.exceptions import (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    InternalServerError,
    NetworkError,
    PPIOAgentError,
    RateLimitError,
    SandboxLimitError,
    SerializationError,
    ServiceUnavailableError,
    ValidationError,
    WireError,
    by_code,
)
from ppio_agent.wire.headers import RETRY_AFTER
from ppio_agent.wire.json import Json, decode_json
from ppio_agent.wire.problem import PROBLEM_CONTENT_TYPE, problem_body
from ppio_agent.wire.sse import CONTENT_TYPE, SSEEvent, format_comment, format_event

__all__ = [
    "Form",
    "StreamFormat",
    "check_method",
    "error_event",
    "problem",
    "read_request",
    "stream_format",
    "stream_headers",
    "visitor_error",
]

Form = tuple[Mapping[str, Sequence[str]], Collection[str]]
"""The fields of a form with all their values, and the names of its files."""

_FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})
# What sites put into their forms for themselves.
_CSRF_FIELDS = frozenset({"csrfmiddlewaretoken", "csrf_token"})


def check_method(method: str | None) -> None:
    """Refuse everything but POST.

    Raises:
        ValidationError: With status 405.
    """
    if method != "POST":
        raise ValidationError(
            "the agent is asked with POST", code="method_not_allowed", http_status=405
        )


def read_request(
    content_type: str, *, body: Callable[[], bytes], form: Callable[[], Form]
) -> Json:
    """Return what a visitor asks the agent: the JSON of a body, or a form's fields.

    A field that occurs once is a text, others are lists of texts; what a site put
    into the form against forgery is left out.

    Args:
        content_type: Of the body.
        body: Gives the body; only called if it is JSON.
        form: Gives the fields; only called if it is a form.

    Raises:
        ValidationError: It is neither, is malformed, or has files in it.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/json":
        try:
            return decode_json(body())
        except WireError as error:
            raise ValidationError(f"the body is no JSON: {error}") from error
    if media not in _FORMS:
        raise ValidationError(
            "send application/json or a form",
            code="unsupported_media_type",
            http_status=415,
        )
    fields, files = form()
    if files:
        raise ValidationError("files cannot be sent to the agent")
    return {
        name: values[0] if len(values) == 1 else list(values)
        for name, values in fields.items()
        if name not in _CSRF_FIELDS
    }


_TEXTS = {
    409: "the conversation is in a state that does not allow this; try again",
    500: "internal error",
    502: "the agent could not answer",
    503: "the agent is not available at the moment; try again later",
    504: "the agent did not answer in time",
}


def visitor_error(error: BaseException) -> PPIOAgentError:
    """Return what a visitor is told of an error.

    Only of a request that was refused before it was sent a visitor reads why. For all
    else the code, the request id and the status say enough; what the platform or the
    agent said stays with the site.
    """
    # The transport names the URL in every error of what it was given to send.
    if isinstance(error, ValidationError) and error.url is None:
        return error
    if not isinstance(error, PPIOAgentError):
        return InternalServerError(_TEXTS[500])
    status = _status(error)
    told = PPIOAgentError(
        _TEXTS[status],
        # A peer may have said any word; those of the classes are no news.
        code=error.code if by_code(error.code) else type(error).code,
        http_status=status,
        retryable=status in {409, 503},
        request_id=error.request_id,
    )
    told.retry_after = error.retry_after
    return told


def _status(error: PPIOAgentError) -> int:
    if isinstance(error, TimeoutError):
        return 504
    for classes, status in (
        # The key is the site's, not the visitor's.
        (AuthenticationError, 502),
        ((RateLimitError, SandboxLimitError), 503),
        ((ServiceUnavailableError, NetworkError, ClientClosedError), 503),
        (ConflictError, 409),
        ((ConfigurationError, SerializationError), 500),
    ):
        if isinstance(error, classes):
            return status
    return 502


def problem(error: BaseException) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer that an error is to a visitor."""
    told = visitor_error(error)
    headers = {"Content-Type": PROBLEM_CONTENT_TYPE}
    if told.http_status == 503:
        headers[RETRY_AFTER] = str(max(1, math.ceil(told.retry_after or 1)))
    if told.http_status == 405:
        headers["Allow"] = "POST"
    return told.http_status, headers, _problem_body(told)


def _problem_body(told: PPIOAgentError) -> bytes:
    return problem_body(told, request_id=told.request_id)


def error_event(error: BaseException) -> bytes:
    """Return the event that ends a visitor's stream with an error."""
    return format_event(_problem_body(visitor_error(error)), event="error")


@frozen(kw_only=True)
class StreamFormat:
    """How a stream is written for a visitor.

    Attributes:
        content_type: Of the answer.
        opening: Sent before anything is waited for, and the head with it; empty where a
            format has no room for it, so that the head goes with the first chunk.
        heartbeat: Sent in silence; None where a format has no room for it.
        chunk: Writes a chunk.
        error: Writes the error that ends the stream; None where only cutting the
            answer off tells an error from the end.
        end: Sent after the last chunk.
    """

    content_type: str
    opening: bytes
    heartbeat: bytes | None
    chunk: Callable[[SSEEvent], bytes]
    error: Callable[[BaseException], bytes] | None
    end: bytes


def stream_format(name: Literal["sse", "ndjson", "text"]) -> StreamFormat:
    """Return the format of this name.

    Raises:
        ConfigurationError: There is none.
    """
    found = _STREAM_FORMATS.get(name)
    if found is None:
        raise ConfigurationError(
            f"there is no format {name!r} of streams; take 'sse', 'ndjson' or 'text'"
        )
    return found


def stream_headers(form: StreamFormat) -> dict[str, str]:
    """Return the headers under which nothing on the way holds a chunk back.

    With `Content-Encoding` a site's compression passes it by, and a browser that does
    not have to guess the type begins to read at once.
    """
    return {
        "Content-Type": form.content_type,
        "Cache-Control": "no-cache, no-transform",
        "X-Accel-Buffering": "no",
        "Content-Encoding": "identity",
        "X-Content-Type-Options": "nosniff",
    }


def _event(event: SSEEvent) -> bytes:
    # The other names are the stream's own.
    name = None if event.event in {"message", "error", "end"} else event.event
    return format_event(_encoded(decode_chunk(event.data)), event=name)


def _line(event: SSEEvent) -> bytes:
    return _encoded(decode_chunk(event.data)) + b"\n"


def _encoded(chunk: Json) -> bytes:
    """Return JSON for what was JSON, with `?` for each lone surrogate in it."""
    text = json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _error_line(error: BaseException) -> bytes:
    return b'{"error":%b}\n' % _problem_body(visitor_error(error))


def _text(event: SSEEvent) -> bytes:
    chunk = decode_chunk(event.data)
    piece = chunk.get("chunk") if isinstance(chunk, dict) else chunk
    if isinstance(piece, str):
        return piece.encode("utf-8", "replace")
    return _encoded(chunk)


_STREAM_FORMATS: Mapping[str, StreamFormat] = {
    "sse": StreamFormat(
        content_type=f"{CONTENT_TYPE}; charset=utf-8",
        opening=format_comment("open"),
        heartbeat=format_comment("hb"),
        chunk=_event,
        error=error_event,
        end=format_event(b"{}", event="end"),
    ),
    "ndjson": StreamFormat(
        content_type="application/x-ndjson",
        opening=b"\n",
        heartbeat=b"\n",
        chunk=_line,
        error=_error_line,
        end=b"",
    ),
    "text": StreamFormat(
        content_type="text/plain; charset=utf-8",
        opening=b"",
        heartbeat=None,
        chunk=_text,
        error=None,
        end=b"",
    ),
}
