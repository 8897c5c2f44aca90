"""What is told about an invocation, now and after its end."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from attrs import frozen

from ppio_agent.wire.times import format_time

from .context import CancelReason
from .failure import Failure
from .states import InvocationState

__all__ = ["InvocationRecord"]


@frozen(kw_only=True)
class InvocationRecord:
    """A snapshot of one invocation.

    Attributes:
        id: The invocation.
        state: Where it stood.
        confirmed: Whether its user code has ended.
        attempt: 1, or more if its idempotency key was used again.
        entrypoint: Name of the handler.
        session_id: The conversation, or None.
        created_at: When it was admitted, aware UTC.
        started_at: When its thread began, or None.
        finished_at: When it became terminal, or None.
        duration: Seconds from its admission to its end, or till now.
        stream: Whether it gives chunks.
        first_event: Number of the oldest entry that can still be replayed.
        last_event: Number of the newest.
        cancel_reason: Why its end was asked for, or None.
        cancel_requested_at: When.
        result: What it returned; of a stream all of it.
        result_truncated: Whether that was too much to be kept.
        late: Whether user code ended with an outcome nobody waited for any more.
        error: How it failed, or None.

    Thread safety: immutable.
    """

    id: str
    state: InvocationState
    confirmed: bool
    attempt: int
    entrypoint: str
    session_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    duration: float
    stream: bool
    first_event: int
    last_event: int
    cancel_reason: CancelReason | None
    cancel_requested_at: datetime | None
    result: Any
    result_truncated: bool
    late: bool
    error: Failure | None

    @property
    def handler_running(self) -> bool:
        """Whether user code may still run; the opposite of `confirmed`."""
        return not self.confirmed

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of ``GET /invocations/{id}``."""
        cancel = None
        if self.cancel_reason is not None:
            requested_at = _time(self.cancel_requested_at)
            cancel = {"reason": self.cancel_reason, "requested_at": requested_at}
        return {
            "id": self.id,
            "state": self.state.value,
            "confirmed": self.confirmed,
            "handler_running": self.handler_running,
            "attempt": self.attempt,
            "entrypoint": self.entrypoint,
            "session_id": self.session_id,
            "created_at": _time(self.created_at),
            "started_at": _time(self.started_at),
            "finished_at": _time(self.finished_at),
            "duration": self.duration,
            "stream": self.stream,
            "events": {"first": self.first_event, "last": self.last_event},
            "cancel": cancel,
            "result": self.result,
            "result_truncated": self.result_truncated,
            "late": self.late,
            "error": None if self.error is None else self.error.to_dict(),
        }


def _time(instant: datetime | None) -> str | None:
    return None if instant is None else format_time(instant)
