"""What an agent's whole answers mean: a ping's, an invocation's. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ppio_agent.exceptions import ServiceUnavailableError, WireError
from ppio_agent.transport import Headers, Response
from ppio_agent.wire import headers as h
from ppio_agent.wire.json import Json, decode_json
from ppio_agent.wire.model import structure
from ppio_agent.wire.models import InvocationResponse, PingResponse, PingStatus
from ppio_agent.wire.sse import CONTENT_TYPE

if TYPE_CHECKING:
    from .stream import Run

__all__ = ["is_event_stream", "make_response", "read_ping", "read_value"]


def is_event_stream(headers: Headers) -> bool:
    """Whether an answer with these headers is an event stream."""
    return _media_type(headers) == CONTENT_TYPE


def read_value(response: Response) -> Json:
    """Return the value of an answer that is no stream; None for an empty one.

    Raises:
        ProtocolError: It calls itself JSON and is none.
    """
    if not response.body:
        return None
    kind = _media_type(response.headers)
    if kind == "application/json" or kind.endswith("+json"):
        return response.json()
    return response.body.decode("utf-8", "replace")


def make_response(
    envelope: Mapping[str, Json],
    run: Run,
    headers: Headers,
    chunks: tuple[Json, ...] | None = None,
) -> InvocationResponse:
    """Return the response that an envelope stands for.

    Args:
        envelope: As the agent sent it, or made of what it sent.
        run: What is known of the run.
        headers: Of the answer.
        chunks: The pieces it came in, if it did.
    """
    members = dict(envelope)
    metadata = members.pop("metadata", None)
    notes: Mapping[str, Json] = metadata if isinstance(metadata, dict) else {}
    duration = members.pop("duration", None)
    error = members.pop("error", None)
    return InvocationResponse(
        result=members.pop("result", None),
        status=members.pop("status", "success"),
        duration=duration if isinstance(duration, (int, float)) else None,
        metadata=notes,
        error=error if isinstance(error, str) else None,
        request_id=run.request_id,
        invocation_id=run.invocation_id or notes.get("invocation_id"),
        session_id=run.session_id,
        sandbox_id=run.sandbox_id,
        replayed=headers.get(h.IDEMPOTENCY_REPLAYED) == "true",
        chunks=chunks,
        extra=members,
    )


def read_ping(response: Response) -> PingResponse:
    """Return what a ping's answer says.

    Raises:
        ServiceUnavailableError: It refuses, without a ping's body.
    """
    try:
        return structure(PingResponse, decode_json(response.body))
    except WireError:
        if response.status == 503:
            raise ServiceUnavailableError(
                "the agent cannot be reached at the moment",
                request_id=response.request_id,
            ) from None
        # An agent of the field may say it in words of its own; that it answers is
        # what counts.
        return PingResponse(status=PingStatus.HEALTHY)


def _media_type(headers: Headers) -> str:
    return (headers.get("content-type") or "").partition(";")[0].strip().lower()
