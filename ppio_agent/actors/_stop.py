"""How a runtime ends, and what becomes of what has not ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import Lease, TurnCommit
from ppio_agent.wire.actors import RequestStatus

from ._outage import OUTAGES
from ._waiting import stopped

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["stop"]

_log = logging.getLogger(__name__)

_LOOK_EVERY = 0.05
_GRACE = 0.5  # seconds a cancelled turn may take
_PAGE = 1000
_CRASHES = 1_000_000  # nothing is to count as crashed here


def stop(engine: Engine, by: Callable[[], float]) -> int:
    """Stop an engine; return how many of its threads are busy still.

    Args:
        engine: It.
        by: Gives the instant till which turns may go on; it may become an earlier one.
    """
    engine.close_to_requests()
    _wait_for_turns(engine, by)
    for cell in engine.cells.living():
        turn = cell.turn
        if turn is not None:
            turn.outermost.cancel("shutdown")
    grace = time.monotonic() + _GRACE
    _wait_for_turns(engine, lambda: grace)
    engine.timers.close(_GRACE / 2)
    try:
        if not engine.store.durable:
            _cancel_all(engine)
        _let_go(engine)
    except OUTAGES as error:  # the leases end by themselves
        _log.warning("the runtime stops without its store: %s", error)
    engine.calls.abandon(stopped)
    engine.pool.close(_GRACE / 2)
    busy = max(engine.pool.busy, _running(engine))
    if busy:
        _log.warning("%d threads of actors are busy still", busy)
    return busy


def _running(engine: Engine) -> int:
    """Return how many threads, those of callers included, run turns."""
    turns = [cell.turn for cell in engine.cells.living()]
    return sum(turn is not None and turn.caller is None for turn in turns)


def _wait_for_turns(engine: Engine, by: Callable[[], float]) -> None:
    """Wait for what runs, till an instant, or till all of it only waits for others."""
    between = time.monotonic() + _GRACE  # those that are, begin no other one
    while left := [cell for cell in engine.cells.living() if cell.flag.locked()]:
        now = time.monotonic()
        seconds = by() - now
        if now >= between:
            left = [cell for cell in left if cell.turn is not None]
        busy = next((c for c in left if c.actor_id not in engine.waits), None)
        if seconds <= 0.0 or busy is None:
            return
        if busy.flag.acquire(timeout=min(seconds, _LOOK_EVERY)):
            busy.flag.release()


def _cancel_all(engine: Engine) -> None:
    """End all that has not ended: nobody will run it."""
    for cell in engine.cells.living():
        turn, activation = cell.turn, cell.activation
        if turn is not None and turn.accepted and activation is not None:
            _cancel(engine, activation.lease, turn.record.message_id)
    ended = True
    while ended:
        ended = False
        for actor_id in engine.store.ready(engine.worker, _PAGE):
            lease = engine.store.claim(engine.worker, actor_id)
            if lease is not None:
                ended = _cancel_waiting(engine, lease) or ended


def _cancel_waiting(engine: Engine, lease: Lease) -> bool:
    """End all requests of an actor; return whether there were any."""
    taken = engine.store.take(lease, crash_attempts=_CRASHES)
    engine.ended(taken.ended)
    if taken.record is not None:
        _cancel(engine, lease, taken.record.message_id)
    engine.store.release(lease)
    return bool(taken.ended) or taken.record is not None


def _cancel(engine: Engine, lease: Lease, message_id: str | None) -> None:
    """End a request, and all that wait behind it."""
    data = failure("runtime_stopped")
    with suppress(LeaseLostError):  # then it is not ours to end
        while message_id is not None:
            turn = TurnCommit(
                message_id=message_id,
                status=RequestStatus.CANCELLED,
                data=data,
                crash_attempts=_CRASHES,
            )
            committed = engine.store.commit(lease, turn)
            record = engine.store.get_request(lease.actor_id, message_id)
            engine.ended([record] if record is not None else [])
            taken = committed.taken
            if taken is None:
                return
            engine.ended(taken.ended)
            message_id = None if taken.record is None else taken.record.message_id


def _let_go(engine: Engine) -> None:
    for cell in engine.cells.living():
        if cell.flag.acquire(blocking=False):
            engine.lives.deactivate(cell)  # and its flag stays locked: it is over
    engine.store.retire(engine.worker)
    engine.close_subscription()
