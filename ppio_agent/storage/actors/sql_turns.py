"""Turns of actors in SQL: who may run them, how they begin, and what they leave.

Each function is a part of one transaction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import asdict, evolve

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.wire.actors import ActorId, RequestStatus

from . import sql_letters as letters
from . import sql_logs as logs
from . import sql_requests as requests
from . import sql_workers as workers
from .admission import code_of, end_unbegun
from .ends import failure
from .records import (
    Cancellation,
    CommitOutcome,
    Committed,
    Lease,
    ProgressItem,
    RequestRecord,
    SetReminder,
    Taken,
    TurnCommit,
)
from .sql_state import change_state
from .sql_tables import (
    Session,
    forget,
    stamp,
    values_of,
    with_columns,
)

__all__ = [
    "append",
    "claim",
    "commit",
    "held",
    "release",
    "take",
]

_ETAG = re.compile("[0-9]{1,18}")

_CLAIM = (
    "INSERT INTO actor (actor, token, worker) VALUES (:actor, :stamp, :worker)"
    " ON CONFLICT (actor) DO UPDATE"
    " SET token = actor.token + 1, worker = excluded.worker"
    " WHERE actor.worker IS NULL OR actor.worker = excluded.worker"
    " OR NOT EXISTS (SELECT 1 FROM actor_worker"
    " WHERE id = actor.worker AND expires_at > :now)"
    " RETURNING token"
)
_HELD = "SELECT worker, token, etag FROM actor WHERE actor = :actor /*for update*/"
_RELEASE = (
    "UPDATE actor SET worker = NULL"
    " WHERE actor = :actor AND worker = :worker AND token = :token"
)
_UNWAIT = "DELETE FROM actor_wait WHERE waiter = :actor"
_BEGIN = (
    "UPDATE actor_request SET attempt = :attempt, started_at = :now, token = :token"
    " WHERE actor = :actor AND message_id = :message_id"
)
_BEGUN = (
    "SELECT token, spared FROM actor_request"
    " WHERE actor = :actor AND message_id = :message_id"
)
# A request that was not accepted before, as it ended: if the lease holds, the state is
# the one that was read, and the id is new.
_ADD_ENDED = with_columns(
    "INSERT INTO actor_request (actor, seq, size, <columns>)"
    " SELECT :actor, 0, :size, <values> FROM actor WHERE actor.actor = :actor"
    " AND worker = :worker AND token = :token"
    " AND (:any_etag = 1 OR etag = :etag) /*for update*/"
    " ON CONFLICT (actor, message_id) DO NOTHING"
)
_TOUCH = (
    "UPDATE actor SET last_turn = :now, expires_at = :expires_at, etag = CASE"
    " WHEN :writes = 0 THEN etag WHEN etag = 0 THEN :stamp ELSE etag + 1 END"
    " WHERE actor = :actor RETURNING etag, EXISTS (SELECT 1 FROM actor_request"
    " WHERE actor_request.actor = :actor AND status = 'pending')"
)
_SEND = with_columns(
    "INSERT INTO actor_outbox (actor, <columns>, mailbox, since, due)"
    " VALUES (:actor, <values>, :mailbox, :due, :due)"
)
_REMIND = (
    "INSERT INTO actor_reminder (actor, name, due, method, params, period, count)"
    " VALUES (:actor, :name, :due, :method, :params, :period, :count)"
    " ON CONFLICT (actor, name) DO UPDATE SET due = excluded.due,"
    " method = excluded.method, params = excluded.params, period = excluded.period,"
    " count = excluded.count, latest = ''"
)
_UNREMIND = "DELETE FROM actor_reminder WHERE actor = :actor AND name = :name"


def claim(session: Session, now: float, worker: str, actor_id: ActorId) -> Lease | None:
    """Take the lease of an actor; see `IActorStore.claim`."""
    values = {
        "actor": str(actor_id),
        "worker": worker,
        "stamp": stamp(now),
        "now": now,
    }
    row = session.one(_CLAIM, values)
    if row is None:
        return None
    session.run(_UNWAIT, values)  # the turn that waited has ended with its worker
    return Lease(actor_id, worker, row[0])


def release(session: Session, lease: Lease) -> None:
    """Give a lease back, and forget the actor if it is empty."""
    values = {
        "actor": str(lease.actor_id),
        "worker": lease.worker,
        "token": lease.token,
    }
    if session.run(_RELEASE, values):
        session.run(workers.SPARE, values)
        session.run(_UNWAIT, values)
        forget(session, str(lease.actor_id))


def held(session: Session, lease: Lease, actor: str) -> int:
    """Keep other writers from the actor of a lease; return the etag in force.

    Raises:
        LeaseLostError: Somebody else has claimed the actor.
    """
    row = session.one(_HELD, {"actor": actor})
    if row is None or row[1] != lease.token or row[0] != lease.worker:
        raise LeaseLostError(
            f"worker {lease.worker} has no lease of actor {actor} any more: claim it"
            " again",
            actor_id=actor,
        )
    return int(row[2])


def take(session: Session, now: float, lease: Lease, crash_attempts: int) -> Taken:
    """Begin a turn of the oldest pending request; see `IActorStore.take`."""
    held(session, lease, str(lease.actor_id))
    return _begin(session, now, lease, crash_attempts)


def append(
    session: Session, lease: Lease, message_id: str, items: Sequence[ProgressItem]
) -> None:
    """Append steps to the log of a request; see `IActorStore.append_progress`."""
    held(session, lease, str(lease.actor_id))
    logs.append(session, lease.actor_id, message_id, items)


def _begin(session: Session, now: float, lease: Lease, crash_attempts: int) -> Taken:
    actor_id = lease.actor_id
    ended: list[RequestRecord] = []
    while True:
        record = requests.oldest(session, actor_id)
        if record is None:
            return Taken(None, ended)
        values = {
            "actor": str(actor_id),
            "message_id": record.message_id,
            "token": lease.token,
            "now": now,
        }
        turns = 1
        if record.attempt:
            token, spared = session.one(_BEGUN, values)
            # It is the same turn, of whose beginning nobody was told.
            turns = int(token != lease.token)
            verdict = end_unbegun(record, now, crash_attempts + spared + 1 - turns)
        else:
            verdict = end_unbegun(record, now, crash_attempts)
        if verdict is None:
            break
        status, code = verdict
        if code == "crashed":
            requests.end_and_bury(session, now, record, status, code)
        else:
            requests.end(session, now, record, status, failure(code))
        ended.append(record)
    record.attempt += turns
    record.started_at = now
    session.run(_BEGIN, {**values, "attempt": record.attempt})
    return Taken(record, ended)


def commit(session: Session, now: float, lease: Lease, turn: TurnCommit) -> Committed:
    """End a request with all that its turn leaves; see `IActorStore.commit`."""
    actor_id = lease.actor_id
    actor = str(actor_id)
    outcome, record, state = CommitOutcome.COMMITTED, None, turn.state
    if turn.request is None or not _add(session, now, lease, turn, turn.request):
        etag = held(session, lease, actor)
        fits = turn.etag is None or turn.etag == str(etag)
        outcome, record = _settle(session, now, actor_id, turn, fits=fits)
        if outcome is CommitOutcome.CONFLICT:
            return Committed(outcome, str(etag))
        if outcome is CommitOutcome.ENDED:
            taken = (
                take(session, now, lease, turn.crash_attempts) if turn.take else None
            )
            return Committed(outcome, str(etag), record, taken)
        if record is not None and not (fits and _is_interrupted(turn, record)):
            state = ()
    if outcome is CommitOutcome.COMMITTED:
        _leave(session, now, actor, turn)
    change_state(session, actor, state)
    values = {
        "actor": actor,
        "now": now,
        "expires_at": None if turn.state_ttl is None else now + turn.state_ttl,
        "writes": len(state),
        "stamp": stamp(now),
    }
    etag, has_more = session.one(_TOUCH, values)
    taken = None
    if turn.take:
        taken = (
            _begin(session, now, lease, turn.crash_attempts) if has_more else Taken()
        )
    return Committed(outcome, str(etag), record, taken)


def _add(
    session: Session, now: float, lease: Lease, turn: TurnCommit, request: RequestRecord
) -> bool:
    """Keep a request that was not accepted before, ended; False if it cannot be so."""
    values = values_of(request)
    values["params"] = b""
    values["finished_at"] = now
    values["status"] = turn.status.value
    values["data"] = turn.data
    values["size"] = len(turn.data)
    values["worker"] = lease.worker
    values["token"] = lease.token
    etag = turn.etag
    values["any_etag"] = int(etag is None)
    values["etag"] = int(etag) if etag is not None and _ETAG.fullmatch(etag) else -1
    if not session.run(_ADD_ENDED, values):
        return False
    if turn.progress:
        logs.extend(session, values, (0, 0), turn.progress)
    if turn.dead is not None:
        _bury(session, now, request, turn, turn.dead)
    return True


def _bury(
    session: Session, now: float, request: RequestRecord, turn: TurnCommit, reason: str
) -> None:
    """Make a dead letter of a request that its turn ends."""
    letter = evolve(request, status=turn.status, data=turn.data, finished_at=now)
    letters.bury(session, letter, reason)


def _settle(
    session: Session, now: float, actor_id: ActorId, turn: TurnCommit, *, fits: bool
) -> tuple[CommitOutcome, RequestRecord | None]:
    """End a request that may have been accepted, unless something came first."""
    record = requests.find(session, actor_id, turn.message_id)
    if record is None:
        known = turn.request is None
        return (CommitOutcome.ENDED if known else CommitOutcome.CONFLICT), None
    if record.status.terminal:
        return CommitOutcome.ENDED, record
    if record.cancel is not None:
        data = failure(code_of(record.cancel))
        requests.end(session, now, record, RequestStatus.CANCELLED, data)
        return CommitOutcome.CANCELLED, record
    if not fits:
        return CommitOutcome.CONFLICT, None
    if turn.progress:
        logs.append(session, actor_id, turn.message_id, turn.progress)
    if turn.dead is not None:
        _bury(session, now, record, turn, turn.dead)
    requests.end(session, now, record, turn.status, turn.data)
    return CommitOutcome.COMMITTED, None


def _is_interrupted(turn: TurnCommit, record: RequestRecord) -> bool:
    """Whether the state of a turn is kept that was cancelled."""
    return turn.keep and record.cancel is Cancellation.INTERRUPT


def _leave(session: Session, now: float, actor: str, turn: TurnCommit) -> None:
    """Keep what a turn has for later, and for others."""
    for outgoing in turn.outbox:
        values = values_of(outgoing.request)
        values["mailbox"] = outgoing.mailbox
        values["due"] = max(now, outgoing.not_before)
        session.run(_SEND, values)
    for change in turn.reminders:
        if isinstance(change, SetReminder):
            session.run(_REMIND, {"actor": actor, **asdict(change)})
        else:
            session.run(_UNREMIND, {"actor": actor, "name": change.name})
