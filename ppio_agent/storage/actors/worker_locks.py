"""Locks that tell whether a worker on this machine is alive: its end frees them."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ppio_agent._util.fork import renew_in_child

__all__ = ["WorkerLocks"]


class WorkerLocks:
    """The files ``<path>.<worker>.lock``, each locked as long as its worker lives.

    Args:
        path: What workers have in common.

    Thread safety: thread-safe.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # Guards _held.
        self._held: dict[str, int] = {}
        # A forked child would keep them locked for as long as it lives.
        renew_in_child(self, WorkerLocks._let_go)

    def hold(self, worker: str) -> None:
        """Say that a worker of this process lives; once is enough.

        Raises:
            OSError: The file cannot be made.
        """
        with self._lock:
            while worker not in self._held:
                fd = os.open(self._file(worker), os.O_RDWR | os.O_CREAT, 0o600)
                # Shared with whatever else lives for this worker. Who looks whether it
                # is free has it for a moment, and removes it then.
                fcntl.flock(fd, fcntl.LOCK_SH)
                if _is_at(fd, self._file(worker)):
                    self._held[worker] = fd
                else:
                    os.close(fd)

    def drop(self, worker: str) -> None:
        """Say that a worker of this process has ended. Idempotent."""
        with self._lock:
            fd = self._held.pop(worker, None)
            if fd is not None:
                self._file(worker).unlink(missing_ok=True)
                os.close(fd)

    def is_dead(self, worker: str) -> bool:
        """Return whether the process of a worker has ended without a word."""
        with self._looking_at(worker) as is_dead:
            return is_dead

    def remove(self, worker: str) -> None:
        """Remove the file of a worker that is dead, once that was seen to."""
        with self._looking_at(worker) as is_dead:
            if is_dead:
                self._file(worker).unlink()

    @contextmanager
    def _looking_at(self, worker: str) -> Iterator[bool]:
        """Tell whether a worker is dead; it does not begin anew within the block."""
        with self._lock:
            is_ours = worker in self._held
        try:
            fd = -1 if is_ours else os.open(self._file(worker), os.O_RDWR)
        except OSError:
            fd = -1  # nothing is known: it ended well, or is on another machine
        if fd < 0:
            yield False
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_dead = _is_at(fd, self._file(worker))
        except BlockingIOError:
            is_dead = False
        try:
            yield is_dead
        finally:
            os.close(fd)

    def close(self) -> None:
        """Free all. Their files stay, so that others see that they are free."""
        with self._lock:
            self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)

    def _file(self, worker: str) -> Path:
        name = f"{self._path.name}.{quote(worker, safe='')}.lock"
        return self._path.with_name(name)


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False
