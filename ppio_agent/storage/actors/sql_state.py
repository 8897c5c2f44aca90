"""State of actors in SQL. Each function is a part of one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppio_agent.wire.actors import ActorId

from .records import RemoveKey, SetValue, StateRead, WriteResult
from .sql_tables import Row, Session, forget, hold, next_stamp

__all__ = ["change_state", "clear", "read", "write"]

_ETAG = "SELECT etag FROM actor WHERE actor = :actor"
_SET_ETAG = "UPDATE actor SET etag = :etag WHERE actor = :actor"
_GET = "SELECT key, value FROM actor_state WHERE actor = :actor AND key = :key"
_WITH_PREFIX = (
    "SELECT key, value FROM actor_state WHERE actor = :actor AND key >= :prefix"
    " AND substr(key, 1, :length) = :prefix"
)
_PAGE = f"{_WITH_PREFIX} ORDER BY key LIMIT :limit"
_NEXT_PAGE = f"{_WITH_PREFIX} AND key > :after ORDER BY key LIMIT :limit"
_SET = (
    "INSERT INTO actor_state (actor, key, value) VALUES (:actor, :key, :value)"
    " ON CONFLICT (actor, key) DO UPDATE SET value = excluded.value"
)
_REMOVE = "DELETE FROM actor_state WHERE actor = :actor AND key = :key"
_CLEAR = "DELETE FROM actor_state WHERE actor = :actor"


def read(
    session: Session,
    actor_id: ActorId,
    keys: Sequence[str] | None,
    *,
    prefix: str,
    after: str | None,
    limit: int,
) -> StateRead:
    """Read a part of the state; see `IActorStore.read`."""
    actor = str(actor_id)
    row = session.one(_ETAG, {"actor": actor})
    if row is None:
        return StateRead("0", {})
    if keys is None:
        rows = _page(session, actor, prefix=prefix, after=after, limit=limit + 1)
    else:
        wanted = [
            key
            for key in sorted(set(keys))
            if key.startswith(prefix) and (after is None or key > after)
        ]
        found = (session.one(_GET, {"actor": actor, "key": key}) for key in wanted)
        rows = [row for row in found if row is not None]
    values: dict[str, bytes] = dict(rows[:limit])
    next_key = rows[limit - 1][0] if len(rows) > limit else None
    return StateRead(str(row[0]), values, next_key)


def _page(
    session: Session, actor: str, *, prefix: str, after: str | None, limit: int
) -> list[Row]:
    values: dict[str, Any] = {
        "actor": actor,
        "prefix": prefix,
        "length": len(prefix),
        "limit": limit,
    }
    if after is None:
        return session.all(_PAGE, values)
    return session.all(_NEXT_PAGE, {**values, "after": after})


def write(
    session: Session,
    now: float,
    actor_id: ActorId,
    ops: Sequence[SetValue | RemoveKey],
    etag: str | None,
) -> WriteResult:
    """Write a batch from outside a turn; see `IActorStore.write`."""
    actor = str(actor_id)
    current = hold(session, actor, now)
    success = etag is None or etag == str(current)
    if success and ops:
        change_state(session, actor, ops)
        current = _raise_etag(session, actor, current, now)
    forget(session, actor)
    return WriteResult(str(current), success)


def change_state(
    session: Session, actor: str, ops: Sequence[SetValue | RemoveKey]
) -> None:
    """Make writes of an actor that is held."""
    for op in ops:
        if type(op) is SetValue:
            values = {"actor": actor, "key": op.key, "value": op.value}
            session.run(_SET, values)
        else:
            session.run(_REMOVE, {"actor": actor, "key": op.key})


def clear(session: Session, now: float, actor: str) -> bool:
    """Remove the whole state; return whether there was any."""
    etag = hold(session, actor, now)
    had = session.run(_CLEAR, {"actor": actor}) != 0
    if had:
        _raise_etag(session, actor, etag, now)
    return had


def _raise_etag(session: Session, actor: str, etag: int, now: float) -> int:
    raised = next_stamp(etag, now)
    session.run(_SET_ETAG, {"actor": actor, "etag": raised})
    return raised
