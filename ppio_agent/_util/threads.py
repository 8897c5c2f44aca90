"""Named, bounded threads: one started alone, or a pool that grows on demand."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["PoolSaturatedError", "WorkerPool", "start_thread"]

_log = logging.getLogger(__name__)

_Job = Callable[[], object]


class PoolSaturatedError(RuntimeError):
    """Every thread of a pool is busy and no more work may wait."""


def start_thread(
    name: str, target: Callable[..., object], *args: object
) -> threading.Thread:
    """Start a daemon thread and return it.

    A daemon, so that a forgotten `close` never keeps a program from ending.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread


class _Worker:
    """One thread and the box in which it is handed its next job."""

    __slots__ = ("job", "name", "ready", "thread")

    def __init__(self, name: str) -> None:
        self.name = name
        self.job: _Job | None = None
        # Locked while the worker is parked. A bare lock hands over in a third of
        # the time of a Condition or a queue.
        self.ready = threading.Lock()
        self.ready.acquire()
        self.thread: threading.Thread | None = None


class WorkerPool:
    """Threads `<name>-<n>` made on demand, re-used last-in first-out, bounded.

    Jobs answer for their own errors; one that escapes is logged.

    Args:
        name: Prefix of the thread names.
        max_threads: Most threads at once.
        max_waiting: Most jobs waiting while all threads are busy.

    Thread safety: thread-safe. A forked child starts with an empty pool.
    """

    def __init__(self, name: str, *, max_threads: int, max_waiting: int = 0) -> None:
        self._name = name
        self._max_threads = max_threads
        self._max_waiting = max_waiting
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # Guards everything below.
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._waiting: deque[_Job] = deque()
        self._made = 0
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads exist."""
        return len(self._workers)

    @property
    def busy(self) -> int:
        """How many threads run a job."""
        return len(self._workers) - len(self._idle)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._waiting)

    def submit(self, fn: _Job) -> None:
        """Run `fn()` on a thread of the pool.

        Raises:
            PoolSaturatedError: All threads are busy and the waiting room is full.
            RuntimeError: The pool is closed.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the thread pool {self._name} is closed")
            if self._idle:
                worker = self._idle.pop()
                worker.job = fn
                worker.ready.release()
                return
            if len(self._workers) >= self._max_threads:
                if len(self._waiting) >= self._max_waiting:
                    raise PoolSaturatedError(
                        f"all {self._max_threads} threads of {self._name} are busy"
                        f" and {self._max_waiting} jobs wait"
                    )
                self._waiting.append(fn)
                return
            worker = self._add_worker_locked(fn)
        try:
            worker.thread = start_thread(worker.name, self._run, worker)
        except RuntimeError:
            with self._lock:
                self._workers.discard(worker)
            raise

    def _add_worker_locked(self, fn: _Job) -> _Worker:
        self._made += 1
        worker = _Worker(f"{self._name}-{self._made}")
        worker.job = fn
        self._workers.add(worker)
        return worker

    def _run(self, worker: _Worker) -> None:
        job = worker.job
        while job is not None:
            try:
                job()
            except BaseException:  # noqa: BLE001 - outermost frame of the thread
                _log.exception(
                    "a job of a thread pool failed", extra={"pool": self._name}
                )
            # Drop the reference: a parked thread must not keep a request alive.
            job = worker.job = None
            job = self._next_job(worker)

    def _next_job(self, worker: _Worker) -> _Job | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                self._workers.discard(worker)
                return None
            self._idle.append(worker)
        worker.ready.acquire()  # parked: submit() or close() lets it go on
        return worker.job

    def close(self, timeout: float | None = 5.0) -> bool:
        """Refuse new work, drop what waits, and wait for the threads to end.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Returns:
            Whether every thread has ended. Idempotent.
        """
        if self._pid != os.getpid():
            self._reset()
        with self._lock:
            self._closed = True
            self._waiting.clear()
            idle, self._idle = self._idle, []
            self._workers.difference_update(idle)
            threads = [w.thread for w in (*self._workers, *idle)]
        for worker in idle:
            worker.ready.release()
        end = None if timeout is None else time.monotonic() + timeout
        ended = True
        for thread in threads:
            if thread is None or thread is threading.current_thread():
                continue
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
            ended = ended and not thread.is_alive()
        return ended
