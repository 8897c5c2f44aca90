"""Invocations that run on threads of the client's: `submit` and its futures."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Literal

from ppio_agent._util.closing import Unshared
from ppio_agent._util.threads import WorkerPool
from ppio_agent.exceptions import InvocationCancelledError, PPIOAgentError
from ppio_agent.transport import CallHandle, CallScope, shielded, waiting
from ppio_agent.wire.models import InvocationResponse

__all__ = ["InvocationFuture", "Submissions"]

_THREADS = 32
_MOST_WAITING = 1000

_Call = Callable[[], InvocationResponse]
_Job = Callable[[], None]


class InvocationFuture(Unshared, Future[InvocationResponse]):
    """An invocation that runs, or is going to; made by `AgentRuntimeClient.submit`.

    As in `concurrent.futures`, and so for `wait`, `as_completed` and
    `asyncio.wrap_future`, with one thing more: `cancel` also ends a call that runs.

    Thread safety: thread-safe. A forked child cannot wait for its parent's.
    """

    _instead = "take its `result()`"

    def __init__(self) -> None:
        super().__init__()
        self._scope = CallScope()
        # Guards the two below. To the base class the call only runs when its end is
        # known, so that `cancel` of the base class is still possible until then.
        self._guard = threading.Lock()
        self._begun = False
        self._end: Literal["ended", "cancelled"] | None = None

    def cancel(self) -> bool:
        """Do not run the call; end it if it runs.

        Returns at once. A call that runs is aborted in its own thread, which asks the
        agent to cancel and kills the sandbox, if that was made for this call.

        Returns:
            Whether the future is cancelled: `cancelled` is true and `result` raises
            `concurrent.futures.CancelledError` from now on. False if the call had
            ended before.
        """
        if self._claim("cancelled"):
            self._scope.abort(InvocationCancelledError("the future was cancelled"))
            super().cancel()
            self.set_running_or_notify_cancel()  # tells `wait` and `as_completed`
        return self._end == "cancelled"

    def running(self) -> bool:
        """Return whether the call runs."""
        return self._begun and not self.done()

    def run(self, call: _Call) -> None:
        """Run the call and take its outcome, unless the future has ended before."""
        with self._guard:
            if self._end is not None:
                return
            self._begun = True
        try:
            # A scope that the caller is in ends what it waits for, not what it submits.
            with shielded(), self._scope.running():
                response = call()
        except BaseException as error:  # noqa: BLE001 - it is the future's
            if self._claim("ended"):
                self.set_running_or_notify_cancel()
                self.set_exception(error)
        else:
            if self._claim("ended"):
                self.set_running_or_notify_cancel()
                self.set_result(response)

    def end(self, error: PPIOAgentError) -> None:
        """End the future, and the call if it runs, with an error."""
        if self._claim("ended"):
            self._scope.abort(error)
            self.set_running_or_notify_cancel()
            self.set_exception(error)

    def _claim(self, end: Literal["ended", "cancelled"]) -> bool:
        """Be the one who says how the future ends; tell whether that is so."""
        with self._guard:
            if self._end is not None:
                return False
            self._end = end
            return True


class Submissions:
    """Runs the calls that a client was given by `submit`, 32 at a time.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        self._pool = WorkerPool(
            "ppio-client",
            max_threads=_THREADS,
            max_waiting=_THREADS,  # a thread that just found nothing to do is busy yet
        )
        # Guards all below.
        self._lock = threading.Lock()
        self._waiting: dict[InvocationFuture, _Job] = {}
        self._running: dict[InvocationFuture, int] = {}  # and in which thread
        self._threads = 0
        self._submitters: set[CallHandle] = set()
        self._closed_by: PPIOAgentError | None = None

    def submit(self, call: _Call) -> InvocationFuture:
        """Return a future of what `call` returns, in the caller's context.

        Blocking: while 1,000 calls wait for a thread, except in such a thread itself,
        where a callback of a future runs.

        Raises:
            ClientClosedError: The client was closed.
            NoThreadError: The system starts no thread.
        """
        future = InvocationFuture()
        job = partial(copy_context().run, future.run, call)
        if not self._admit(future, job):
            with waiting() as handle:
                self._wait_for_room(handle, future, job)
        future.add_done_callback(lambda _: self._forget(future))
        with self._lock:
            start = self._threads < _THREADS and bool(self._waiting)
            self._threads += start
        if start:
            self._start_thread(future)
        return future

    def _admit(self, future: InvocationFuture, job: _Job) -> bool:
        with self._lock:
            if self._closed_by is not None:
                raise copy.copy(self._closed_by)
            own = threading.get_ident() in self._running.values()
            if len(self._waiting) >= _MOST_WAITING and not own:
                return False
            self._waiting[future] = job
            return True

    def _wait_for_room(
        self, handle: CallHandle, future: InvocationFuture, job: _Job
    ) -> None:
        with self._lock:
            self._submitters.add(handle)
        try:
            while not self._admit(future, job):
                handle.wait(None)
        finally:
            with self._lock:
                self._submitters.discard(handle)

    def _start_thread(self, future: InvocationFuture) -> None:
        try:
            self._pool.submit(self._work)
        except RuntimeError:
            with self._lock:
                self._threads -= 1
                lost = not self._threads  # else another thread will come to it
                if lost:
                    self._waiting.pop(future, None)
            if lost:
                raise

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future = next(iter(self._waiting))
                job = self._waiting.pop(future)
                self._running[future] = threading.get_ident()
            self._tell_room()
            job()
            with self._lock:
                del self._running[future]
            del future, job  # a thread that has nothing to do keeps no answer alive

    def _forget(self, future: InvocationFuture) -> None:
        """Let go of a future that ended while it waited."""
        with self._lock:
            waited = self._waiting.pop(future, None) is not None
        if waited:
            self._tell_room()

    def _tell_room(self) -> None:
        if self._submitters:
            with self._lock:
                submitters = tuple(self._submitters)
            for submitter in submitters:
                submitter.wake()

    def close(self, error: PPIOAgentError, timeout: float | None) -> None:
        """End all futures with `error`, and wait for their threads to clean up."""
        with self._lock:
            self._closed_by = error
            futures = [*self._waiting, *self._running]
        for future in futures:
            future.end(copy.copy(error))
        self._tell_room()
        self._pool.close(timeout)
