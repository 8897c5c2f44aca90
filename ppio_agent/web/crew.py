"""Threads of one lane: few while the interpreter is the bottleneck, many while not.

Under one interpreter lock, more threads than two serve instant requests no faster:
they take the lock from each other (9,000 against 6,000 requests a second at 8
connections). Requests that block need a thread each. So a waiting request gets a
further thread at once if the process leaves its core idle, and otherwise only when it
has waited for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from ppio_agent._util.threads import PoolSaturatedError, WorkerPool

__all__ = ["Crew", "Load"]

_log = logging.getLogger(__name__)

_Job = Callable[[], object]

# Threads that are used whatever the load.
_EAGER = 2
# A request that waited so long gets a thread even when the process is busy, in seconds.
_PATIENCE = 0.02
# Seconds between two such threads.
_PAUSE = 0.01
# How long no thread is tried after the system had none, in seconds.
_RETRY_THREADS = 1.0


class Load:
    """Whether this process keeps the interpreter's one core busy, as of a moment ago.

    Args:
        clock: Monotonic seconds.
        cpu_clock: Seconds of processor time of the process.
        span: Least time between two looks, in seconds.

    Thread safety: thread-safe; a race costs one look.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.process_time,
        span: float = 0.002,
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._span = span
        self._seen = (clock(), cpu_clock())
        self._full = False

    def full(self) -> bool:
        """Tell whether the process used about one core since the last look."""
        now = self._clock()
        then, used_then = self._seen
        if now - then >= self._span:
            used = self._cpu_clock()
            # Well above one core, threads do not wait for the interpreter's lock.
            self._full = 0.8 < (used - used_then) / (now - then) < 1.5
            self._seen = (now, used)
        return self._full


class Crew:
    """A bounded queue of jobs and the threads that take from it.

    Args:
        name: Prefix of the thread names.
        max_threads: Most threads at once.
        max_waiting: Most jobs waiting while all these are busy.
        load: Shared by all crews of the process.
        clock: Monotonic seconds.

    Thread safety: thread-safe. A job's own error is logged.
    """

    def __init__(
        self,
        name: str,
        *,
        max_threads: int,
        max_waiting: int,
        load: Load,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_threads = max_threads
        self._max_jobs = max_threads + max_waiting
        self._load = load
        self._clock = clock
        self._pool = WorkerPool(name, max_threads=max_threads)
        # Guards everything below.
        self._lock = threading.Lock()
        # Since when each waits, and whether it may be handed over.
        self._jobs: deque[tuple[float, _Job, bool]] = deque()
        self._active = 0
        self._grown_at = 0.0
        self._hold_until = 0.0

    @property
    def threads(self) -> int:
        """How many threads exist."""
        return self._pool.threads

    @property
    def busy(self) -> int:
        """How many threads take jobs."""
        return self._active

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._jobs)

    def submit(self, job: _Job, *, movable: bool = False) -> None:
        """Run `job()` on a thread.

        Args:
            job: What to run.
            movable: Whether `hand_over` may give it away.

        Raises:
            PoolSaturatedError: All threads are busy and the queue is full.
        """
        with self._lock:
            if self._active + len(self._jobs) >= self._max_jobs:
                raise PoolSaturatedError(f"{len(self._jobs)} jobs wait already")
            self._jobs.append((self._clock(), job, movable))
            grow = self._active < min(_EAGER, self._max_threads)
            self._active += grow
        if grow:
            self._add()
        else:
            self.grow()

    def enter(self) -> bool:
        """Count the calling thread as one of the crew, for a job that it has itself.

        Returns:
            Whether there is a place, and nobody waits for it; then `leave` afterwards.
        """
        with self._lock:
            if self._jobs or self._active >= self._max_threads:
                return False
            self._active += 1
            return True

    def leave(self) -> None:
        """End what `enter` began."""
        with self._lock:
            self._active -= 1
        self.grow()

    def grow(self) -> None:
        """Add threads for waiting jobs, if that can help; call it now and then."""
        if not self._jobs or self._clock() < self._hold_until:
            return
        full = self._load.full()
        with self._lock:
            more = min(len(self._jobs), self._max_threads - self._active)
            if more > 0 and full:
                more = min(more, self._patient_growth_locked())
            self._active += max(0, more)
        for _ in range(more):
            self._add()

    def _patient_growth_locked(self) -> int:
        """Return how many threads may be added although the process is busy."""
        now = self._clock()
        if now - self._jobs[0][0] < _PATIENCE or now - self._grown_at < _PAUSE:
            return 0
        self._grown_at = now
        # Ever more: a process that has many blocking requests to begin is busy, too.
        return 1 + self._active // 4

    def hand_over(self, patience: float, take: Callable[[_Job], bool]) -> None:
        """Give movable jobs away that have waited too long while no thread is free.

        Args:
            patience: Seconds a job waits before.
            take: Called with each, the oldest first; false leaves it here.
        """
        while self._jobs and self._clock() >= self._hold_until:
            with self._lock:
                waiting = self._pop_stuck_locked(self._clock() - patience)
            if waiting is None:
                return
            if not take(waiting[1]):
                with self._lock:
                    self._jobs.appendleft(waiting)
                    self._hold_until = self._clock() + _RETRY_THREADS

    def _pop_stuck_locked(self, before: float) -> tuple[float, _Job, bool] | None:
        """Remove and return the oldest movable job that waits since `before`."""
        if self._active < self._max_threads:
            return None
        for index, waiting in enumerate(self._jobs):
            since, _, movable = waiting
            if since > before:
                return None
            if movable:
                del self._jobs[index]
                return waiting
        return None

    def _add(self) -> None:
        try:
            self._pool.submit(self._work)
        except RuntimeError as error:
            # Closed, or the system has no thread left: what waits is not lost, the
            # threads that are there come to it, and `grow` tries again.
            with self._lock:
                self._active -= 1
                self._hold_until = self._clock() + _RETRY_THREADS
            _log.warning("no thread can be added: %s", error)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._active -= 1
                    return
                _, job, _ = self._jobs.popleft()
            try:
                job()
            except BaseException:  # noqa: BLE001 - outermost frame of the thread
                _log.exception("a job of a lane failed")
            del job  # a waiting thread must not keep a request alive

    def close(self, timeout: float | None = 5.0) -> bool:
        """Drop what waits and end the threads; return whether all have ended."""
        with self._lock:
            self._jobs.clear()
        return self._pool.close(timeout)
