"""Requests that somebody in this process waits for, and how they are told of the end.

Waiters are woken by whoever ends the request here. Where other processes may end it,
they look at the store as well, at growing intervals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import RequestRecord
from ppio_agent.wire.actors import ActorId, ActorResponseMessage, RequestStatus
from ppio_agent.wire.json import decode_own

from ._answers import EVICTED
from ._timers import Timer

if TYPE_CHECKING:
    from ._turn import Turn

__all__ = ["Call", "Calls", "latch", "wait_on"]

_UNKNOWN = (
    b'{"error":"no such request is known","code":"request_not_found","retryable":false}'
)


def latch() -> threading.Lock:
    """Return a lock that is released when there is news.

    A bare lock wakes a thread quicker than a Condition does.
    """
    lock = threading.Lock()
    lock.acquire()
    return lock


class Call:
    """One request, as those who wait for it see it.

    Attributes:
        actor_id: Whose it is.
        message_id: Its id.
        status: The final one; None: it has not ended, as far as is known here.
        data: JSON of the result or the failure.
        position: How many steps its log has.
        error: Makes what waiters are told instead: the runtime stopped.
        senders: How many have it sent, or have sent it.
        timer: What waits for its deadline.
        listed: Whether `Calls` tells it of its end.
        doubtful: Whether it may have ended in another process.
        since: From when on it is known here, by `time.monotonic`.
        sender: The turn that sent it; None: it was not sent by one of this process.
    """

    # Of the class, as most calls leave them so: one is made for each request.
    status: RequestStatus | None = None
    data = b""
    position = 0
    error: Callable[[], PPIOAgentError] | None = None
    senders = 1
    timer: Timer | None = None
    listed = False
    doubtful = False
    sender: Turn | None = None
    # Of threads that wait for the end, and for the next step; None: there are none.
    ends: list[threading.Lock] | None = None
    steps: list[threading.Lock] | None = None
    told: tuple[Callable[[], object], ...] = ()

    def __init__(self, actor_id: ActorId, message_id: str) -> None:
        self.actor_id = actor_id
        self.message_id = message_id
        self.since = time.monotonic()

    @property
    def over(self) -> bool:
        """Whether there is nothing to wait for."""
        return self.status is not None or self.error is not None

    def response(self) -> ActorResponseMessage:
        """Return the final response, a new one each time; only when it is over."""
        if self.error is not None and self.status is None:
            raise self.error()  # one for each thread that raises it
        return ActorResponseMessage(
            self.message_id,
            sender_id=self.actor_id,
            status=self.status or RequestStatus.PENDING,
            data=decode_own(self.data),
            position=self.position,
        )


class Calls:
    """The calls of a runtime that have not ended.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        # Guards what `Call` says of its end, and its waiters.
        self._lock = threading.Lock()
        self._calls: dict[tuple[ActorId, str], Call] = {}
        self._error_of: Callable[[Call], PPIOAgentError] | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def listed(self, actor_id: ActorId, message_id: str) -> tuple[Call, bool]:
        """Return the call that is told of a request's end, and whether it is new."""
        call = Call(actor_id, message_id)
        call.listed = True
        known = self._calls.setdefault((actor_id, message_id), call)
        if known is not call:
            with self._lock:
                if known.listed:
                    known.senders += 1
                    return known, False
            return self.listed(actor_id, message_id)  # it was about to go
        if self._error_of is not None:
            self._abandon(call, self._error_of)
        return call, True

    def refused(self, call: Call) -> None:
        """Tell a call of nothing more, unless another one has sent the same."""
        with self._lock:
            call.senders -= 1
            if call.senders == 0:
                self._forget_locked(call)

    def forget(self, call: Call) -> None:
        """Tell a call of nothing more."""
        with self._lock:
            self._forget_locked(call)

    def _forget_locked(self, call: Call) -> None:
        call.listed = False
        key = (call.actor_id, call.message_id)
        if self._calls.get(key) is call:
            self._calls.pop(key, None)  # others take calls without the lock

    def of_actor(self, actor_id: ActorId) -> list[Call]:
        """Return the calls of one actor."""
        return [call for call in self.all() if call.actor_id == actor_id]

    def all(self) -> list[Call]:
        """Return all calls that have not ended."""
        return list(self._calls.values())

    def end(
        self,
        actor_id: ActorId,
        message_id: str,
        status: RequestStatus,
        data: bytes,
        position: int = 0,
    ) -> None:
        """Tell whoever waits for a request that it has ended."""
        call = self._calls.pop((actor_id, message_id), None)
        if call is not None:
            self.conclude(call, status, data, position)

    def end_as(self, record: RequestRecord) -> None:
        """Tell whoever waits for a request that it has ended, as the store says."""
        call = self._calls.pop((record.actor_id, record.message_id), None)
        if call is not None:
            self.conclude_as(call, record)

    def conclude(
        self, call: Call, status: RequestStatus, data: bytes, position: int
    ) -> None:
        """Note the end of a call that is perhaps not listed, and wake its waiters."""
        with self._lock:
            if call.status is None:
                call.data, call.position = data, position
                call.status = status  # the last: it is read without the lock
        self._wake_all(call)

    def conclude_as(self, call: Call, record: RequestRecord | None) -> None:
        """Note how a request has ended, as the store says; None: it knows of none."""
        if record is None:
            self.conclude(call, RequestStatus.NOT_FOUND, _UNKNOWN, 0)
        elif record.status.terminal:
            data = EVICTED if record.evicted else record.data or failure("unknown")
            self.conclude(call, record.status, data, record.position)

    def abandon(self, error_of: Callable[[Call], PPIOAgentError]) -> None:
        """Tell all waiters that the end will not be known here."""
        self._error_of = error_of  # first: those that are listed from now on see it
        for call in self.all():
            self._abandon(call, error_of)

    def _abandon(self, call: Call, error_of: Callable[[Call], PPIOAgentError]) -> None:
        with self._lock:
            call.error = partial(error_of, call)
            self._forget_locked(call)
        self._wake_all(call)

    def _wake_all(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        call.listed = False
        self._wake(call)
        if call.told:
            with self._lock:
                told, call.told = call.told, ()
            for fn in told:
                fn()

    def _wake(self, call: Call) -> None:
        if call.ends is None and call.steps is None:
            return  # who comes now looks at the request before it waits
        with self._lock:
            waiting = [*(call.ends or ()), *(call.steps or ())]
            call.ends = call.steps = None
        for lock in waiting:
            lock.release()

    def prune(self, before: float) -> list[Call]:
        """Forget calls that nobody waits for, of requests that may end elsewhere.

        Whoever wants to know of them later looks at the store.

        Args:
            before: Only those that have been known since before that.

        Returns:
            Those of which somebody is to be told, with no thread that looks.
        """
        promised = []
        for call in self.all():
            if call.since >= before:
                break  # they are in the order in which they came
            with self._lock:
                idle = not (call.ends or call.steps or call.timer)
                if idle and call.told:
                    promised.append(call)
                elif idle:
                    self._forget_locked(call)
        return promised

    def doubt(self, actor_id: ActorId, message_id: str) -> Call | None:
        """Have whoever waits for a request look at the store, where it may have ended.

        Returns:
            The call; None: nobody wants to know.
        """
        call = self._calls.get((actor_id, message_id))
        if call is not None:
            call.doubtful = True
            self._wake(call)
        return call

    def moved(self, actor_id: ActorId, message_id: str) -> None:
        """Tell whoever watches a request that it has taken a step."""
        call = self._calls.get((actor_id, message_id))
        if call is None or call.steps is None:
            return
        with self._lock:
            waiting, call.steps = call.steps, None
        for lock in waiting or ():
            lock.release()

    def on_end(self, call: Call, fn: Callable[[], object]) -> bool:
        """Call `fn()` at the end, on a thread that must not be held up.

        Returns:
            Whether it will be called: not if it is over, or is not listed any more.
        """
        with self._lock:
            if call.over or not call.listed:
                return False
            call.told = (*call.told, fn)
        return True

    def enter(self, call: Call, *, steps: bool = False) -> threading.Lock | None:
        """Return what is released at the end (or the next step); None: it is over.

        Whoever gets one looks at the request once more before it waits.
        """
        lock = latch()
        with self._lock:
            if call.over:
                return None
            if steps:
                call.steps = call.steps or []
                call.steps.append(lock)
            else:
                call.ends = call.ends or []
                call.ends.append(lock)
        return lock

    def leave(self, call: Call, lock: threading.Lock) -> None:
        """Wait no more."""
        with self._lock:
            if call.ends and lock in call.ends:
                call.ends.remove(lock)
            if call.steps and lock in call.steps:
                call.steps.remove(lock)


def wait_on(lock: threading.Lock, until: float | None, at_most: float) -> bool:
    """Wait for a latch till an instant of `time.monotonic`, not above `at_most` seconds.

    Returns:
        Whether it was released.
    """
    left = at_most if until is None else min(at_most, until - time.monotonic())
    return lock.acquire(timeout=max(0.0, min(left, threading.TIMEOUT_MAX)))
