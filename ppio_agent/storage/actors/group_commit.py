"""Few transactions for the writes of many threads.

A thread that writes while nobody else does runs its work at once, with no other thread
in between. Those that come meanwhile queue; the first of them then runs the work of all
that wait, in one transaction, while the next queue up. Nobody waits for more to come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

__all__ = ["GroupCommit", "Job"]

_S = TypeVar("_S")
_T = TypeVar("_T")

_MOST_AT_ONCE = 64


class Job(Generic[_S]):
    """A piece of work, and what came of it.

    Attributes:
        work: Is called with what the transaction runs on.
        result: What it returned.
        error: Why nothing of it is kept; None if it is.
    """

    __slots__ = ("error", "leads", "result", "wake", "work")

    def __init__(self, work: Callable[[_S], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.wake = threading.Lock()  # Free once it leads, or is done.
        self.leads = True


class GroupCommit(Generic[_S]):
    """Runs the work of many threads, in the order in which they come.

    Args:
        run: Runs jobs in one transaction, and notes their results and errors. It is
            called by one thread at a time.

    Attributes:
        told: Is called with the number of jobs after each transaction, by the thread
            that made it; None: nobody is.

    Thread safety: thread-safe.
    """

    def __init__(self, run: Callable[[Sequence[Job[_S]]], None]) -> None:
        self._run = run
        self.told: Callable[[int], object] | None = None
        # Guards all below, and `leads` of those that wait.
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: deque[Job[_S]] = deque()

    def submit(self, work: Callable[[_S], _T]) -> _T:
        """Return what `work` returned, once it is kept.

        Raises:
            Exception: What it raised, or what the transaction failed with.

        Blocking: until the transactions before it and its own have ended.
        """
        job = Job(work)
        with self._lock:
            queued = self._busy
            self._busy = True
            if queued:
                job.leads = False
                job.wake.acquire()
                self._waiting.append(job)
        if queued:
            self._wait(job)
        if job.leads:
            self._lead(job)
        if job.error is not None:
            raise job.error
        return cast("_T", job.result)

    def _wait(self, job: Job[_S]) -> None:
        try:
            job.wake.acquire()
        except BaseException:  # by a signal, and nobody will be there to lead
            with self._lock:
                if job in self._waiting:
                    self._waiting.remove(job)
                leads, job.leads = job.leads, False
            if leads:
                self._hand_over()
            raise

    def _lead(self, job: Job[_S]) -> None:
        batch = [job]
        with self._lock:
            while self._waiting and len(batch) < _MOST_AT_ONCE:
                batch.append(self._waiting.popleft())
        for member in batch:
            member.error = InterruptedError("the transaction did not come to its end")
        try:
            self._run(batch)
            if self.told is not None:
                self.told(len(batch))
        finally:
            self._hand_over()
            for member in batch[1:]:
                member.wake.release()

    def _hand_over(self) -> None:
        """Let the first that waits lead, if there is one."""
        with self._lock:
            if not self._waiting:
                self._busy = False
                return
            successor = self._waiting.popleft()
            successor.leads = True
        successor.wake.release()
