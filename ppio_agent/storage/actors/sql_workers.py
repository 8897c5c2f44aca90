"""Workers in SQL: how long they live, what they may run, and who waits for whom.

Each function is a part of one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppio_agent.wire.actors import ActorId

from .records import Cancellation
from .sql_tables import Session, forget

__all__ = [
    "SPARE",
    "bury",
    "cancellations",
    "forget_gone",
    "gone",
    "heartbeat",
    "known",
    "ready",
    "retire",
    "unwait",
    "wait",
    "waits_for",
]

_IS_GONE = 86_400.0

_EXPIRES = "SELECT expires_at FROM actor_worker WHERE id = :worker"
_BEAT = (
    "INSERT INTO actor_worker (id, expires_at) VALUES (:worker, :expires_at)"
    " ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at"
)
_LEASED = "SELECT actor FROM actor WHERE worker = :worker ORDER BY actor LIMIT :limit"
_KNOWN = "SELECT id FROM actor_worker"
_BURY = "UPDATE actor_worker SET expires_at = 0 WHERE id = :worker"
_GONE = "SELECT id FROM actor_worker WHERE expires_at < :before LIMIT :limit"
_STILL_GONE = (
    "SELECT 1 FROM actor_worker WHERE id = :worker AND expires_at < :before"
    " /*for update*/"
)
_FORGET_WORKER = "DELETE FROM actor_worker WHERE id = :worker"
_FREE = "UPDATE actor SET worker = NULL WHERE actor = :actor AND worker = :worker"
SPARE = (
    "UPDATE actor_request SET spared = spared + 1 WHERE actor = :actor"
    " AND status = 'pending' AND attempt > 0"
    " AND token = (SELECT token FROM actor WHERE actor.actor = :actor)"
)
_READY = (
    "SELECT actor FROM (SELECT actor, min(seq) AS first FROM actor_request"
    " WHERE status = 'pending' GROUP BY actor) AS mailbox WHERE NOT EXISTS"
    " (SELECT 1 FROM actor JOIN actor_worker ON id = worker"
    " AND actor_worker.expires_at > :now WHERE actor.actor = mailbox.actor AND worker <> :worker)"
    " ORDER BY first LIMIT :limit"
)
_NOTED = (
    "SELECT actor, message_id, cancel FROM actor_request WHERE status = 'pending'"
    " AND cancel IS NOT NULL AND EXISTS (SELECT 1 FROM actor"
    " WHERE actor.actor = actor_request.actor AND worker = :worker)"
)
_WAIT = (
    "INSERT INTO actor_wait (waiter, target) VALUES (:waiter, :target)"
    " ON CONFLICT (waiter) DO UPDATE SET target = excluded.target"
)
_WAITS_FOR = "SELECT target FROM actor_wait WHERE waiter = :waiter"
_UNWAIT = "DELETE FROM actor_wait WHERE waiter = :waiter"


def heartbeat(session: Session, now: float, worker: str, ttl: float) -> bool:
    """Keep all leases of a worker; return whether its time had not passed."""
    row = session.one(_EXPIRES, {"worker": worker})
    session.run(_BEAT, {"worker": worker, "expires_at": now + ttl})
    return row is None or bool(row[0] > now)


def retire(session: Session, worker: str, limit: int, *, dead: bool = False) -> int:
    """Give back that many leases of a worker; forget it if there were less.

    Args:
        session: Of a transaction.
        worker: It.
        limit: Most leases.
        dead: Whether it has not ended by itself: its turns count as begun.

    Returns:
        How many there were.
    """
    rows = session.all(_LEASED, {"worker": worker, "limit": limit})
    for (actor,) in rows:
        if session.run(_FREE, {"actor": actor, "worker": worker}):
            if not dead:
                session.run(SPARE, {"actor": actor})
            session.run(_UNWAIT, {"waiter": actor})
            forget(session, actor)
    if len(rows) < limit:
        session.run(_FORGET_WORKER, {"worker": worker})
    return len(rows)


def known(session: Session) -> list[str]:
    """Return the workers that said that they live."""
    return [worker for (worker,) in session.all(_KNOWN, {})]


def bury(session: Session, worker: str) -> None:
    """Let the time of a worker pass: its leases are to be had at once."""
    session.run(_BURY, {"worker": worker})


def gone(session: Session, now: float, limit: int) -> list[str]:
    """Return workers whose time passed so long ago that they can be forgotten."""
    rows = session.all(_GONE, {"before": now - _IS_GONE, "limit": limit})
    return [worker for (worker,) in rows]


def forget_gone(session: Session, now: float, worker: str, limit: int) -> int:
    """Forget a worker that is gone, once it has no leases; return what was looked at.

    That is so many of its leases at most, and itself.
    """
    values = {"worker": worker, "before": now - _IS_GONE}
    if session.one(_STILL_GONE, values) is None:
        return 1
    return retire(session, worker, limit, dead=True) + 1


def ready(session: Session, now: float, worker: str, limit: int) -> list[ActorId]:
    """Return actors whose turns the worker may run; see `IActorStore.ready`."""
    rows = session.all(_READY, {"now": now, "worker": worker, "limit": limit})
    return [ActorId.parse(actor) for (actor,) in rows]


def cancellations(
    session: Session, worker: str
) -> list[tuple[ActorId, str, Cancellation]]:
    """Return what was noted for turns of a worker."""
    return [
        (ActorId.parse(actor), message_id, Cancellation(how))
        for actor, message_id, how in session.all(_NOTED, {"worker": worker})
    ]


def wait(session: Session, edges: Sequence[tuple[ActorId, ActorId]]) -> None:
    """Note that the first of each pair waits for the second."""
    for waiter, target in edges:
        session.run(_WAIT, {"waiter": str(waiter), "target": str(target)})


def waits_for(session: Session, waiter: ActorId) -> ActorId | None:
    """Return for whom an actor waits."""
    row = session.one(_WAITS_FOR, {"waiter": str(waiter)})
    return None if row is None else ActorId.parse(row[0])


def unwait(session: Session, actor_ids: Sequence[ActorId]) -> None:
    """Forget for whom these wait."""
    for actor_id in actor_ids:
        session.run(_UNWAIT, {"waiter": str(actor_id)})
