"""What people ask of a runtime: what is there, and that something goes."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ppio_agent.exceptions import ActorBusyError, LeaseLostError, NotFoundError
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import Lease
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.times import format_time

from ._cells import Cell

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["delete", "inspect", "stats"]

_CANCELLED = RequestStatus.CANCELLED


def inspect(engine: Engine, actor_id: ActorId) -> dict[str, Any]:
    """Return what is known of an actor; see `InProcessActorRuntime.inspect`."""
    summary = engine.store.inspect(actor_id)
    cell = engine.cells.find(actor_id)
    live = cell is not None and cell.activation is not None
    turn = None if cell is None else cell.turn
    if summary is None and not live:
        raise NotFoundError(f"nothing is known of actor {actor_id}")
    running = None if turn is None else turn.record.message_id
    last = None if summary is None else summary.last_turn
    return {
        "actor_id": str(actor_id),
        "live": live,
        "queued": 0 if summary is None else summary.queued,
        "running": running or (None if summary is None else summary.running),
        "last_turn": None if last is None else _text(last),
        "etag": "0" if summary is None else summary.etag,
        "worker": None if summary is None else summary.worker,
    }


def _text(seconds: float) -> str:
    return format_time(datetime.fromtimestamp(seconds, timezone.utc))


def stats(engine: Engine) -> dict[str, Any]:
    """Return how much there is of what."""
    return {
        "known": len(engine.cells),
        "live": engine.cells.live,
        "pending": engine.store.pending(),
        "awaited": len(engine.calls),
        "threads": engine.pool.threads,
        "busy": engine.pool.busy,
        "ready": engine.pool.waiting,
        "timers": len(engine.timers),
        "stuck": engine.sweep.stuck.count,
        "oldest": _oldest(engine),
        "degraded": engine.supervisor.degraded(),
    }


def _oldest(engine: Engine) -> float:
    """Return for how many seconds the oldest request has waited that is awaited here."""
    for call in engine.calls.all():
        if engine.turn_of(call.actor_id, call.message_id) is None:
            return max(0.0, time.monotonic() - call.since)
    return 0.0


def delete(engine: Engine, actor_id: ActorId) -> bool:
    """Remove an actor; see `InProcessActorRuntime.delete_actor`."""
    cell = engine.cell(actor_id)
    turn = cell.turn
    with engine.held(cell) as held:
        if not held[0]:
            if turn is None:
                raise _busy(actor_id, "is about to run, or rests after a crash")
            raise _busy(actor_id, "runs a turn", turn.record.message_id)
        try:
            cell.signal = False  # what comes from here on, comes after
            return _delete(engine, cell)
        except LeaseLostError:
            raise _elsewhere(engine, actor_id) from None
        finally:
            engine.lives.deactivate(cell)  # its lease went with it
            held.append(None)
            engine.lives.retire(cell)


def _delete(engine: Engine, cell: Cell) -> bool:
    """Remove an actor whose flag is the caller's."""
    actor_id, activation = cell.actor_id, cell.activation
    if activation is not None:
        activation.next = None
        engine.lives.dispose(activation)  # it may yet write
        lease: Lease | None = activation.lease
    else:  # also in quarantine, in which it may not live
        lease = engine.store.claim(engine.worker, actor_id)
    if lease is None:
        raise _elsewhere(engine, actor_id)
    calls = [
        call
        for call in engine.calls.of_actor(actor_id)
        # Not those that are about to be accepted.
        if engine.store.get_request(actor_id, call.message_id) is not None
    ]
    try:
        found = engine.store.delete(lease)
    finally:
        if activation is None:
            engine.store.release(lease)
    for call in calls:
        if engine.store.get_request(actor_id, call.message_id) is None:
            engine.calls.forget(call)
            engine.calls.conclude(call, _CANCELLED, failure("cancelled"), 0)
    return found


def _elsewhere(engine: Engine, actor_id: ActorId) -> ActorBusyError:
    summary = engine.store.inspect(actor_id)
    running = None if summary is None else summary.running
    does = "runs a turn" if running else "lives"
    return _busy(actor_id, f"{does} in another process", running)


def _busy(actor_id: ActorId, does: str, running: str | None = None) -> ActorBusyError:
    return ActorBusyError(
        f"actor {actor_id} {does}: delete it when it does not",
        actor_id=str(actor_id),
        message_id=running,
    )
