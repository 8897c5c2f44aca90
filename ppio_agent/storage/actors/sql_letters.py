"""Dead letters of actors in SQL. Each function is a part of one transaction."""

from __future__ import annotations

import re

from ppio_agent.wire.actors import ActorId

from .records import DeadLetter, RequestRecord
from .sql_tables import Row, Session, record_of, values_of, with_columns

__all__ = ["bury", "discard", "find", "page"]

_ID = re.compile("[0-7][0-9a-f]{15}")
_BURY = with_columns(
    "INSERT INTO actor_dead_letter (actor, <columns>, reason, at)"
    " VALUES (:actor, <values>, :reason, :at)"
)
_LETTER = with_columns("SELECT id, actor, reason, at, <columns> FROM actor_dead_letter")
_DISCARD = "DELETE FROM actor_dead_letter WHERE id = :id"


def bury(session: Session, letter: RequestRecord, reason: str) -> None:
    """Make a dead letter of a request as it ended, but with its parameters."""
    values = values_of(letter)
    values["reason"] = reason
    values["at"] = letter.finished_at
    session.run(_BURY, values)


def page(session: Session, limit: int, after: str | None) -> list[DeadLetter]:
    """Return dead letters, the oldest first."""
    number = 0 if after is None else _number_of(after)
    if number is None:
        return []
    statement = f"{_LETTER} WHERE id > :after ORDER BY id LIMIT :limit"
    rows = session.all(statement, {"after": number, "limit": limit})
    return [_letter_of(row) for row in rows]


def find(session: Session, id: str) -> DeadLetter | None:
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
    return int(id, 16) if _ID.fullmatch(id) else None


def _letter_of(row: Row) -> DeadLetter:
    id, actor, reason, at, *columns = row
    request = record_of(ActorId.parse(actor), tuple(columns))
    return DeadLetter(f"{id:016x}", request, reason, at, request.attempt)
