"""How what became of a request is told: as a message, or as an error. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppio_agent.exceptions import (
    ActorFailedError,
    InvocationCancelledError,
    InvocationTimeoutError,
    NotFoundError,
    PPIOAgentError,
    RequestRejectedError,
)
from ppio_agent.wire.actors import ActorResponseMessage, RequestStatus

__all__ = ["EVICTED", "error_of", "result_of"]

EVICTED = b'{"error":"the result is no longer kept","code":"result_evicted","retryable":false}'
"""Data of a request whose result was dropped to save space."""


def result_of(response: ActorResponseMessage) -> Any:
    """Return the result of a completed request.

    Raises:
        PPIOAgentError: It has none; see `ActorResponseHandle.result`.
    """
    data = response.data
    evicted = type(data) is dict and data.get("code") == "result_evicted"
    if response.status is RequestStatus.COMPLETED and not evicted:
        return data
    raise error_of(response)


def error_of(response: ActorResponseMessage) -> PPIOAgentError:
    """Return the error as which a request without a result is told."""
    message_id = response.message_id
    known = isinstance(response.data, Mapping)
    data: Mapping[str, Any] = response.data if known else {}
    code, retryable = data.get("code"), data.get("retryable")
    why = data.get("error") or response.status.value
    text = f"request {message_id} to {response.sender_id}: {why}"
    overrides: dict[str, Any] = {"code": code, "retryable": retryable}
    if response.status is RequestStatus.NOT_FOUND or code == "result_evicted":
        return NotFoundError(text, code=code or "request_not_found")
    if response.status is RequestStatus.CANCELLED:
        return InvocationCancelledError(text, invocation_id=message_id, **overrides)
    if response.status is RequestStatus.EXPIRED:
        return InvocationTimeoutError(text, invocation_id=message_id, **overrides)
    overrides |= {"actor_id": str(response.sender_id), "message_id": message_id}
    if response.status is RequestStatus.REJECTED:
        return RequestRejectedError(text, **overrides)
    return ActorFailedError(text, data=response.data, **overrides)
