"""Few transactions for the writes of many threads.

A thread that writes while nobody else does runs its work at once, with no other thread
in between. Those that come meanwhile queue; whoever leads next runs the work of all
that wait, in one transaction, while others queue up. Nobody waits for more to come.

A signal may raise an exception in a thread between any two steps. Who leads is therefore
whoever has a lock that its block frees whatever happens, and being woken is no more than
a reason to look: a call that was lost costs others some time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

__all__ = ["GroupCommit", "Job"]

_log = logging.getLogger(__name__)

_S = TypeVar("_S")
_T = TypeVar("_T")

_MOST_AT_ONCE = 64
_LOOK_EVERY = 0.5  # seconds: as long others wait for one who was interrupted


class Job(Generic[_S]):
    """A piece of work, and what came of it.

    Attributes:
        work: Is called with what the transaction runs on.
        result: What it returned.
        error: Why nothing of it is kept; None if it is.
        begun: It is in a transaction, or was; no other one runs it.
        done: The transaction has ended.
        wake: Is freed for who waits for it, who then looks.
    """

    __slots__ = ("begun", "done", "error", "result", "wake", "work")

    def __init__(self, work: Callable[[_S], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = InterruptedError(
            "the transaction did not come to its end"
        )
        self.begun = False
        self.done = False
        self.wake = threading.Lock()
        self.wake.acquire()


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
        self._leading = threading.Lock()  # Of who runs what waits.
        self._waiting: deque[Job[_S]] = deque()

    def submit(self, work: Callable[[_S], _T]) -> _T:
        """Return what `work` returned, once it is kept.

        Raises:
            Exception: What it raised, or what the transaction failed with.

        Blocking: until the transactions before it and its own have ended.
        """
        job = Job(work)
        try:
            self._waiting.append(job)
            while not job.done:
                if self._may_lead(job) or not job.wake.acquire(timeout=_LOOK_EVERY):
                    self._lead(job)
        except BaseException:  # by a signal
            with suppress(ValueError):
                self._waiting.remove(job)
            self._call_next()  # it may have been this one that was called
            raise
        if job.error is not None:
            raise job.error
        return cast("_T", job.result)

    def _may_lead(self, job: Job[_S]) -> bool:
        """Whether it came first: were it anyone, few would be there to go together."""
        try:
            return self._waiting[0] is job and not self._leading.locked()
        except IndexError:
            return False

    def _lead(self, job: Job[_S]) -> None:
        """Run what waits, unless somebody else has run the job meanwhile."""
        batch: list[Job[_S]] = []
        try:
            with self._leading:
                if not job.begun:
                    self._begin(batch)
                    self._run(batch)
                # Nobody runs it now: it has ended, even if that was not said.
                job.done = job.begun
        finally:
            self._call_next()
            for member in batch:
                member.done = True
                if member is not job:
                    _call(member)
        if self.told is not None and batch:
            try:
                self.told(len(batch))
            except Exception:  # noqa: BLE001 - what was written is kept nevertheless
                _log.exception("what was told of a transaction failed")

    def _begin(self, batch: list[Job[_S]]) -> None:
        while self._waiting and len(batch) < _MOST_AT_ONCE:
            job = self._waiting[0]
            if not job.begun:
                job.begun = True
                batch.append(job)
            self._waiting.popleft()

    def _call_next(self) -> None:
        """Let the first that waits look whether it leads."""
        if self._waiting and not self._leading.locked():
            with suppress(IndexError):  # somebody leads already
                _call(self._waiting[0])


def _call(job: Job[Any]) -> None:
    with suppress(RuntimeError):  # it was called, and has not looked yet
        job.wake.release()
