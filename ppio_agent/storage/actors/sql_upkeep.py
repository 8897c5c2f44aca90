"""What is done for all actors in SQL from time to time: what is due, or too old.

What is to be done is read first, without keeping anybody from anything. Then each piece
is done in a transaction of its own, which changes one actor and looks again: another
process may have done it meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from ppio_agent.wire.actors import ActorId, RequestStatus

from . import sql_letters as letters
from . import sql_requests as requests
from . import sql_workers as workers
from .ends import failure
from .records import (
    Acceptance,
    HintKind,
    Limits,
    RequestRecord,
    Retention,
    SetReminder,
)
from .schedule import GIVE_UP_AFTER, retry_delay, tick_of, tick_request
from .sql_state import clear
from .sql_tables import Row, Session, forget, hold, record_of, with_columns

__all__ = [
    "Spare",
    "deliver",
    "due_parcels",
    "due_reminders",
    "evict",
    "expire",
    "expired",
    "fire",
    "forget_letters",
    "forget_owners",
    "forget_requests",
    "forget_state",
    "spare",
]

_DUE_STATE_AGAIN = 60.0

_DUE_PARCELS = (
    "SELECT seq FROM actor_outbox WHERE due <= :now ORDER BY due, seq LIMIT :limit"
)
_PARCELS = "SELECT count(*) FROM actor_outbox"
# Who comes second waits, so that all a relay has found are gone when it returns.
_PARCEL = with_columns(
    "SELECT actor, mailbox, since, tries, <columns> FROM actor_outbox"
    " WHERE seq = :seq AND due <= :now /*for update*/"
)
_RETRY = "UPDATE actor_outbox SET due = :due, tries = :tries WHERE seq = :seq"
_GONE = "DELETE FROM actor_outbox WHERE seq = :seq"
_DUE_REMINDERS = (
    "SELECT actor, name FROM actor_reminder WHERE due <= :now AND NOT EXISTS"
    " (SELECT 1 FROM actor_request WHERE actor_request.actor = actor_reminder.actor"
    " AND message_id = latest AND status = 'pending') ORDER BY due LIMIT :limit"
)
_REMINDER = (
    "SELECT name, due, method, params, period, count, latest FROM actor_reminder"
    " WHERE actor = :actor AND name = :name AND due <= :now"
)
_NEXT_DUE = (
    "UPDATE actor_reminder SET due = :due, count = :count, latest = :latest"
    " WHERE actor = :actor AND name = :name"
)
_LAST_DUE = "DELETE FROM actor_reminder WHERE actor = :actor AND name = :name"
_EXPIRED = (
    "SELECT actor, message_id FROM actor_request WHERE status = 'pending'"
    " AND deadline IS NOT NULL AND deadline <= :now ORDER BY deadline LIMIT :limit"
)
# A request is known by when it ended too: one that came with its id later stays.
_OLD = (
    "SELECT actor, message_id, finished_at FROM actor_request"
    " WHERE finished_at IS NOT NULL AND finished_at < :before"
    " ORDER BY finished_at LIMIT :limit"
)
_FIRST_ENDED = (
    "SELECT actor, message_id, finished_at FROM actor_request"
    " WHERE finished_at IS NOT NULL ORDER BY finished_at LIMIT :limit"
)
_ENDED = (
    "SELECT count(*), coalesce(sum(size), 0) FROM actor_request"
    " WHERE finished_at IS NOT NULL"
)
_FORGET_REQUEST = (
    "DELETE FROM actor_request WHERE actor = :actor AND message_id = :message_id"
    " AND finished_at = :finished_at"
)
_FORGET_STEPS = (
    "DELETE FROM actor_progress WHERE actor = :actor AND message_id = :message_id"
)
_FIRST_LARGE = (
    "SELECT actor, message_id, finished_at, size FROM actor_request"
    " WHERE finished_at IS NOT NULL AND size > 0 ORDER BY finished_at LIMIT :limit"
)
_EVICT = (
    "UPDATE actor_request SET data = :nothing, evicted = 1, size = 0"
    " WHERE actor = :actor AND message_id = :message_id"
    " AND finished_at = :finished_at"
)
_LETTERS = (
    "SELECT count(*), coalesce(sum(CASE WHEN at < :before THEN 1 ELSE 0 END), 0)"
    " FROM actor_dead_letter"
)
_FIRST_LETTERS = "SELECT id FROM actor_dead_letter ORDER BY id LIMIT :limit"
_FORGET_LETTER = "DELETE FROM actor_dead_letter WHERE id = :id"
_SPENT = (
    "SELECT actor FROM actor WHERE expires_at IS NOT NULL AND expires_at <= :now"
    " ORDER BY expires_at LIMIT :limit"
)
_IS_SPENT = "SELECT 1 FROM actor WHERE actor = :actor AND expires_at <= :now"
_SPENT_AT = "UPDATE actor SET expires_at = :expires_at WHERE actor = :actor"
_OLD_OWNERS = (
    "SELECT actor FROM actor_owner WHERE seen_at < :before"
    " ORDER BY seen_at LIMIT :limit"
)
_STILL_OWNED = (
    "UPDATE actor_owner SET seen_at = :now WHERE actor = :actor"
    " AND EXISTS (SELECT 1 FROM actor WHERE actor.actor = :actor)"
)
_DISOWN = "DELETE FROM actor_owner WHERE actor = :actor"


# Requests to others.


def due_parcels(session: Session, now: float, limit: int) -> list[int]:
    """Return the numbers of outgoing requests that are due."""
    rows = session.all(_DUE_PARCELS, {"now": now, "limit": limit})
    return [seq for (seq,) in rows]


def count_parcels(session: Session) -> int:
    """Return how many requests are on their way."""
    (count,) = session.one(_PARCELS, {})
    return int(count)


def deliver(session: Session, now: float, seq: int) -> ActorId | None:
    """Move an outgoing request into its mailbox; return the actor that got it."""
    row = session.one(_PARCEL, {"seq": seq, "now": now})
    if row is None:
        return None
    actor, mailbox, since, tries, *columns = row
    request = record_of(ActorId.parse(actor), tuple(columns))
    request.created_at = now
    limits = Limits(mailbox=mailbox, pending=1)
    outcome = requests.accept(session, now, request, limits, _no_count).outcome
    if outcome is Acceptance.FULL:
        end = since + GIVE_UP_AFTER
        if now < min(end, request.deadline or end):
            due = now + retry_delay(tries + 1)
            session.run(_RETRY, {"seq": seq, "due": due, "tries": tries + 1})
            return None
        request.status = RequestStatus.REJECTED
        request.data = failure("mailbox_full")
        request.finished_at = now
        letters.bury(session, request, "mailbox_full")
    session.run(_GONE, {"seq": seq})
    return request.actor_id if outcome is Acceptance.NEW else None


def _no_count(_session: Session, _most: int) -> int:
    """Return none of all actors: what was sent was counted where it was accepted."""
    return 0


# Reminders.


def due_reminders(
    session: Session, now: float, limit: int
) -> list[tuple[ActorId, str]]:
    """Return actor and name of reminders that are due, the first ones first."""
    rows = session.all(_DUE_REMINDERS, {"now": now, "limit": limit})
    return [(ActorId.parse(actor), name) for actor, name in rows]


def fire(session: Session, now: float, actor_id: ActorId, name: str) -> bool:
    """Make the request that a reminder is now; return whether that was done."""
    key = {"actor": str(actor_id), "name": name}
    hold(session, key["actor"], now)
    row = session.one(_REMINDER, {**key, "now": now})
    if row is None:
        forget(session, key["actor"])
        return False
    *fields, latest = row
    before = requests.find(session, actor_id, latest) if latest else None
    if before is not None and not before.status.terminal:
        return False
    reminder = SetReminder(*fields)
    tick = tick_of(reminder.due, reminder.period, reminder.count, now)
    request = tick_request(actor_id, reminder, tick, now)
    *_, last = requests.load(session, key["actor"])
    is_new = requests.add(session, now, request, last)
    if tick.next_due is None:
        session.run(_LAST_DUE, key)
    else:
        later = {"due": tick.next_due, "count": tick.left, "latest": request.message_id}
        session.run(_NEXT_DUE, {**key, **later})
    session.hint(HintKind.READY, actor_id, request.message_id)
    return is_new


# Deadlines.


def expired(session: Session, now: float, limit: int) -> list[tuple[ActorId, str]]:
    """Return actor and id of pending requests whose deadline has passed."""
    rows = session.all(_EXPIRED, {"now": now, "limit": limit})
    return [(ActorId.parse(actor), message_id) for actor, message_id in rows]


def expire(
    session: Session, now: float, actor_id: ActorId, message_id: str
) -> RequestRecord | None:
    """End a pending request EXPIRED; None if it has ended otherwise."""
    hold(session, str(actor_id), now)
    record = requests.find(session, actor_id, message_id)
    if record is None or record.status.terminal:
        forget(session, str(actor_id))
        return None
    data = failure("invocation_timeout")
    return requests.end(session, now, record, RequestStatus.EXPIRED, data)


# What is too old, or too much.


@frozen(kw_only=True)
class Spare:
    """What need not be kept, as it was found; a part of it, if that is much.

    It is changed only if it is still what it was: others may have come first.

    Attributes:
        requests: Actor, id and end of ended requests.
        payloads: The same of those whose results and logs alone need not be kept.
        letters: Numbers of dead letters.
        states: Actors whose state is to be deleted.
        owners: Actors of whose owner nothing was heard.
        workers: Those that are gone.
    """

    requests: Sequence[Row]
    payloads: Sequence[Row]
    letters: Sequence[int]
    states: Sequence[str]
    owners: Sequence[str]
    workers: Sequence[str]


def spare(session: Session, now: float, limit: int, retention: Retention) -> Spare:
    """Return what need not be kept, up to `limit` of each."""
    before = now - retention.seconds
    found: Sequence[Row] = session.all(_OLD, {"before": before, "limit": limit})
    payloads: Sequence[Row] = ()
    if len(found) < limit:  # all are counted only if those that are old are not enough
        count, size = session.one(_ENDED, {})
        if count - retention.ids > len(found):
            most = min(limit, count - retention.ids)
            found = session.all(_FIRST_ENDED, {"limit": most})
        if size > retention.payload_bytes:
            excess = size - retention.payload_bytes
            payloads = _covering(session.all(_FIRST_LARGE, {"limit": limit}), excess)
    return Spare(
        requests=found,
        payloads=payloads,
        letters=_spare_letters(session, now, limit, retention),
        states=_firsts(session, _SPENT, {"now": now, "limit": limit}),
        owners=_firsts(session, _OLD_OWNERS, {"before": before, "limit": limit}),
        workers=workers.gone(session, now, limit),
    )


def _firsts(session: Session, statement: str, values: Mapping[str, Any]) -> list[Any]:
    return [row[0] for row in session.all(statement, values)]


def _covering(rows: Sequence[Row], excess: int) -> list[Row]:
    """Return the first rows that have so many bytes together, without these."""
    needed = []
    for *key, size in rows:
        if excess <= 0:
            break
        excess -= size
        needed.append(tuple(key))
    return needed


def _spare_letters(
    session: Session, now: float, limit: int, retention: Retention
) -> list[int]:
    count, old = session.one(_LETTERS, {"before": now - retention.dead_seconds})
    most = min(limit, max(old, count - retention.dead_letters))
    return _firsts(session, _FIRST_LETTERS, {"limit": most}) if most > 0 else []


def forget_requests(session: Session, found: Sequence[Row]) -> None:
    """Forget ended requests."""
    actors: dict[str, None] = {}
    for actor, message_id, finished_at in found:
        values = {
            "actor": actor,
            "message_id": message_id,
            "finished_at": finished_at,
        }
        if session.run(_FORGET_REQUEST, values):
            session.run(_FORGET_STEPS, values)
            actors[actor] = None
    for actor in actors:
        forget(session, actor)


def evict(session: Session, found: Sequence[Row]) -> None:
    """Forget results and logs."""
    for actor, message_id, finished_at in found:
        values = {
            "actor": actor,
            "message_id": message_id,
            "finished_at": finished_at,
            "nothing": b"",
        }
        if session.run(_EVICT, values):
            session.run(_FORGET_STEPS, values)


def forget_letters(session: Session, found: Sequence[int]) -> None:
    """Forget dead letters."""
    for id in found:
        session.run(_FORGET_LETTER, {"id": id})


def forget_state(session: Session, now: float, actor: str) -> bool:
    """Delete the state of an actor without requests; return whether it had any."""
    hold(session, actor, now)
    if session.one(_IS_SPENT, {"actor": actor, "now": now}) is None:
        forget(session, actor)
        return False
    if requests.oldest(session, ActorId.parse(actor)) is not None:
        session.run(_SPENT_AT, {"actor": actor, "expires_at": now + _DUE_STATE_AGAIN})
        return False
    had = clear(session, now, actor)
    session.run(_SPENT_AT, {"actor": actor, "expires_at": None})
    forget(session, actor)
    return had


def forget_owners(session: Session, now: float, found: Sequence[str]) -> None:
    """Forget who owned actors that are gone."""
    for actor in found:
        if not session.run(_STILL_OWNED, {"actor": actor, "now": now}):
            session.run(_DISOWN, {"actor": actor})
