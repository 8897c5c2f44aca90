"""What requests of actors say on the way, in SQL. Parts of one transaction each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppio_agent.wire.actors import ActorId

from .records import HintKind, ProgressItem
from .sql_tables import Session

__all__ = ["append", "extend", "read"]

_MOST_STEPS = 1024
_MOST_STEP_BYTES = 1024 * 1024

_STEP = (
    "INSERT INTO actor_progress (actor, message_id, position, data)"
    " VALUES (:actor, :message_id, :position, :data)"
)
_GROW = (
    "UPDATE actor_request SET position = :position, size = size + :size"
    " WHERE actor = :actor AND message_id = :message_id"
)
_LOG = (
    "SELECT position, size FROM actor_request"
    " WHERE actor = :actor AND message_id = :message_id AND status = 'pending'"
)
_STEPS = (
    "SELECT position, data FROM actor_progress WHERE actor = :actor"
    " AND message_id = :message_id AND position > :after"
    " ORDER BY position LIMIT :limit"
)
_SIZES = (
    "SELECT position, length(data) FROM actor_progress WHERE actor = :actor"
    " AND message_id = :message_id ORDER BY position DESC"
)
_DROP_STEPS = (
    "DELETE FROM actor_progress WHERE actor = :actor AND message_id = :message_id"
    " AND position <= :upto RETURNING length(data)"
)


def append(
    session: Session, actor_id: ActorId, message_id: str, items: Sequence[ProgressItem]
) -> None:
    """Append steps to the log of a request; of one that has ended, nothing."""
    values = {"actor": str(actor_id), "message_id": message_id}
    log = session.one(_LOG, values)
    if log is not None:
        extend(session, values, log, items)
        session.hint(HintKind.PROGRESS, actor_id, message_id)


def extend(
    session: Session,
    request: Mapping[str, Any],
    log: tuple[int, int],
    items: Sequence[ProgressItem],
) -> None:
    """Append steps to a log, and forget the oldest ones past its bounds.

    Args:
        session: Where.
        request: Has the `actor` and `message_id` of the request.
        log: The last step it has had, and the bytes of those it has.
        items: The steps; those that it has had are passed over.
    """
    values = {name: request[name] for name in ("actor", "message_id")}
    last, before = log
    size = before
    for item in items:
        if item.position > last:
            last = item.position
            size += len(item.data)
            step = {**values, "position": last, "data": item.data}
            session.run(_STEP, step)
    if last > _MOST_STEPS:
        size -= _drop_steps(session, values, last - _MOST_STEPS)
    if size > _MOST_STEP_BYTES:
        size -= _drop_steps(session, values, _last_too_many(session, values))
    session.run(_GROW, {**values, "position": last, "size": size - before})


def _drop_steps(session: Session, values: dict[str, Any], upto: int) -> int:
    """Forget the oldest steps; return how many bytes they had."""
    return sum(size for (size,) in session.all(_DROP_STEPS, {**values, "upto": upto}))


def _last_too_many(session: Session, values: dict[str, Any]) -> int:
    """Return the last step of those that make the log larger than it may be."""
    left = _MOST_STEP_BYTES
    for position, size in session.all(_SIZES, values):
        left -= size
        if left < 0:
            return int(position)
    return 0


def read(
    session: Session, actor_id: ActorId, message_id: str, after: int, limit: int
) -> list[ProgressItem]:
    """Return steps; see `IActorStore.read_progress`."""
    values = {
        "actor": str(actor_id),
        "message_id": message_id,
        "after": after,
        "limit": limit,
    }
    return [ProgressItem(*row) for row in session.all(_STEPS, values)]
