"""Nonces in one SQLite file, shared by all processes of a machine."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.signing import MAX_NONCES, nonces_unavailable, too_many_nonces

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


class _Connection:
    """What one process uses of the file."""

    def __init__(self, path: Path) -> None:
        self.lock = threading.Lock()  # Guards db: one transaction.
        with opened(path) as self.db:
            self.db.executescript(_SCHEMA)


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
        _Connection(self._path).db.close()  # tells at once whether it can be used

    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        """Remember a nonce; see `NonceStore.claim`.

        Blocking: while others write, for 5 s at most.
        """
        try:
            own = self._connection()
            with own.lock, transaction(own.db):
                return self._claim_locked(own.db, key_id, nonce, keep)
        except (sqlite3.Error, ConfigurationError) as error:
            raise nonces_unavailable() from error

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
        if own is None:
            made = _Connection(self._path)
            own = self._connections.setdefault(pid, made)
            if own is not made:  # another thread was quicker
                made.db.close()
        return own

    def close(self) -> None:
        """Close this process's connection. Idempotent."""
        own = self._connections.get(os.getpid())
        if own is not None:
            with own.lock:
                own.db.close()
