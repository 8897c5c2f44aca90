"""Requests of actors in SQL: how they come, how they end, and what they say meanwhile.

Each function is a part of one transaction, in which `hold` comes first: it keeps others
from the actor until the end, so that what was read is still true when it is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import evolve

from ppio_agent.wire.actors import ActorId, RequestStatus

from .admission import admit
from .ends import failure
from .records import (
    Acceptance,
    Accepted,
    Cancellation,
    Cancelled,
    DeadLetter,
    HintKind,
    Limits,
    ProgressItem,
    RequestRecord,
)
from .sql_tables import (
    Row,
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
    "append",
    "bury",
    "cancel",
    "count_pending",
    "dead_letters",
    "discard",
    "end",
    "end_all",
    "end_and_bury",
    "find",
    "find_dead_letter",
    "load",
    "log_steps",
    "oldest",
    "read_progress",
]

_LETTER_ID = re.compile("[0-7][0-9a-f]{15}")
_MOST_STEPS = 1024
_MOST_STEP_BYTES = 1024 * 1024

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
_BURY = with_columns(
    "INSERT INTO actor_dead_letter (actor, <columns>, reason, at)"
    " VALUES (:actor, <values>, :reason, :at)"
)
_LETTER = with_columns("SELECT id, actor, reason, at, <columns> FROM actor_dead_letter")
_DISCARD = "DELETE FROM actor_dead_letter WHERE id = :id"


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


def bury(session: Session, letter: RequestRecord, reason: str) -> None:
    """Make a dead letter of a request as it ended, but with its parameters."""
    values = values_of(letter)
    values["reason"] = reason
    values["at"] = letter.finished_at
    session.run(_BURY, values)


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


# Steps.


def append(
    session: Session, actor_id: ActorId, message_id: str, items: Sequence[ProgressItem]
) -> None:
    """Append steps to the log of a request; of one that has ended, nothing."""
    values = {"actor": str(actor_id), "message_id": message_id}
    log = session.one(_LOG, values)
    if log is not None:
        log_steps(session, values, log, items)
        session.hint(HintKind.PROGRESS, actor_id, message_id)


def log_steps(
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


def read_progress(
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


# Dead letters.


def dead_letters(session: Session, limit: int, after: str | None) -> list[DeadLetter]:
    """Return dead letters, the oldest first."""
    number = 0 if after is None else _number_of(after)
    if number is None:
        return []
    statement = f"{_LETTER} WHERE id > :after ORDER BY id LIMIT :limit"
    rows = session.all(statement, {"after": number, "limit": limit})
    return [_letter_of(row) for row in rows]


def find_dead_letter(session: Session, id: str) -> DeadLetter | None:
    """Return a dead letter, or None."""
    number = _number_of(id)
    row = None
    if number is not None:
        row = session.one(f"{_LETTER} WHERE id = :id", {"id": number})
    return None if row is None else _letter_of(row)


def discard(session: Session, id: str) -> bool:
    """Remove a dead letter; return whether there was one."""
    number = _number_of(id)
    return number is not None and session.run(_DISCARD, {"id": number}) != 0


def _number_of(id: str) -> int | None:
    return int(id, 16) if _LETTER_ID.fullmatch(id) else None


def _letter_of(row: Row) -> DeadLetter:
    id, actor, reason, at, *columns = row
    request = record_of(ActorId.parse(actor), tuple(columns))
    return DeadLetter(f"{id:016x}", request, reason, at, request.attempt)
