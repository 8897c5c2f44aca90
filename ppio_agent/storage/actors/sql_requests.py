"""Requests of actors in SQL: how they come, wait and end.

Each function is a part of one transaction, in which `hold` comes first: it keeps others
from the actor until the end, so that what was read is still true when it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attrs import evolve

from ppio_agent.wire.actors import ActorId, RequestStatus

from .admission import admit
from .ends import failure
from .records import (
    Acceptance,
    Accepted,
    Cancellation,
    Cancelled,
    HintKind,
    Limits,
    RequestRecord,
)
from .sql_letters import bury
from .sql_tables import (
    Session,
    forget,
    hold,
    record_of,
    stamp,
    values_of,
    with_columns,
)

__all__ = [
    "accept",
    "add",
    "cancel",
    "count_pending",
    "end",
    "end_all",
    "end_and_bury",
    "find",
    "load",
    "oldest",
]

_FIND = with_columns(
    "SELECT <columns> FROM actor_request"
    " WHERE actor = :actor AND message_id = :message_id"
)
_LOAD = (
    "SELECT count(*), max(seq) FROM actor_request"
    " WHERE actor = :actor AND status = 'pending'"
)
_BEGUN = (
    "SELECT started_at FROM actor_request"
    " WHERE actor = :actor AND status = 'pending' ORDER BY seq LIMIT 1"
)
_PENDING = "SELECT count(*) FROM actor_request WHERE status = 'pending'"
_OLDEST = with_columns(
    "SELECT <columns> FROM actor_request"
    " WHERE actor = :actor AND status = 'pending' ORDER BY seq LIMIT 1"
)
_WAITING = with_columns(
    "SELECT <columns> FROM actor_request WHERE actor = :actor"
    " AND status = 'pending' AND started_at IS NULL ORDER BY seq LIMIT :limit"
)
_ADD = with_columns(
    "INSERT INTO actor_request (actor, seq, size, <columns>)"
    " VALUES (:actor, :seq, 0, <values>)"
    " ON CONFLICT (actor, message_id) DO NOTHING"
)
_END = (
    "UPDATE actor_request SET status = :status, finished_at = :finished_at,"
    " data = :data, params = :params, size = size + :size"
    " WHERE actor = :actor AND message_id = :message_id"
)
_NOTE = (
    "UPDATE actor_request SET cancel = :cancel"
    " WHERE actor = :actor AND message_id = :message_id"
)


def find(session: Session, actor_id: ActorId, message_id: str) -> RequestRecord | None:
    """Return a request, or None."""
    row = session.one(_FIND, {"actor": str(actor_id), "message_id": message_id})
    return None if row is None else record_of(actor_id, row)


def accept(
    session: Session,
    now: float,
    request: RequestRecord,
    limits: Limits,
    pending: Callable[[Session, int], int],
) -> Accepted:
    """Put a request behind the others; see `IActorStore.accept`.

    Args:
        session: Where.
        now: The time.
        request: The request; it is noted in it when it was accepted.
        limits: What the actor takes.
        pending: Gives how many are pending for all actors; it is given how many may.
    """
    actor_id = request.actor_id
    actor = str(actor_id)
    hold(session, actor, now)
    known = find(session, actor_id, request.message_id)
    if known is not None:
        told = known.digest and request.digest
        same = not told or known.digest == request.digest
        outcome = Acceptance.DUPLICATE if same else Acceptance.CONFLICT
        return Accepted(outcome, known)
    waiting, running, last = load(session, actor)
    everywhere = pending(session, limits.pending)
    outcome, leaving = admit(waiting, running, everywhere, limits)
    if outcome is not Acceptance.NEW:
        forget(session, actor)
        is_busy = outcome is Acceptance.BUSY
        return Accepted(outcome, oldest(session, actor_id) if is_busy else None)
    instead = limits.on_busy in {"interrupt", "rollback"}
    ended: Sequence[RequestRecord] = ()
    if leaving:
        leave = _supersede_waiting if instead else _drop_waiting
        ended = leave(session, now, actor_id, leaving)
    told_to_end = None
    if instead and running:
        told_to_end = _interrupt(session, actor_id, Cancellation(limits.on_busy))
    add(session, now, request, last)
    session.hint(HintKind.READY, actor_id, request.message_id)
    return Accepted(outcome, None, ended, told_to_end)


def load(session: Session, actor: str) -> tuple[int, int, int]:
    """Return what is pending of an actor: how many wait, how many run, the last place.

    A turn that begins is that of the oldest, so at most one has begun.
    """
    values = {"actor": actor}
    count, last = session.one(_LOAD, values)
    if not count:
        return 0, 0, 0
    running = session.one(_BEGUN, values)[0] is not None
    return count - running, int(running), last


def count_pending(session: Session) -> int:
    """Return how many requests of all actors are pending."""
    return int(session.one(_PENDING, {})[0])


def oldest(session: Session, actor_id: ActorId) -> RequestRecord | None:
    """Return the pending request that came first; begun ones did."""
    row = session.one(_OLDEST, {"actor": str(actor_id)})
    return None if row is None else record_of(actor_id, row)


def _waiting(session: Session, actor_id: ActorId, limit: int) -> list[RequestRecord]:
    rows = session.all(_WAITING, {"actor": str(actor_id), "limit": limit})
    return [record_of(actor_id, row) for row in rows]


def _supersede_waiting(
    session: Session, now: float, actor_id: ActorId, limit: int
) -> list[RequestRecord]:
    return [
        end(session, now, record, RequestStatus.CANCELLED, failure("superseded"))
        for record in _waiting(session, actor_id, limit)
    ]


def _drop_waiting(
    session: Session, now: float, actor_id: ActorId, limit: int
) -> list[RequestRecord]:
    dropped = _waiting(session, actor_id, limit)
    for record in dropped:
        end_and_bury(session, now, record, RequestStatus.REJECTED, "dropped")
    return dropped


def _interrupt(session: Session, actor_id: ActorId, how: Cancellation) -> str | None:
    running = oldest(session, actor_id)
    if running is None:
        return None
    _note(session, running, how)
    return running.message_id


def _note(session: Session, record: RequestRecord, how: Cancellation) -> None:
    """Note how a turn is to end: the first counts, but for one that keeps something."""
    if record.cancel in {None, Cancellation.INTERRUPT}:
        values = {
            "actor": str(record.actor_id),
            "message_id": record.message_id,
            "cancel": how.value,
        }
        session.run(_NOTE, values)
    session.hint(HintKind.CANCEL, record.actor_id, record.message_id)


def add(session: Session, now: float, request: RequestRecord, last: int) -> bool:
    """Put a request behind the `last` place; return whether its id was new."""
    values = values_of(request)
    values["seq"] = max(stamp(now), last + 1)
    return session.run(_ADD, values) != 0


def end(
    session: Session,
    now: float,
    record: RequestRecord,
    status: RequestStatus,
    data: bytes,
) -> RequestRecord:
    """End a pending request, which is returned as it is then."""
    record.status = status
    record.data = data
    record.params = b""
    record.finished_at = now
    values = {
        "actor": str(record.actor_id),
        "message_id": record.message_id,
        "status": status.value,
        "finished_at": now,
        "data": data,
        "params": b"",
        "size": len(data),
    }
    session.run(_END, values)
    session.hint(HintKind.ENDED, record.actor_id, record.message_id)
    return record


def end_all(session: Session, now: float, actor_id: ActorId) -> None:
    """End all pending requests of an actor CANCELLED."""
    while (record := oldest(session, actor_id)) is not None:
        end(session, now, record, RequestStatus.CANCELLED, failure("cancelled"))


def end_and_bury(
    session: Session,
    now: float,
    record: RequestRecord,
    status: RequestStatus,
    code: str,
) -> RequestRecord:
    """End a pending request as a dead letter; return it as it is then."""
    params = record.params
    end(session, now, record, status, failure(code))
    bury(session, evolve(record, params=params), code)
    return record


def cancel(
    session: Session,
    now: float,
    actor_id: ActorId,
    message_id: str,
    how: Cancellation,
) -> Cancelled:
    """End a request that waits, or note it; see `IActorStore.cancel`."""
    record = find(session, actor_id, message_id)
    if record is not None:
        hold(session, str(actor_id), now)
        record = find(session, actor_id, message_id)
    if record is None:
        return Cancelled.NOT_FOUND
    if record.status.terminal:
        return Cancelled.TERMINAL
    if record.started_at is None:
        end(session, now, record, RequestStatus.CANCELLED, failure("cancelled"))
        return Cancelled.CANCELLED
    _note(session, record, how)
    return Cancelled.REQUESTED
