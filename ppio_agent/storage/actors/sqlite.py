"""Actors in one SQLite file, for all processes of a machine: the embedded default.

What threads of a process write at the same time goes into one transaction. With
``sync=normal`` what was committed survives the end of the process by any signal, with
``sync=full`` also a loss of power.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from ppio_agent._util.fork import hold_at_fork
from ppio_agent.exceptions import (
    ConfigurationError,
    ServiceUnavailableError,
    ValidationError,
)
from ppio_agent.storage.documents import sqlite_path
from ppio_agent.storage.sqlite import failure_of, opened, transaction
from ppio_agent.wire.actors import ActorId

from . import sql_workers as workers
from .group_commit import GroupCommit, Job
from .records import Hint, HintKind, Lease, Subscription
from .sql import SqlActorStore
from .sql_tables import prepare
from .worker_locks import WorkerLocks

__all__ = ["SqliteActorStore"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

_WORDS = {
    "text": "TEXT",
    "bytes": "BLOB",
    "serial": "INTEGER PRIMARY KEY",
    "lasting_serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "rowless": "WITHOUT ROWID",
}
# A turn changes a few rows, each on a page of its own. Mostly they are short.
_PAGE_SIZE = 2048
_CHECKPOINT_PAGES = 8000  # 16 MiB: for a checkpoint the disk is waited for
_MOST_TRIES = 3
_SYNC = {"normal": "NORMAL", "full": "FULL"}


class _Session:
    """One connection, within a transaction; see `sql_tables.Session`."""

    __slots__ = ("_execute",)

    def __init__(self, db: sqlite3.Connection) -> None:
        self._execute = db.execute

    def one(self, statement: str, values: Mapping[str, Any]) -> Any:
        """Run a statement and return its first row, or None."""
        return self._execute(statement, values).fetchone()

    def all(self, statement: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a statement and return its rows."""
        return self._execute(statement, values).fetchall()

    def run(self, statement: str, values: Mapping[str, Any]) -> int:
        """Run a statement and return how many rows it changed."""
        return self._execute(statement, values).rowcount

    def hint(self, kind: HintKind, actor_id: ActorId, message_id: str = "") -> None:
        """Do nothing: nobody could be told in another process."""


class _Silence:
    """The subscription to a store whose changes others see when they look."""

    def close(self) -> None:
        """Do nothing."""


class SqliteActorStore(SqlActorStore):
    """Keeps actors in the file `path`; its folder is made when absent.

    A worker that was killed is known to be dead at once to the others on its machine,
    by a lock on the file ``<path>.<worker>.lock``.

    Args:
        path: The file; not on a network file system.
        sync: `normal`, or `full` to survive a loss of power too.

    Raises:
        ConfigurationError: A newer version of this package wrote the file, it is
            damaged or cannot be opened, or `sync` is something else.
        OSError: The disk is full.

    Thread safety: thread-safe. A forked child must not use its parent's store.
    """

    def __init__(self, path: str | Path, *, sync: str = "normal") -> None:
        super().__init__()
        if sync not in _SYNC:
            raise ConfigurationError(
                f"sync={sync!r:.40} of the store {path} is neither 'normal' nor 'full'"
            )
        self._path = Path(path).absolute()
        self._locks = WorkerLocks(self._path)
        self._writing = threading.Lock()  # Guards _writer: one transaction.
        self._reading = threading.Lock()  # Guards _reader: one transaction.
        self._closed = False
        self._group = GroupCommit(self._run_jobs)
        with opened(self._path, page_size=_PAGE_SIZE) as self._writer:
            self._writer.execute(f"PRAGMA synchronous = {_SYNC[sync]}")
            self._writer.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
            with transaction(self._writer):
                prepare(_Session(self._writer), _WORDS, str(path))
            with opened(self._path) as self._reader:
                self._reader.execute("PRAGMA query_only = ON")
        self._file = self._found()
        self._is_told = False
        hold_at_fork(self, SqliteActorStore._transactions)

    @classmethod
    def from_url(cls, url: str) -> SqliteActorStore:
        """Open the store of a URL ``sqlite:///<path>[?sync=full]``.

        Raises:
            ConfigurationError: The path is missing, or an option is unknown.
            OSError: The disk is full.
        """
        base, _, query = url.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        path = sqlite_path(base)
        if path is None or options.keys() - {"sync"}:
            raise ConfigurationError(
                f"cannot open {url!r:.200}: write sqlite:///<path>, with ?sync=full to"
                " survive a loss of power"
            )
        return cls(path, **options)

    def now(self) -> float:
        """Return the time by the clock of this machine."""
        return time.time()

    def on_batch(self, told: Callable[[int], object]) -> None:
        """Tell how many writes were made in each transaction from now on.

        Args:
            told: Called with their number, by the thread that made them; it must be
                quick. One that was given before is told nothing more.
        """
        self._group.told = told

    def _transactions(self) -> tuple[threading.Lock, ...]:
        return (self._writing, self._reading)

    def _found(self) -> tuple[int, int] | None:
        """Return which file is at the path; None: there is none."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _check_file(self) -> None:
        """Return if the file is the one that was opened: else others use another one.

        Raises:
            OSError: It was removed, or replaced.
        """
        if self._found() == self._file or self._closed:
            return
        if not self._is_told:
            self._is_told = True
            _log.error("the file %s was removed or replaced while in use", self._path)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self._path))

    def _write(self, work: Callable[[_Session], _T]) -> _T:
        return self._group.submit(work)

    def _run_jobs(self, jobs: Sequence[Job[_Session]]) -> None:
        failed: dict[Job[_Session], Exception] = {}
        error = self._try(jobs, failed, apart=False)
        if failed and len(jobs) > 1:
            # Nothing is kept, and it was one of them: that one is to fail alone. On a
            # full disk it takes all with it, so that the others are tried once more.
            failed.clear()
            for _ in range(_MOST_TRIES):
                left = [job for job in jobs if job not in failed]
                error = self._try(left, failed, apart=True)
                if error not in failed.values():
                    break
        for job in jobs:
            # Each has one of its own: threads that raise one would change it at once.
            failure = failed.get(job, error)
            job.error = None if failure is None else self._failure(failure)

    def _try(
        self,
        jobs: Sequence[Job[_Session]],
        failed: dict[Job[_Session], Exception],
        *,
        apart: bool,
    ) -> Exception | None:
        """Run jobs in one transaction; return what it failed with, or None."""
        try:
            with self._writing:
                self._transact(jobs, failed, apart=apart)
        except Exception as error:  # noqa: BLE001 - raised where the work came from
            return error
        return None

    def _transact(
        self,
        jobs: Sequence[Job[_Session]],
        failed: dict[Job[_Session], Exception],
        *,
        apart: bool,
    ) -> None:
        db, session = self._writer, _Session(self._writer)
        try:  # without the generator of `transaction`
            if db.in_transaction:
                db.execute("ROLLBACK")
            self._check_file()
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                if apart:
                    db.execute("SAVEPOINT job")
                try:
                    job.result = job.work(session)
                except Exception as error:
                    failed[job] = error
                    if not apart or not db.in_transaction:  # all is lost with it
                        raise
                    db.execute("ROLLBACK TO job")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _read(self, work: Callable[[_Session], _T]) -> _T:
        db = self._reader
        with self._reading:
            try:
                try:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    self._check_file()
                    db.execute("BEGIN")
                    return work(_Session(db))
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except (sqlite3.Error, UnicodeEncodeError, OSError) as error:
                raise self._failure(error) from error

    def _failure(self, error: Exception) -> Exception:
        """Return what callers are told of an error, with the error as its cause."""
        if isinstance(error, UnicodeEncodeError):
            failure: Exception = ValidationError(
                "a text of an actor has half a character, which cannot be kept"
            )
        elif isinstance(error, OSError) and error.errno == errno.ESTALE:
            failure = ServiceUnavailableError(
                f"the file {self._path} was removed or replaced while it was in use:"
                " put it back, or start again"
            )
        elif self._closed and isinstance(error, sqlite3.ProgrammingError):
            failure = ServiceUnavailableError(f"the store {self._path} was closed")
        elif "locked" in str(error) and isinstance(error, sqlite3.OperationalError):
            failure = ServiceUnavailableError(
                f"the store {self._path} is written by other processes for too long:"
                " try it again"
            )
        elif type(error) in {sqlite3.OperationalError, sqlite3.DatabaseError}:
            failure = failure_of(self._path, error)
        else:
            return error
        failure.__cause__ = error
        return failure

    # Workers of other processes that were killed.

    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker; see `IActorStore.heartbeat`."""
        self._locks.hold(worker)
        return super().heartbeat(worker, ttl)

    def retire(self, worker: str) -> None:
        """Give back all leases of a worker, and forget it."""
        super().retire(worker)
        self._locks.drop(worker)

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        lease = super().claim(worker, actor_id)
        if lease is None and self._bury_workers():
            lease = super().claim(worker, actor_id)
        return lease

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns the worker may run; see `IActorStore.ready`."""
        self._bury_workers()
        return super().ready(worker, limit)

    def _bury_workers(self) -> bool:
        """Let the time of dead workers pass; return whether there were any."""
        known = self._read(workers.known)
        dead = [worker for worker in known if self._locks.is_dead(worker)]
        for worker in dead:
            self._write(partial(workers.bury, worker=worker))
            self._locks.remove(worker)  # only now: it is what others see it by
        return bool(dead)

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:  # noqa: ARG002 - nobody can be told
        """Return a subscription that tells nothing: other processes are looked for."""
        return _Silence()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._writing, self._reading:
            self._closed = True
            self._writer.close()
            self._reader.close()
        self._locks.close()
