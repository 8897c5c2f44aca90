"""When a reminder comes, and when an outgoing request is tried again. Pure.

Instants and times are seconds.
"""

from __future__ import annotations

import math
from hashlib import sha256

from attrs import frozen

from ppio_agent.wire.actors import ActorId
from ppio_agent.wire.json import encode_json

from .records import RequestRecord, SetReminder

__all__ = [
    "GIVE_UP_AFTER",
    "Tick",
    "retry_delay",
    "tick_id",
    "tick_of",
    "tick_request",
]

GIVE_UP_AFTER = 86_400.0
_FIRST_DELAY, _LONGEST_DELAY = 0.1, 30.0


@frozen
class Tick:
    """One firing of a reminder.

    Attributes:
        due: When the latest of those that come now was due.
        missed: How many earlier ones come with it as one.
        next_due: When the next is due, in the phase of the first; None: it was the
            last.
        left: How many may still come; None: no limit.
    """

    due: float
    missed: int
    next_due: float | None
    left: int | None


def tick_of(due: float, period: float | None, count: int | None, now: float) -> Tick:
    """Return the firing of a reminder that is due.

    Those missed while nobody looked come as one; each counts against `count`.

    Args:
        due: When it was due first, or next; not after `now`.
        period: Seconds between two; None: it comes once.
        count: How many may come, from 1; None: no limit.
        now: The time.

    Example:
        >>> tick_of(10.0, 1.0, None, 13.5)
        Tick(due=13.0, missed=3, next_due=14.0, left=None)
    """
    if period is None:
        return Tick(due, 0, None, None)
    missed = max(0, math.floor((now - due) / period))
    if count is not None:
        missed = min(missed, count - 1)
    left = None if count is None else count - missed - 1
    next_due = None if left == 0 else due + (missed + 1) * period
    return Tick(due + missed * period, missed, next_due, left)


def tick_id(name: str, due: float) -> str:
    """Return the id of the request that a firing is, so that it comes once."""
    return f"r-{sha256(f'{due!r} {name}'.encode()).hexdigest()[:32]}"


def tick_request(
    actor_id: ActorId, reminder: SetReminder, tick: Tick, now: float
) -> RequestRecord:
    """Return the request that a firing is; its `due` is in seconds since 1970."""
    told = {"name": reminder.name, "due": tick.due, "missed": tick.missed}
    return RequestRecord(
        actor_id,
        tick_id(reminder.name, tick.due),
        method=reminder.method,
        # The parameters are JSON already: they become the last member as they are.
        params=b'%b,"params":%b}' % (encode_json(told)[:-1], reminder.params),
        created_at=now,
    )


def retry_delay(attempt: int) -> float:
    """Return how long to wait after the `attempt`-th refusal of a full mailbox."""
    return min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(attempt - 1, 20))
