"""What people ask of a runtime: what is there, and that something goes."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ppio_agent.exceptions import ActorBusyError, NotFoundError
from ppio_agent.storage.actors.ends import failure
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.times import format_time

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["delete", "inspect", "stats"]


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
    if not cell.flag.acquire(blocking=False):
        raise _busy(actor_id, None if turn is None else turn.record.message_id)
    try:
        activation = cell.activation or engine.lives.activate(cell)
        if activation is None:
            raise _busy(actor_id, None)
        activation.next = None
        engine.lives.dispose(activation)
        found = engine.store.delete(activation.lease)
        for call in engine.calls.of_actor(actor_id):
            engine.calls.end(
                actor_id,
                call.message_id,
                RequestStatus.CANCELLED,
                failure("cancelled"),
            )
    finally:
        cell.signal = False
        engine.lives.retire(cell)
    return found


def _busy(actor_id: ActorId, running: str | None) -> ActorBusyError:
    return ActorBusyError(
        f"a turn of actor {actor_id} runs: delete it when that has ended",
        actor_id=str(actor_id),
        message_id=running,
    )
