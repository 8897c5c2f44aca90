"""From an event loop to threads that block, and back: nothing here knows of agents.

No loop is kept: each call remembers the one it came from, so one bridge serves loops
one after another, and several at a time in their threads.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Generic, TypeVar

from ppio_agent._util.threads import PoolClosedError, WorkerPool, start_thread
from ppio_agent.exceptions import InvocationCancelledError
from ppio_agent.transport import CallScope, shielded

__all__ = ["Bridge"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CALLS = 64
_CLOSINGS = 16
# A suspended coroutine is what waits for a thread, one entry for each, and the entry
# goes when the coroutine is cancelled: the callers' own tasks are the bound.
_EVERY_COROUTINE = sys.maxsize

_LET_GO = 1.0
_JOIN = 5.0


class Bridge:
    """Runs blocking code for coroutines, on threads of its own.

    What ends something (a session, a stream, the client) has other threads than the
    calls, so that it need not wait for 64 of them to be over.

    Thread safety: thread-safe. A forked child starts with no threads.
    """

    def __init__(self) -> None:
        self._calls = WorkerPool(
            "ppio-aio", max_threads=_CALLS, max_waiting=_EVERY_COROUTINE
        )
        self._closings = WorkerPool(
            "ppio-aio-close", max_threads=_CLOSINGS, max_waiting=_EVERY_COROUTINE
        )
        # A client made for one request and forgotten leaves no threads.
        for pool in (self._calls, self._closings):
            weakref.finalize(self, pool.abandon).atexit = False

    async def call(
        self,
        fn: Callable[[], _T],
        *,
        discard: Callable[[_T], object] | None = None,
        scope: CallScope | None = None,
    ) -> _T:
        """Run `fn` in a thread and return what it gives; wait for a thread if need be.

        If the task is cancelled, what runs is aborted, its thread is waited for by a
        second at most, and the cancellation goes on.

        Args:
            fn: What blocks. It sees the caller's context variables.
            discard: Gets what `fn` gives to a caller that is gone; may block.
            scope: By which `fn` is aborted; None makes one.
        """
        job = _Job(fn, discard=discard, scope=scope)
        self.start(job)
        try:
            await job.ended
        except asyncio.CancelledError:
            if self.withdraw(job):
                raise
            if not await job.let_go(abort=True):
                _submit(self._closings, job.put_away)
            raise
        return job.result()

    async def finish(self, fn: Callable[[], _T]) -> _T:
        """Run what ends something; a cancelled task leaves it to its thread."""
        job = self._start_closing(fn)
        try:
            await job.ended
        except asyncio.CancelledError:
            if not await job.let_go():
                job.put_away()
            raise
        return job.result()

    async def leave(self, fn: Callable[[], object]) -> None:
        """Run what ends something, in a task that was cancelled; wait for a second."""
        await self._start_closing(fn).let_go()

    async def close(self, fn: Callable[[], object]) -> None:
        """Run the end of everything, then end the threads.

        What is asked for afterwards runs on a thread of its own: it can only say that
        there is nothing left.
        """
        await self.finish(partial(self._close, fn))

    def _close(self, fn: Callable[[], object]) -> None:
        try:
            fn()
        finally:
            self._calls.close(_JOIN, drop=False)
            self._closings.close(_JOIN, drop=False)

    def start(self, job: Callable[[], object]) -> None:
        """Run a job on a thread of the calls, as soon as one is free."""
        _submit(self._calls, job)

    def withdraw(self, job: Callable[[], object]) -> bool:
        """Take back what `start` was given; return whether it had not begun."""
        return self._calls.withdraw(job)

    def _start_closing(self, fn: Callable[[], _T]) -> _Job[_T]:
        job = _Job(fn)
        _submit(self._closings, job)
        return job


def _submit(pool: WorkerPool, job: Callable[[], object]) -> None:
    try:
        pool.submit(job)
    except PoolClosedError:
        start_thread("ppio-aio-late", job)


class _Job(Generic[_T]):
    """One function on its way through a thread, for one coroutine.

    Attributes:
        ended: What the coroutine awaits; says nothing of the outcome, so that no
            error is ever left in a future.
    """

    def __init__(
        self,
        fn: Callable[[], _T],
        *,
        discard: Callable[[_T], object] | None = None,
        scope: CallScope | None = None,
    ) -> None:
        self._fn = fn
        self._discard = discard
        self._scope = scope or CallScope()
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._values: list[_T] = []
        self._error: BaseException | None = None
        # Guards the two below: whoever comes second puts the outcome away.
        self._lock = threading.Lock()
        self._is_over = False
        self._is_alone = False

    def __call__(self) -> None:
        self._context.run(self._run)
        try:
            self._loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop is closed, and with it the caller
            if not self._is_alone:
                self.put_away()

    def _run(self) -> None:
        try:
            with self._scope.running():
                self._values.append(self._fn())
        except BaseException as error:  # noqa: BLE001 - raised in the coroutine
            self._error = error
        with self._lock:
            self._is_over = True
            alone = self._is_alone
        if alone:
            self.put_away()

    def _wake(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def result(self) -> _T:
        """Return or raise what came of it, once."""
        error, self._error = self._error, None
        if error is None:
            return self._values.pop()
        try:
            raise error
        finally:
            del error  # its traceback holds this frame: no circle, no garbage

    async def let_go(self, *, abort: bool = False) -> bool:
        """Leave the job to its thread, after a second of waiting for it at most.

        Returns:
            Whether the thread puts the outcome away; False if it was over before, so
            that the caller has to.
        """
        with self._lock:
            self._is_alone = True
            if self._is_over:
                return False
        if abort:
            self._scope.abort(
                InvocationCancelledError("the task that waited for this was cancelled")
            )
        self.ended = self._loop.create_future()
        timer = self._loop.call_later(_LET_GO, self._wake)
        try:
            await self.ended
        finally:
            timer.cancel()
        return True

    def put_away(self) -> None:
        """Do with the outcome what has to be done when nobody takes it. May block."""
        if self._error is not None and self._scope.error is None:
            _log.warning("what a cancelled task had asked for failed: %s", self._error)
        self._error = None
        values, self._values = self._values, []
        if self._discard is not None:
            with shielded():
                for value in values:
                    self._discard(value)
