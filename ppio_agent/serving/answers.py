"""The answers of an invocation: envelope, record, stream head. Pure, but for its facts."""

from __future__ import annotations

import math
import traceback
from typing import Any

from ppio_agent.agent import Invocation, InvocationState
from ppio_agent.agent.failure import Failure
from ppio_agent.web import JSON_TYPE, SSE_HEADERS, Reply, json_reply
from ppio_agent.wire.headers import (
    IDEMPOTENCY_REPLAYED,
    INVOCATION_ID,
    RETRY_AFTER,
    SESSION_ID,
)
from ppio_agent.wire.json import well_formed

from .passthrough import http_error, is_response

__all__ = ["answer", "describe", "id_headers", "stream_head"]

Headers = list[tuple[str, str]]

# Of a cancelled or timed out run its caller wants to know whether it still works.
_IMPOSED = (InvocationState.CANCELLED, InvocationState.TIMED_OUT)


def describe(error: BaseException, *, expose: bool) -> Failure:
    """Return how an exception of user code is told to callers.

    Args:
        error: The exception.
        expose: Whether the text of one outside our tree is told.
    """
    http = http_error(error)
    if http is not None:
        status, text = http
        return Failure(
            error=text,
            error_type=type(error).__name__,
            code="http_error",
            retryable=False,
            http_status=status,
        )
    return Failure.of(error, expose=expose)


def id_headers(invocation: Invocation, *, replayed: bool = False) -> Headers:
    """Return the headers by which a caller knows the invocation."""
    context = invocation.context
    headers = [(INVOCATION_ID, context.invocation_id)]
    if context.session_id is not None:
        headers.append((SESSION_ID, context.session_id))
    if replayed:
        headers.append((IDEMPOTENCY_REPLAYED, "true"))
    return headers


def stream_head(invocation: Invocation, *, replayed: bool, extra: Headers) -> Headers:
    """Return the headers of an answer that streams."""
    return [*SSE_HEADERS, *id_headers(invocation, replayed=replayed), *extra]


def answer(
    invocation: Invocation,
    *,
    request_id: str,
    status: int = 200,
    extra: Headers,
    replayed: bool,
    debug: bool,
) -> Reply:
    """Return the answer of an invocation that has ended and does not stream.

    Args:
        invocation: It is terminal.
        request_id: Id of the request that is answered, perhaps not the first one.
        status: Status of a success, as middleware set it.
        extra: Further headers.
        replayed: Whether the request got an invocation of an earlier one.
        debug: Whether a failure shows its traceback.
    """
    headers = [*id_headers(invocation, replayed=replayed), *extra]
    failure = invocation.failure
    if failure is not None:
        return _failed(invocation, failure, request_id, headers, debug=debug)
    value = invocation.value
    if is_response(value):
        own = [pair for pair in value.headers.items() if pair[0] != "Content-Length"]
        return Reply(value.status_code, own + headers, value.get_data())
    word, error = b"success", b"null"
    if status >= 400:
        word, error = b"error", b'"refused by middleware"'
    session_id = invocation.context.session_id
    # Put together by hand, since the result is JSON already; ids need no escaping.
    body = (
        b'{"result":%b,"status":"%b","duration":%.6f,"metadata":{"request_id":"%b",'
        b'"invocation_id":"%b","session_id":%b},"error":%b}'
    ) % (
        invocation.result_json,
        word,
        invocation.duration,
        request_id.encode(),
        invocation.id.encode(),
        b"null" if session_id is None else b'"%b"' % session_id.encode(),
        error,
    )
    return Reply(status, [JSON_TYPE, *headers], body)


def _failed(
    invocation: Invocation,
    failure: Failure,
    request_id: str,
    headers: Headers,
    *,
    debug: bool,
) -> Reply:
    metadata: dict[str, Any] = {
        "request_id": request_id,
        "invocation_id": invocation.id,
        "session_id": invocation.context.session_id,
        "error_type": failure.error_type,
        "code": failure.code,
        "retryable": failure.retryable,
    }
    if invocation.state in _IMPOSED:
        metadata["confirmed"] = invocation.confirmed
    if debug and invocation.error is not None:
        lines = traceback.format_exception(invocation.error)
        metadata["traceback"] = well_formed("".join(lines))
    if failure.http_status in {429, 503}:
        seconds = getattr(invocation.error, "retry_after", None) or 1
        headers = [*headers, (RETRY_AFTER, str(max(1, math.ceil(seconds))))]
    envelope = {
        "result": None,
        "status": "error",
        "duration": round(invocation.duration, 6),
        "metadata": metadata,
        "error": failure.error,
    }
    return json_reply(failure.http_status, envelope, headers)
