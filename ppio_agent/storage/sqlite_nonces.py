"""Nonces in one SQLite file, shared by all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.signing import MAX_NONCES, too_many_nonces

from .outage import PATIENCE, Outage
from .sqlite import opened, transaction

__all__ = ["SqliteNonceStore"]

# Triggers count, since counting a hundred thousand rows takes longer than the rest.
_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS nonce (
    key_id TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires REAL NOT NULL,
    PRIMARY KEY (key_id, nonce)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS nonce_expires ON nonce (expires);
CREATE TABLE IF NOT EXISTS nonce_count (
    key_id TEXT PRIMARY KEY,
    kept INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS nonce_kept AFTER INSERT ON nonce BEGIN
    INSERT INTO nonce_count VALUES (new.key_id, 1)
        ON CONFLICT DO UPDATE SET kept = kept + 1;
END;
CREATE TRIGGER IF NOT EXISTS nonce_forgotten AFTER DELETE ON nonce BEGIN
    UPDATE nonce_count SET kept = kept - 1 WHERE key_id = old.key_id;
    DELETE FROM nonce_count WHERE key_id = old.key_id AND kept = 0;
END;
COMMIT;
"""
_START_PATIENCE = 5.0  # seconds; workers that start together make the file together


class _Connection:
    """What one process uses of the file, which is opened at the first nonce."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # Guards _db: one transaction.
        self._db: sqlite3.Connection | None = None

    @contextmanager
    def writing(self, deadline: Deadline) -> Iterator[sqlite3.Connection]:
        """Keep all that the block writes, or nothing if it fails.

        Raises:
            TimeoutError: Other threads write until the deadline.
            sqlite3.Error: Other processes do, or the file fails.
            ConfigurationError: The file cannot be opened.
        """
        if not self._lock.acquire(timeout=_left(deadline)):
            raise TimeoutError("other threads write to the file")
        try:
            if self._db is None:
                self._db = _prepared(self._path, deadline)
            _wait_until(deadline, self._db)
            with transaction(self._db):
                yield self._db
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            if self._db is not None:
                self._db.close()


def _prepared(path: Path, deadline: Deadline) -> sqlite3.Connection:
    with opened(path, busy=_left(deadline)) as db:
        _wait_until(deadline, db)
        db.executescript(_SCHEMA)
    return db


def _wait_until(deadline: Deadline, db: sqlite3.Connection) -> None:
    """Let the next statement wait no longer for what other processes write."""
    db.execute(f"PRAGMA busy_timeout = {_left(deadline) * 1000:.0f}")


def _left(deadline: Deadline) -> float:
    return deadline.left() or 0.0


class SqliteNonceStore:
    """Remembers nonces in the file `path`; its folder is made when absent.

    It may be made before a fork: each process opens the file at its first nonce.

    Args:
        path: The file.
        limit: Most nonces for one key.
        clock: A clock that all processes agree on, in seconds.

    Raises:
        ConfigurationError: The file is damaged or cannot be opened.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        limit: int = MAX_NONCES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = Path(path)
        self._limit = limit
        self._clock = clock
        # By process id. A parent's stays in it unused: closing it in the child would
        # take the parent's locks away.
        self._connections: dict[int, _Connection] = {}
        self._outage = Outage(sqlite3.Error, ConfigurationError, OSError)
        # Tells at once whether it can be used.
        _prepared(self._path, Deadline.after(_START_PATIENCE)).close()

    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        """Remember a nonce; see `NonceStore.claim`.

        Blocking: while others write, in this process or another, for 1 s at most; for
        a second after that was not enough, there is no waiting.
        """
        with (
            self._outage.guard(),
            self._connection().writing(Deadline.after(PATIENCE)) as db,
        ):
            return self._claim_locked(db, key_id, nonce, keep)

    def _claim_locked(
        self, db: sqlite3.Connection, key_id: str, nonce: str, keep: float
    ) -> bool:
        now = self._clock()
        db.execute("DELETE FROM nonce WHERE expires < ?", (now,))
        inserted = db.execute(
            "INSERT OR IGNORE INTO nonce VALUES (?, ?, ?)", (key_id, nonce, now + keep)
        ).rowcount
        if not inserted:
            return False
        (kept,) = db.execute(
            "SELECT kept FROM nonce_count WHERE key_id = ?", (key_id,)
        ).fetchone()
        if kept > self._limit:
            (oldest,) = db.execute(
                "SELECT expires FROM nonce WHERE key_id = ? ORDER BY expires LIMIT 1",
                (key_id,),
            ).fetchone()
            raise too_many_nonces(oldest - now)  # which takes it back
        return True

    def _connection(self) -> _Connection:
        pid = os.getpid()
        own = self._connections.get(pid)
        return own or self._connections.setdefault(pid, _Connection(self._path))

    def close(self) -> None:
        """Close this process's connection. Idempotent."""
        self._connection().close()
