"""How an invocation ended, and what is said of that. Pure."""

from __future__ import annotations

import sys
from typing import Any

from attrs import define

from ppio_agent.exceptions import InvocationCancelledError, InvocationTimeoutError
from ppio_agent.wire.json import encode_json

from .context import CancelReason
from .failure import Failure
from .states import Happening, InvocationState, Life

__all__ = ["Outcome", "imposed_error", "terminal_events"]


@define(eq=False, kw_only=True)
class Outcome:
    """What user code came to.

    Attributes:
        happening: How it ended, for the state machine.
        value: What it returned, if it is no stream.
        json: The same as JSON.
        error: What it raised.
    """

    happening: Happening
    value: Any = None
    json: bytes = b"null"
    error: BaseException | None = None

    @classmethod
    def of_error(cls, error: BaseException) -> Outcome:
        """Return the outcome of user code that raised."""
        happening = Happening.STOPPED if _is_stop(error) else Happening.FAILED
        return cls(happening=happening, error=error)


def _is_stop(error: BaseException) -> bool:
    """Whether it is what a cancel raises in user code."""
    if isinstance(error, (InvocationCancelledError, GeneratorExit)):
        return True
    # Imported by async agents only: the others start 20 ms earlier without it.
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def imposed_error(
    state: InvocationState, invocation_id: str, reason: CancelReason | None
) -> BaseException | None:
    """Return the error of an end that user code did not choose; None if it did."""
    if state is InvocationState.TIMED_OUT:
        return InvocationTimeoutError(
            f"invocation {invocation_id} passed its deadline",
            invocation_id=invocation_id,
        )
    if state is not InvocationState.CANCELLED or reason is None:
        return None
    if reason == "shutdown":
        return InvocationCancelledError(
            f"invocation {invocation_id} was cancelled: the server is shutting down",
            invocation_id=invocation_id,
            code="server_draining",
            http_status=503,
            retryable=True,
        )
    return InvocationCancelledError(
        f"invocation {invocation_id} was cancelled ({reason})",
        invocation_id=invocation_id,
    )


def terminal_events(
    life: Life,
    failure: Failure | None,
    *,
    invocation_id: str,
    request_id: str,
    duration: float,
    chunks: int,
) -> tuple[bytes, bytes | None]:
    """Return the data of a stream's `end` event, and of the `error` before it, if any."""
    end = encode_json(
        {
            "status": life.state.value,
            "invocation_id": invocation_id,
            "duration": round(duration, 6),
            "events": chunks,
            "confirmed": life.confirmed,
        }
    )
    if failure is None:
        return end, None
    error = encode_json(
        {
            "error": failure.error,
            "error_type": failure.error_type,
            "message": failure.error,
            "code": failure.code,
            "retryable": failure.retryable,
            "request_id": request_id,
            "invocation_id": invocation_id,
        }
    )
    return end, error
