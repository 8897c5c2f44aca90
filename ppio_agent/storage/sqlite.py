"""Documents in one SQLite file: the embedded default, which needs no server.

WAL with `synchronous=NORMAL`: a write survives the end of the process by any signal.
One connection and one lock: with one writer at a time anyway, further connections
would only add "database is locked".
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ConfigurationError, ConflictError, WireError
from ppio_agent.wire.json import decode_json, encode_json

from .documents import Change, Document, Put

__all__ = ["SqliteDocumentStore", "failure_of", "opened", "transaction"]

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS document (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    version INTEGER NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (kind, id)
)
"""
_BUSY_SECONDS = 5.0
_LARGEST_LOG = 4 << 20
_LOOK_EVERY = 0.01


class SqliteDocumentStore:
    """Keeps documents in the file `path`; its folder is made when absent.

    Raises:
        ConfigurationError: A newer version of this package wrote the file, or it is
            damaged or cannot be opened.
        OSError: The disk is full.

    Thread safety: thread-safe. A forked child must not use its parent's store.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()  # Guards _db: one statement or transaction.
        with opened(path) as self._db:
            self._prepare(path)

    def _prepare(self, path: str | Path) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > _SCHEMA_VERSION:
            raise ConfigurationError(
                f"the store {path} has schema {found}, this version knows"
                f" {_SCHEMA_VERSION}: upgrade ppio-agent, or use another file"
            )
        self._db.execute(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def get(self, kind: str, id: str, /) -> Document | None:
        """Return the document, or None if there is none."""
        with self._using():
            row = self._db.execute(
                "SELECT version, body FROM document WHERE kind = ? AND id = ?",
                (kind, id),
            ).fetchone()
        return None if row is None else _document(kind, id, *row)

    def scan(self, kind: str, /) -> tuple[Document, ...]:
        """Return every document of a kind, in the order of their ids."""
        with self._using():
            rows = self._db.execute(
                "SELECT id, version, body FROM document WHERE kind = ? ORDER BY id",
                (kind,),
            ).fetchall()
        return tuple(_document(kind, *row) for row in rows)

    def write(self, *changes: Change) -> None:
        """Make all changes at once; see `DocumentStore.write`."""
        encoded = [encode_json(c.body) if isinstance(c, Put) else None for c in changes]
        with self._using(), transaction(self._db):
            for change, body in zip(changes, encoded, strict=True):
                self._apply_locked(change, body)

    def _apply_locked(self, change: Change, body: bytes | None) -> None:
        key = (change.kind, change.id)
        row = self._db.execute(
            "SELECT version FROM document WHERE kind = ? AND id = ?", key
        ).fetchone()
        version = row[0] if row else 0
        if change.expect not in (None, version):
            raise ConflictError(
                f"{change.kind} {change.id} has version {version},"
                f" not {change.expect}: read it again"
            )
        if body is None:
            self._db.execute("DELETE FROM document WHERE kind = ? AND id = ?", key)
            return
        self._db.execute(
            "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)",
            (*key, version + 1, body),
        )

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                # Those of other kinds, as after `close`, are no fault of the disk.
                if type(error) not in {sqlite3.OperationalError, sqlite3.DatabaseError}:
                    raise
                raise failure_of(self._path, error) from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()


def _document(kind: str, id_: str, version: int, data: bytes) -> Document:
    """Return a document; one that is damaged is empty, and so keeps nobody out."""
    try:
        body = decode_json(data)
    except (WireError, TypeError, AttributeError):
        body = None
    if not isinstance(body, dict):
        _log.warning("the document %s %s is damaged: it is read as empty", kind, id_)
        body = {}
    return Document(kind, id_, version, body)


@contextmanager
def opened(
    path: str | Path, *, busy: float = _BUSY_SECONDS, page_size: int = 4096
) -> Iterator[sqlite3.Connection]:
    """Open a file, which stays open if the block, which prepares it, succeeds.

    The file and its folder are made when absent, for this user alone: what is kept may
    be secret.

    Args:
        path: The file.
        busy: Seconds that each statement waits while others write.
        page_size: Bytes of a page, if the file is made: each page that a transaction
            changes is written to the log as a whole.

    Raises:
        ConfigurationError: It is damaged or cannot be opened.
        OSError: The disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Files beside it, such as the log, get the mode of this one. One that is there
        # is not touched: closing it would let go of this process's locks on it.
        with suppress(FileExistsError):
            path.touch(mode=0o600, exist_ok=False)
        db = sqlite3.connect(
            path, timeout=busy, isolation_level=None, check_same_thread=False
        )
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    try:
        db.execute(f"PRAGMA page_size = {page_size:d}")
        _use_wal(db, busy)
        db.execute("PRAGMA synchronous = NORMAL")
        # The log stays as large as one great transaction has made it otherwise.
        db.execute(f"PRAGMA journal_size_limit = {_LARGEST_LOG:d}")
        yield db
    except sqlite3.Error as error:
        db.close()
        raise _unusable(path, error) from error
    except BaseException:
        db.close()
        raise


def _use_wal(db: sqlite3.Connection, busy: float) -> None:
    """Write to a log, also if others make the same file at this moment.

    Of those who change a new file's mode at once SQLite lets one wait for the other, and
    tells the others at once that the file is locked, whatever its time limit.
    """
    deadline, wait = Deadline.after(busy), threading.Event().wait
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or deadline.expired:
                raise
            wait(_LOOK_EVERY)
        else:
            return


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Keep all that the block writes, or nothing if it fails."""
    try:  # from here on: a signal may raise an exception as BEGIN returns
        if db.in_transaction:  # another one came while the first was seen to
            db.execute("ROLLBACK")
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def failure_of(path: Path, error: Exception) -> OSError:
    """Return what the system would say: the statement is right, the disk is not."""
    # What it maps into memory fails otherwise on a disk that is full.
    is_full = "disk I/O" in str(error) and not os.statvfs(path.parent).f_bavail
    if is_full or "is full" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    said = str(error)
    if not isinstance(error, sqlite3.OperationalError):
        said = f"it is damaged ({error}): stop what uses it, and move it away"
    return OSError(errno.EIO, said, str(path))


def _unusable(path: Path, error: Exception) -> ConfigurationError | OSError:
    failure = error
    if isinstance(error, sqlite3.OperationalError):
        failure = failure_of(path, error)
    if isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return failure
    return ConfigurationError(
        f"the store {path} cannot be used ({error}): if it is damaged, move it away"
        " and a new one is made"
    )
