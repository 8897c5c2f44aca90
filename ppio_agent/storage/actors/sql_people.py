"""What people ask of actors in SQL: what there is of one, whose it is, its end.

Each function is a part of one transaction.
"""

from __future__ import annotations

from ppio_agent.wire.actors import ActorId

from . import sql_requests as requests
from .records import ActorSummary, Lease
from .sql_tables import Session
from .sql_turns import held

__all__ = ["delete", "inspect", "own", "owner"]

_ACTOR = (
    "SELECT etag, (SELECT id FROM actor_worker WHERE id = worker"
    " AND actor_worker.expires_at > :now), token, last_turn"
    " FROM actor WHERE actor = :actor"
)
_REMINDERS = "SELECT name FROM actor_reminder WHERE actor = :actor"
_OWNER = "SELECT owner FROM actor_owner WHERE actor = :actor"
_OWN = (
    "INSERT INTO actor_owner (actor, owner, seen_at) VALUES (:actor, :owner, :now)"
    " ON CONFLICT (actor) DO UPDATE SET seen_at = excluded.seen_at"
    " WHERE actor_owner.seen_at < excluded.seen_at - 3600"
)
_DELETE = (
    "DELETE FROM actor_request WHERE actor = :actor",
    "DELETE FROM actor_progress WHERE actor = :actor",
    "DELETE FROM actor_state WHERE actor = :actor",
    "DELETE FROM actor_reminder WHERE actor = :actor",
    "DELETE FROM actor_owner WHERE actor = :actor",
    "DELETE FROM actor_dead_letter WHERE actor = :actor",
)
_DELETE_ACTOR = "DELETE FROM actor WHERE actor = :actor"
_UNWAIT = "DELETE FROM actor_wait WHERE waiter = :actor"


def inspect(session: Session, now: float, actor_id: ActorId) -> ActorSummary | None:
    """Return what is known of an actor; None if there is nothing."""
    actor = str(actor_id)
    values = {"actor": actor, "now": now}
    owned_by = owner(session, actor_id)
    row = session.one(_ACTOR, values)
    if row is None and owned_by is None:
        return None
    etag, worker, token, last_turn = row or (0, None, 0, None)
    waiting, running, _ = requests.load(session, actor)
    first = requests.oldest(session, actor_id) if running else None
    return ActorSummary(
        actor_id,
        str(etag),
        worker,
        token,
        owned_by,
        queued=waiting,
        running=None if first is None else first.message_id,
        last_turn=last_turn,
        reminders=tuple(name for (name,) in session.all(_REMINDERS, values)),
    )


def own(session: Session, now: float, actor_id: ActorId, owner: str) -> str:
    """Make somebody the owner of an actor that has none; return its owner."""
    values = {"actor": str(actor_id), "owner": owner, "now": now}
    session.run(_OWN, values)
    return str(session.one(_OWNER, values)[0])


def owner(session: Session, actor_id: ActorId) -> str | None:
    """Return the owner of an actor; None if it has none."""
    row = session.one(_OWNER, {"actor": str(actor_id)})
    return None if row is None else str(row[0])


def delete(session: Session, now: float, lease: Lease) -> bool:
    """Remove an actor with all it has; see `IActorStore.delete`."""
    actor = str(lease.actor_id)
    held(session, lease, actor)
    values = {"actor": actor}
    requests.end_all(session, now, lease.actor_id)
    found = [session.run(statement, values) for statement in _DELETE]
    session.run(_UNWAIT, values)
    session.run(_DELETE_ACTOR, values)
    return any(found)
