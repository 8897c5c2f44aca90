"""What SQL stores keep of actors: tables, rows and the session that works on them.

Statements are constant texts that SQLite (3.35) and PostgreSQL both understand, with
parameters by name (``:name``). What only one of them needs stands in a comment that
the other leaves one: ``/*for update*/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.actors import ActorId, RequestStatus

from .records import Cancellation, HintKind, RequestRecord

__all__ = [
    "Row",
    "Session",
    "forget",
    "hold",
    "next_stamp",
    "prepare",
    "record_of",
    "stamp",
    "values_of",
    "with_columns",
]

Row = tuple[Any, ...]

_VERSION = 1
# Words in braces differ between databases. `seq` is the place of a pending request in
# its mailbox; `size` counts the bytes of its log, and of its result at the end; `token`
# is that of the lease under which its turn began last. A row of
# an actor begins with a token and, at its first write, an etag that are made of the
# time, so that they rise also if it was forgotten before. An index of what is pending
# has to be a better way to it than the primary key, or all that has ended is read.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS actor (
    actor {text} PRIMARY KEY,
    etag BIGINT NOT NULL DEFAULT 0,
    token BIGINT NOT NULL,
    worker {text},
    last_turn DOUBLE PRECISION,
    expires_at DOUBLE PRECISION
) {rowless};
CREATE INDEX IF NOT EXISTS actor_by_worker ON actor (worker)
    WHERE worker IS NOT NULL;
CREATE INDEX IF NOT EXISTS actor_by_expiry ON actor (expires_at)
    WHERE expires_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS actor_state (
    actor {text} NOT NULL,
    key {text} NOT NULL,
    value {bytes} NOT NULL,
    PRIMARY KEY (actor, key)
);
CREATE TABLE IF NOT EXISTS actor_request (
    actor {text} NOT NULL,
    seq BIGINT NOT NULL,
    size BIGINT NOT NULL,
    token BIGINT,
    spared BIGINT NOT NULL DEFAULT 0,
    {columns},
    PRIMARY KEY (actor, message_id)
) {rowless};
CREATE INDEX IF NOT EXISTS actor_request_noted ON actor_request (cancel)
    WHERE status = 'pending' AND cancel IS NOT NULL;
CREATE INDEX IF NOT EXISTS actor_request_pending
    ON actor_request (actor, status, seq)
    WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS actor_request_deadline ON actor_request (deadline)
    WHERE status = 'pending' AND deadline IS NOT NULL;
CREATE INDEX IF NOT EXISTS actor_request_ended ON actor_request (finished_at, size)
    WHERE finished_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS actor_progress (
    actor {text} NOT NULL,
    message_id {text} NOT NULL,
    position BIGINT NOT NULL,
    data {bytes} NOT NULL,
    PRIMARY KEY (actor, message_id, position)
) {rowless};
CREATE TABLE IF NOT EXISTS actor_outbox (
    seq {serial},
    actor {text} NOT NULL,
    mailbox BIGINT NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    due DOUBLE PRECISION NOT NULL,
    tries BIGINT NOT NULL DEFAULT 0,
    {columns}
);
CREATE INDEX IF NOT EXISTS actor_outbox_due ON actor_outbox (due, seq);
CREATE TABLE IF NOT EXISTS actor_reminder (
    actor {text} NOT NULL,
    name {text} NOT NULL,
    due DOUBLE PRECISION NOT NULL,
    method {text} NOT NULL,
    params {bytes} NOT NULL,
    period DOUBLE PRECISION,
    count BIGINT,
    latest {text} NOT NULL DEFAULT '',
    PRIMARY KEY (actor, name)
) {rowless};
CREATE INDEX IF NOT EXISTS actor_reminder_due ON actor_reminder (due);
CREATE TABLE IF NOT EXISTS actor_dead_letter (
    id {lasting_serial},
    actor {text} NOT NULL,
    reason {text} NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    {columns}
);
CREATE TABLE IF NOT EXISTS actor_worker (
    id {text} PRIMARY KEY,
    expires_at DOUBLE PRECISION NOT NULL
) {rowless};
CREATE TABLE IF NOT EXISTS actor_owner (
    actor {text} PRIMARY KEY,
    owner {text} NOT NULL,
    seen_at DOUBLE PRECISION NOT NULL
) {rowless};
CREATE INDEX IF NOT EXISTS actor_owner_by_time ON actor_owner (seen_at);
CREATE TABLE IF NOT EXISTS actor_wait (
    waiter {text} PRIMARY KEY,
    target {text} NOT NULL
) {rowless}
"""
# What may be large comes last, where it is in nobody's way.
_RECORD = """
    message_id {text} NOT NULL,
    method {text} NOT NULL,
    digest {bytes} NOT NULL,
    sender {text} NOT NULL,
    chain {text} NOT NULL,
    traceparent {text} NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    deadline DOUBLE PRECISION,
    status {text} NOT NULL,
    attempt BIGINT NOT NULL,
    started_at DOUBLE PRECISION,
    finished_at DOUBLE PRECISION,
    evicted BIGINT NOT NULL,
    position BIGINT NOT NULL,
    cancel {text},
    params {bytes} NOT NULL,
    data {bytes} NOT NULL
"""
_META = """
CREATE TABLE IF NOT EXISTS actor_meta (
    name {text} PRIMARY KEY,
    value BIGINT NOT NULL
)
"""
_KNOWN_VERSION = "SELECT value FROM actor_meta WHERE name = 'schema_version'"
_SET_VERSION = (
    "INSERT INTO actor_meta (name, value) VALUES ('schema_version', :version)"
    " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)
_HOLD = "SELECT etag FROM actor WHERE actor = :actor /*for update*/"
_MAKE = (
    "INSERT INTO actor (actor, token) VALUES (:actor, :stamp)"
    " ON CONFLICT (actor) DO NOTHING"
)
_FORGET = (
    "DELETE FROM actor WHERE actor = :actor AND worker IS NULL"
    " AND NOT EXISTS (SELECT 1 FROM actor_request WHERE actor = :actor)"
    " AND NOT EXISTS (SELECT 1 FROM actor_state WHERE actor = :actor)"
    " AND NOT EXISTS (SELECT 1 FROM actor_reminder WHERE actor = :actor)"
)

_COLUMNS = (
    "message_id, method, params, digest, sender, chain, traceparent, created_at,"
    " deadline, status, attempt, started_at, finished_at, data, evicted, position,"
    " cancel"
)
_VALUES = ":" + _COLUMNS.replace(", ", ", :")

_STATUSES = {status.value: status for status in RequestStatus}


class Session(Protocol):
    """What works on the database within one transaction."""

    def one(self, statement: str, values: Mapping[str, Any]) -> Any:
        """Run a statement and return its first row, or None."""

    def all(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a statement and return its rows."""

    def run(self, statement: str, values: Mapping[str, Any]) -> int:
        """Run a statement and return how many rows it changed."""

    def hint(self, kind: HintKind, actor_id: ActorId, message_id: str = "") -> None:
        """Tell others so, once the transaction is committed."""


def prepare(session: Session, words: Mapping[str, str], where: str) -> None:
    """Make the tables that do not exist.

    Args:
        session: Of a transaction that no other one that does the same runs beside.
        words: `text`, `bytes`, `serial` and `lasting_serial` (a primary key that counts
            up; the latter never gives one again), `rowless` (what follows tables of
            small rows).
        where: The store, for people.

    Raises:
        ConfigurationError: A newer version of this package made them.
    """
    session.run(_META.format_map(words), {})
    found = session.one(_KNOWN_VERSION, {})
    if found is not None and found[0] > _VERSION:
        raise ConfigurationError(
            f"the store {where} has schema {found[0]} of actors, this version knows"
            f" {_VERSION}: upgrade ppio-agent, or use another one"
        )
    if found is not None and found[0] == _VERSION:
        return
    columns = _RECORD.format_map(words).strip()
    for statement in _SCHEMA.format(**words, columns=columns).split(";"):
        session.run(statement, {})
    session.run(_SET_VERSION, {"version": _VERSION})


def with_columns(statement: str) -> str:
    """Return a statement with the columns of a request written out.

    Args:
        statement: Has ``<columns>``, in the order of `RequestRecord`, and ``<values>``,
            the parameters that `values_of` gives for them.
    """
    return statement.replace("<columns>", _COLUMNS).replace("<values>", _VALUES)


def record_of(actor_id: ActorId, row: Row) -> RequestRecord:
    """Return the request that a row of `<columns>` is."""
    chain, cancel = row[5], row[16]
    return RequestRecord(
        actor_id,
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        tuple(chain.split("\n")) if chain else (),
        row[6],
        row[7],
        row[8],
        _STATUSES[row[9]],
        row[10],
        row[11],
        row[12],
        row[13],
        row[14] != 0,
        row[15],
        None if cancel is None else Cancellation(cancel),
    )


def values_of(record: RequestRecord) -> dict[str, Any]:
    """Return the parameters that stand for a request: `actor` and `<values>`."""
    cancel = record.cancel
    return {
        "actor": str(record.actor_id),
        "message_id": record.message_id,
        "method": record.method,
        "params": record.params,
        "digest": record.digest,
        "sender": record.sender,
        "chain": "\n".join(record.chain),
        "traceparent": record.traceparent,
        "created_at": record.created_at,
        "deadline": record.deadline,
        "status": record.status.value,
        "attempt": record.attempt,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "data": record.data,
        "evicted": int(record.evicted),
        "position": record.position,
        "cancel": None if cancel is None else cancel.value,
    }


def stamp(now: float) -> int:
    """Return a number that is above all that an actor was given at earlier times."""
    return int(now * 1e6)


def next_stamp(latest: int, now: float) -> int:
    """Return the number that follows `latest`; 0 stands for none."""
    return latest + 1 if latest else stamp(now)


def hold(session: Session, actor: str, now: float) -> int:
    """Keep other writers from an actor, which is made known; return its etag."""
    values = {"actor": actor, "stamp": stamp(now)}
    while True:
        row = session.one(_HOLD, values)
        if row is not None:
            return int(row[0])
        session.run(_MAKE, values)


def forget(session: Session, actor: str) -> bool:
    """Forget an actor of which nothing is kept and that nobody runs."""
    # Held, so that nobody adds to it what the statement does not see any more.
    values = {"actor": actor}
    return session.one(_HOLD, values) is not None and session.run(_FORGET, values) != 0
