"""Which requests get into a mailbox, and which turns are begun at all. Pure."""

from __future__ import annotations

from ppio_agent.wire.actors import RequestStatus

from .records import Acceptance, Cancellation, Limits, RequestRecord

__all__ = ["admit", "code_of", "end_unbegun"]


def admit(
    waiting: int, running: int, pending: int, limits: Limits
) -> tuple[Acceptance, int]:
    """Decide about a new request.

    Args:
        waiting: How many of its actor wait, no turn of theirs having begun.
        running: 1 if a turn of its actor has begun, else 0.
        pending: How many wait or run for all actors.
        limits: What the actor takes.

    Returns:
        `NEW`, `BUSY`, `FULL` or `OVERLOADED`; and how many of those that wait, from the
        oldest on, are ended to make room: 0 unless it is `NEW`.

    Example:
        >>> admit(1, 1, 2, Limits(mailbox=2, drop_oldest=True))
        (<Acceptance.NEW: 'new'>, 1)
    """
    leave = 0
    if waiting or running:
        if limits.on_busy == "reject":
            return Acceptance.BUSY, 0
        if limits.on_busy in {"interrupt", "rollback"}:
            leave = waiting
        elif limits.drop_oldest and waiting and waiting + running >= limits.mailbox:
            leave = 1
    if waiting - leave + running >= limits.mailbox:
        return Acceptance.FULL, 0
    if pending - leave >= limits.pending:
        return Acceptance.OVERLOADED, 0
    return Acceptance.NEW, leave


def end_unbegun(
    record: RequestRecord, now: float, crash_attempts: int
) -> tuple[RequestStatus, str] | None:
    """Return how the oldest request ends without a turn; None if its turn begins.

    Args:
        record: The request, with `attempt` of the turns before and its `cancel`.
        now: The time.
        crash_attempts: After so many turns without an end it is not tried again.

    Returns:
        The status, and the code of the failure.
    """
    if record.deadline is not None and record.deadline <= now:
        return RequestStatus.EXPIRED, "invocation_timeout"
    if record.cancel is not None:
        return RequestStatus.CANCELLED, code_of(record.cancel)
    if record.attempt >= crash_attempts:
        return RequestStatus.FAILED, "crashed"
    return None


def code_of(how: Cancellation) -> str:
    """Return the code that a request has which ended CANCELLED for this."""
    return "cancelled" if how is Cancellation.CANCEL else "superseded"
