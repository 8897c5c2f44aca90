"""Requests that an actor sends to itself later.

A *reminder* is the store's: it is set with the commit of a turn and outlasts the
process. A *timer* is this process's, and goes with the actor's activation. Both come as
the same request, `schedule.tick_request`, and as one where several were missed.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from attrs import evolve

from ppio_agent.exceptions import InvalidMessageError
from ppio_agent.storage.actors.records import Acceptance, CancelReminder, SetReminder
from ppio_agent.storage.actors.schedule import Tick, tick_of, tick_request
from ppio_agent.wire.actors import is_storable

from ._checks import check_count, check_seconds
from ._outage import OUTAGES

if TYPE_CHECKING:
    from ._cells import Activation, Cell
    from ._engine import Engine
    from ._turn import Turn

__all__ = [
    "ActorTimer",
    "cancel_reminder",
    "cancel_timer",
    "due_at",
    "end_timers",
    "set_reminder",
    "set_timer",
]

_MOST = 100  # of each kind, an actor
_MAX_NAME = 200
_LEAST_TIMER, _LEAST_REMINDER = 0.01, 1.0
_RETRY = 0.2  # seconds, for a timer that fires once, and whose actor takes nothing
_SENT = {Acceptance.NEW, Acceptance.DUPLICATE}


def set_reminder(engine: Engine, turn: Turn, wanted: SetReminder) -> None:
    """Set a reminder with the commit of a turn.

    Raises:
        InvalidMessageError: It cannot be set so, or the actor has too many.
    """
    _check(wanted, least=_LEAST_REMINDER)
    if wanted.count is not None:
        check_count("count", wanted.count, least=1)
    changes = [*(turn.reminders or ()), wanted]
    try:
        kept = engine.store.inspect(turn.cell.actor_id)
    except OUTAGES as error:
        turn.failed_by(error)
        raise
    names = set(kept.reminders if kept else ())
    for change in changes:
        (names.add if type(change) is SetReminder else names.discard)(change.name)
    if len(names) > _MOST:
        raise _too_many(turn, "reminders")
    turn.reminders = changes


def cancel_reminder(turn: Turn, name: str) -> None:
    """Forget a reminder with the commit of a turn."""
    turn.reminders = [*(turn.reminders or ()), CancelReminder(name)]


def due_at(now: float, due: float | datetime) -> float:
    """Return an instant, in seconds since 1970.

    Args:
        now: The time.
        due: Seconds from now, or an aware instant; one that has passed is now.

    Raises:
        InvalidMessageError: It is a naive datetime, no number of seconds from 0 on,
            or more than 10 years away.
    """
    if isinstance(due, datetime):
        if due.utcoffset() is None:
            raise InvalidMessageError(
                f"{due.isoformat()} is a naive datetime: give it a time zone"
            )
        due = max(0.0, due.timestamp() - now)
    return now + check_seconds("due", due)


def _check(wanted: SetReminder, *, least: float) -> None:
    name = wanted.name
    if not is_storable(name) or not 0 < len(name) <= _MAX_NAME:
        raise InvalidMessageError(
            f"the name {name!r:.250} is not a text of 1 to {_MAX_NAME} characters"
            " without NUL and lone surrogates"
        )
    if wanted.period is not None:
        check_seconds("period", wanted.period, least=least)


def _too_many(turn: Turn, what: str) -> InvalidMessageError:
    return InvalidMessageError(
        f"actor {turn.cell.actor_id} has {_MOST} {what}, as many as it may: cancel some",
        actor_id=str(turn.cell.actor_id),
    )


# Timers.


def set_timer(engine: Engine, turn: Turn, wanted: SetReminder) -> None:
    """Set a timer of the actor that a turn is of, at once.

    Raises:
        InvalidMessageError: It cannot be set so, or the actor has too many.
        RuntimeOverloadedError: The runtime has.
    """
    _check(wanted, least=_LEAST_TIMER)
    all_set = (turn.activation.timers or {}).items()
    timers = {name: timer for name, timer in all_set if not timer.ended}
    old = timers.get(wanted.name)
    if old is None and len(timers) >= _MOST:
        raise _too_many(turn, "timers")
    timers[wanted.name] = ActorTimer(engine, turn.cell, wanted)
    turn.activation.timers = timers
    if old is not None:
        old.cancel()


def cancel_timer(turn: Turn, name: str) -> bool:
    """Forget a timer; return whether there was one."""
    timer = (turn.activation.timers or {}).pop(name, None)
    return timer is not None and timer.cancel()


def end_timers(activation: Activation) -> None:
    """Forget all timers of an actor that lives no more."""
    timers, activation.timers = activation.timers, None
    for timer in (timers or {}).values():
        timer.cancel()


class ActorTimer:
    """One timer of an actor, from when it is made on.

    As long as the request that it made last is pending it makes none, so that it never
    fills a mailbox; what it missed comes with the next.

    Args:
        engine: The runtime.
        cell: The actor.
        wanted: When it fires, and what it sends.

    Raises:
        RuntimeOverloadedError: Too many instants are waited for.

    Thread safety: thread-safe.
    """

    __slots__ = ("_cell", "_engine", "_last", "_timer", "_wanted", "ended")

    def __init__(self, engine: Engine, cell: Cell, wanted: SetReminder) -> None:
        self._engine = engine
        self._cell = cell
        self._wanted = wanted
        self._last = ""  # id of the request that was made last
        self.ended = False
        self._arm(wanted.due)

    def _arm(self, instant: float) -> None:
        delay = max(0.0, instant - self._engine.store.now())
        self._timer = self._engine.later(delay, self._fire)
        if self.ended:  # meanwhile
            self._timer.cancel()

    def cancel(self) -> bool:
        """Fire no more; return whether it would have."""
        ended, self.ended = self.ended, True
        self._timer.cancel()
        return not ended

    def _fire(self) -> None:
        wanted, now = self._wanted, self._engine.store.now()
        if self.ended:
            return
        tick = tick_of(wanted.due, wanted.period, None, max(now, wanted.due))
        try:
            sent = self._send(tick, now)
        except OUTAGES:
            sent = False
        if sent and tick.next_due is None:
            self.ended = True
            return
        if sent and tick.next_due is not None:
            self._wanted = evolve(wanted, due=tick.next_due)
        self._arm(tick.next_due or now + _RETRY)

    def _send(self, tick: Tick, now: float) -> bool:
        """Send the request of a firing; return whether it was taken."""
        store, actor_id = self._engine.store, self._cell.actor_id
        last = store.get_request(actor_id, self._last) if self._last else None
        if last is not None and not last.status.terminal:
            return False
        request = tick_request(actor_id, self._wanted, tick, now)
        # A reminder of this name that is due at this instant is another request.
        message_id = request.message_id = f"t{request.message_id[1:]}"
        accepted = store.accept(request, self._cell.type.limits["enqueue"])
        self._engine.ended(accepted.ended)
        if accepted.outcome not in _SENT:
            return False
        self._last = message_id
        self._engine.signal(actor_id)
        return True
