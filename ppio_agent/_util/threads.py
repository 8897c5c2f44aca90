"""Named, bounded threads: one started alone, or a pool that grows on demand."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

from .fork import renew_in_child

__all__ = [
    "NoThreadError",
    "PoolClosedError",
    "PoolSaturatedError",
    "WorkerPool",
    "is_ctrl_c",
    "start_thread",
]

_log = logging.getLogger(__name__)

_Job = Callable[[], object]


class NoThreadError(RuntimeError):
    """The system starts no more threads."""


class PoolClosedError(RuntimeError):
    """A pool takes no work any more."""


class PoolSaturatedError(RuntimeError):
    """Every thread of a pool is busy and no more work may wait."""


def is_ctrl_c(error: BaseException) -> bool:
    """Whether an exception in this thread was meant for the program.

    Signals interrupt the main thread only: elsewhere somebody's code has raised it.
    """
    in_front = threading.current_thread() is threading.main_thread()
    return in_front and isinstance(error, KeyboardInterrupt)


def start_thread(
    name: str, target: Callable[..., object], *args: object
) -> threading.Thread:
    """Start a daemon thread and return it.

    A daemon, so that a forgotten `close` never keeps a program from ending.

    Raises:
        NoThreadError: The system starts no more.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise NoThreadError(f"the thread {name} cannot be started: {error}") from error
    return thread


class _Worker:
    """One thread and the box in which it is handed its next job."""

    __slots__ = ("job", "name", "ready", "thread")

    def __init__(self, name: str, job: _Job) -> None:
        self.name = name
        self.job: _Job | None = job
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
        max_threads: Most threads at once, at least 1.
        max_waiting: Most jobs waiting while all threads are busy.
        idle_timeout: Seconds after which a thread without a job ends; None: never.

    Thread safety: thread-safe. A forked child starts with an empty pool.
    """

    def __init__(
        self,
        name: str,
        *,
        max_threads: int,
        max_waiting: int = 0,
        idle_timeout: float | None = None,
    ) -> None:
        if max_threads < 1:
            raise ValueError("max_threads must be at least 1")
        self._name = name
        self._max_threads = max_threads
        self._max_waiting = max_waiting
        self._idle_timeout = -1.0 if idle_timeout is None else idle_timeout
        self._closed = False
        self._forget_threads()
        renew_in_child(self, WorkerPool._forget_threads)

    def _forget_threads(self) -> None:
        # Guards everything below and `_closed`.
        self._lock = threading.Lock()
        self._gone = threading.Condition(self._lock)  # a worker of a closed pool ended
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._guests: set[int] = set()  # callers' own threads, by their identity
        self._waiting: deque[_Job] = deque()
        self._idents: set[int] = set()  # of threads that may be in `blocking`
        self._blocked = 0  # workers in `blocking`: they are busy, and do not count
        self._made = 0

    @property
    def threads(self) -> int:
        """How many threads exist, those that are in `run_here` included."""
        return len(self._workers) + len(self._guests)

    @property
    def busy(self) -> int:
        """How many threads run a job, those of `run_here` included."""
        return len(self._workers) - len(self._idle) + len(self._guests)

    @property
    def waiting(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._waiting)

    def submit(self, fn: _Job) -> None:
        """Run `fn()` on a thread of the pool.

        Raises:
            PoolSaturatedError: All threads are busy and the waiting room is full.
            NoThreadError: One more thread is needed and cannot be started.
            PoolClosedError: The pool is closed.
        """
        with self._lock:
            if self._closed:
                raise PoolClosedError(f"the thread pool {self._name} is closed")
            if self._full_locked():
                if len(self._waiting) >= self._max_waiting:
                    raise PoolSaturatedError(
                        f"all {self._max_threads} threads of {self._name} are busy"
                        f" and {self._max_waiting} jobs wait"
                    )
                self._waiting.append(fn)
                return
            worker = self._hand_over_locked(fn)
        self._start(worker)

    def _full_locked(self) -> bool:
        return self.busy - self._blocked >= self._max_threads

    def withdraw(self, fn: _Job) -> bool:
        """Take a submitted job back; return whether it still waited for a thread."""
        with self._lock:
            try:
                self._waiting.remove(fn)
            except ValueError:
                return False
        return True

    def run_here(self, fn: _Job) -> bool:
        """Run `fn()` on the calling thread, in the place of one of the pool's.

        For callers that have a thread already: the pool's limit holds for both. `fn`
        may give the place back before it returns, see `free_place`.

        Returns:
            Whether there was a place; without one, or when closed, `fn` is not run.
        """
        with self._lock:
            if self._closed or self._full_locked():
                return False
            self._guests.add(threading.get_ident())
        try:
            fn()
        finally:
            self.free_place()
        return True

    def free_place(self) -> None:
        """Give back the place that the calling thread has by `run_here`, if any."""
        me = threading.get_ident()
        if me not in self._guests:
            return
        with self._lock:
            self._guests.discard(me)
            if self._closed:
                self._gone.notify_all()
        self._use_place()

    @contextlib.contextmanager
    def blocking(self, most: int) -> Iterator[bool]:
        """Let another job have the place of this one, which is about to wait.

        For threads of the pool; for others, and within itself, it does nothing.

        Args:
            most: Most threads at once, those that wait so included.

        Returns:
            A context, whether there was a place for another thread.
        """
        me = threading.get_ident()
        with self._lock:
            ours = me in self._idents
            granted = not ours or len(self._workers) < most
            if ours and granted:
                self._idents.discard(me)
                self._blocked += 1
        if not (ours and granted):
            yield granted
            return
        self._use_place()
        try:
            yield True
        finally:
            with self._lock:
                self._blocked -= 1
                self._idents.add(me)

    def _use_place(self) -> None:
        """Have a thread for a job that waits, since there may be a place for it."""
        worker, job = None, None
        with self._lock:
            if self._waiting and not self._full_locked():
                job = self._waiting.popleft()
                worker = self._hand_over_locked(job)
        try:
            self._start(worker)
        except NoThreadError as error:
            _log.warning("a job of %s goes on waiting: %s", self._name, error)
            with self._lock:
                if job is not None and not self._closed:
                    self._waiting.appendleft(job)

    def _hand_over_locked(self, fn: _Job) -> _Worker | None:
        """Give a job to a parked thread; else return the one that is to be started."""
        if self._idle:
            worker = self._idle.pop()
            worker.job = fn
            worker.ready.release()
            return None
        self._made += 1
        worker = _Worker(f"{self._name}-{self._made}", fn)
        self._workers.add(worker)
        return worker

    def _start(self, worker: _Worker | None) -> None:
        # Registered, so that close() waits for it, and started without the lock, for
        # which finished workers would have to wait and so not be found idle.
        if worker is None:
            return
        try:
            start_thread(worker.name, self._run, worker)
        except RuntimeError:
            self._discard(worker)
            raise

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._workers.discard(worker)
            self._gone.notify_all()

    def _run(self, worker: _Worker) -> None:
        worker.thread = threading.current_thread()
        job = worker.job
        me = threading.get_ident()
        self._idents.add(me)
        try:
            while job is not None:
                try:
                    job()
                except BaseException:  # noqa: BLE001 - the thread's outermost frame
                    _log.exception(
                        "a job of a thread pool failed", extra={"pool": self._name}
                    )
                # Drop the references: a parked thread keeps no request alive.
                job = worker.job = None
                job = self._next_job(worker)
        finally:
            self._idents.discard(me)
            self._discard(worker)

    def _next_job(self, worker: _Worker) -> _Job | None:
        with self._lock:
            # After `blocking` there may be more busy threads than places: it makes way.
            if self._waiting and self.busy - self._blocked <= self._max_threads:
                return self._waiting.popleft()
            if self._closed:
                return None
            self._idle.append(worker)
            # `abandon` takes no lock: if it came by just before, nobody else will.
            self._drain_if_closed()
        # Parked: submit() or close() lets it go on.
        while not worker.ready.acquire(timeout=self._idle_timeout):
            with self._lock:
                if worker in self._idle:
                    self._idle.remove(worker)
                    return None
        return worker.job

    def close(self, timeout: float | None = 5.0, *, drop: bool = True) -> bool:
        """Refuse new work, drop what waits, and wait for the threads to end.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.
            drop: Whether jobs that wait for a thread are dropped; else they are run.

        Returns:
            Whether every thread has ended. Idempotent.
        """
        me = threading.current_thread()
        with self._lock:
            self._closed = True
            if drop:
                self._waiting.clear()
            idle, self._idle = self._idle, []
            for worker in idle:
                worker.ready.release()
            others = [worker for worker in self._workers if worker.thread is not me]
            guests = self._guests - {me.ident}
            ended = self._gone.wait_for(
                lambda: (
                    self._workers.isdisjoint(others) and self._guests.isdisjoint(guests)
                ),
                timeout,
            )
        for worker in others if ended else ():
            if worker.thread is not None:
                worker.thread.join()  # it has nothing left to do
        return ended

    def abandon(self) -> None:
        """Refuse new work and let the threads end by themselves; wait for nothing.

        For finalisers, which run anywhere: it takes no lock. What waits is still run.
        """
        self._closed = True
        self._drain_if_closed()

    def _drain_if_closed(self) -> None:
        if self._closed:
            with contextlib.suppress(IndexError):
                while True:
                    self._idle.pop().ready.release()
