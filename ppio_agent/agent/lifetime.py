"""The life of one invocation: its state, its clock, who waits for it, and how it ends.

The state machine is `states`; this is its shell. Whatever asks for the end comes here:
another request, the alarm at the deadline, the last reader that leaves, and user code,
when it is done.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Literal

from ppio_agent._util.alarm import alarms
from ppio_agent._util.aside import run_aside
from ppio_agent._util.clock import utc_now
from ppio_agent._util.threads import NoThreadError

from .context import CancelReason, RequestContext
from .failure import Failure
from .outcome import Outcome, imposed_error
from .progress import Progress, Step
from .states import Happening, InvocationState, Life

__all__ = ["Departure", "Lifetime"]

Departure = Literal["async", "cancel", "detach"]
"""What becomes of an invocation that nobody reads any more: nothing, it was never bound
to a reader; its end; or its end, unless somebody reads it again within a while."""

_log = logging.getLogger(__name__)

_BORN = Life()


class Lifetime(ABC):
    """What an invocation is apart from the code that it runs.

    Args:
        context: Its deadline and token are in force here.
        cancel_grace: Seconds user code has to react to a cancel before the invocation
            counts as cancelled without it.
        departure: What becomes of it when its last reader leaves; its maker is the
            first reader, unless it is `async`.
        detach_grace: Seconds a detached one goes on unread.
        describe: How an exception is told to callers.

    Attributes:
        progress: How far it has come, for those who wait.
        value: What a handler that does not stream returned, once it has.
        result_json: The same as JSON.
        error: What it ended with, if not with success.
        failure: How that is told.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        context: RequestContext,
        *,
        cancel_grace: float,
        departure: Departure,
        detach_grace: float,
        describe: Callable[[BaseException], Failure],
    ) -> None:
        self.context = context
        self.error: BaseException | None = None
        self.failure: Failure | None = None
        self.progress = Progress()
        self.value: Any = None
        self.result_json = b"null"
        self._cancel_grace = cancel_grace
        self._describe = describe
        self._departure = departure
        self._detach_grace = detach_grace
        # Guards everything below, all of which is written under it alone. Properties
        # read without it what is one reference, and final once it is set.
        self._lock = threading.Lock()
        self._life = _BORN
        self._readers = int(departure != "async")
        self._born = time.monotonic()
        self._ended: float | None = None
        self._started: float | None = None
        self._cancel: tuple[CancelReason, datetime] | None = None
        self._grace_ends: float | None = None
        self._unread_until: float | None = None
        self._slow_at: float | None = None
        self._on_slow: Callable[[], object] | None = None
        self._when_over: tuple[Callable[[Any], object], ...] = ()
        self._when_over_quick: tuple[Callable[[Any], object], ...] = ()
        self._settled = False  # user code has ended, and the owner knows

    @property
    def id(self) -> str:
        """Its id."""
        return self.context.invocation_id

    @property
    def state(self) -> InvocationState:
        """Where it stands."""
        return self._life.state

    @property
    def confirmed(self) -> bool:
        """Whether user code has ended, or never began."""
        return self._life.confirmed

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why its end was asked for; None if nobody asked."""
        return None if self._cancel is None else self._cancel[0]

    @property
    def refused(self) -> bool:
        """Whether it was ended before it began because there was no place for it."""
        return self._life.state is InvocationState.CANCELLED and self._cancel is None

    @property
    def slot_seconds(self) -> float | None:
        """Seconds since user code has its thread; None if it never got one."""
        return None if self._started is None else time.monotonic() - self._started

    @property
    def departure(self) -> Departure:
        """What becomes of it when its last reader leaves."""
        return self._departure

    @property
    def duration(self) -> float:
        """Seconds from its making to its end, or till now."""
        return (self._ended or time.monotonic()) - self._born

    def cancel(self, reason: CancelReason = "client") -> bool:
        """Ask for the end; acts at once on whatever waits in a way that can be woken.

        Returns:
            Whether this changed anything: not if it was asked before, or has ended.
        """
        return self._ask(reason)

    def _ask(self, reason: CancelReason, *, if_unread: bool = False) -> bool:
        happening = Happening.CANCEL_ASKED
        if not self._impose(happening, reason=reason, if_unread=if_unread):
            return False
        self._arm_if_possible()
        self.context.cancelled.fire(reason)
        return True

    def refuse(self, error: BaseException) -> bool:
        """End it before it has begun, because no slot came free.

        Returns:
            Whether it had not begun.
        """
        outcome = Outcome(happening=Happening.REFUSED, error=error)
        return self._note(Happening.REFUSED, outcome=outcome)

    def join(self) -> None:
        """Count one more reader, for whom a detached one goes on."""
        with self._lock:
            self._readers += 1
            self._unread_until = None

    def leave(self, reason: CancelReason = "disconnect") -> bool:
        """Count one reader less; the last one's departure has its consequence.

        Returns:
            Whether it was the last, and left before the end.
        """
        with self._lock:
            self._readers -= 1
            if self._readers > 0 or self._life.state.terminal:
                return False
            if self._departure == "detach":
                self._unread_until = time.monotonic() + self._detach_grace
        if self._departure == "detach":
            self._arm_if_possible()
        elif self._departure == "cancel":
            self._ask(reason, if_unread=True)
        return True

    def when_over(self, fn: Callable[[Any], object], *, quick: bool = False) -> None:
        """Call `fn(self)` once when it is terminal, or at once if it is already.

        Under no lock; what it raises is logged. When user code ends it, on that one's
        thread, before whoever waits is told. At a deadline or by a cancel, while user
        code may still run, on a thread of its own, perhaps after they are told: the
        one that ended it has other invocations to end.

        Args:
            fn: What to call.
            quick: It never blocks: it is always called on the thread that ended it,
                and before whoever waits is told.
        """
        with self._lock:
            if not self._life.state.terminal:
                if quick:
                    self._when_over_quick += (fn,)
                else:
                    self._when_over += (fn,)
                return
        self._call_safely(fn)

    def _call_safely(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:  # noqa: BLE001 - those who wait have to be told
            _log.exception("nobody took note of the end of invocation %s", self.id)

    def on_alarm(self) -> None:
        """React to slow user code, the deadline, or the end of a grace."""
        now = time.monotonic()
        deadline = self.context.deadline
        with self._lock:
            on_slow, self._slow_at = self._on_slow, None
            grace_over = self._grace_ends is not None and now >= self._grace_ends
            unread = self._unread_until is not None and now >= self._unread_until
            if unread:
                self._unread_until = None
        if deadline is not None and now >= deadline:
            self._expire()
        elif grace_over:
            self._impose(Happening.GRACE_OVER)
        elif unread:
            self._ask("disconnect", if_unread=True)
        self._arm()  # whatever came of that, a later instant may be left
        # Also when it was another instant: user code still runs, and whoever answers
        # for it has to know.
        if on_slow is not None:
            on_slow()

    def _arm_if_possible(self) -> None:
        """Have its time watched; what happens now happens all the same."""
        try:
            self._arm()
        except NoThreadError:
            _log.exception("the time of invocation %s is not watched", self.id)

    def _arm(
        self, on_slow: Callable[[], object] | None = None, quick: float = 0.0
    ) -> None:
        """Have its time watched; `on_slow` is to be called in `quick` seconds.

        Raises:
            NoThreadError: There is nobody to watch it.
        """
        # Under the lock, or of two threads the one that knew less might come last.
        with self._lock:
            if self._life.state.terminal:
                return
            if on_slow is not None:
                self._on_slow, self._slow_at = on_slow, time.monotonic() + quick
            first = self.context.deadline
            for instant in (self._grace_ends, self._slow_at, self._unread_until):
                if instant is not None and (first is None or instant < first):
                    first = instant
            if first is not None:
                alarms().set(self, first)

    def _expire(self) -> None:
        if self._impose(Happening.DEADLINE):
            self.context.cancelled.fire("deadline")

    def _impose(
        self,
        happening: Happening,
        *,
        reason: CancelReason | None = None,
        if_unread: bool = False,
    ) -> bool:
        """Take a step that is not user code's own, on a thread that others wait for."""
        if not self._note(happening, reason=reason, if_unread=if_unread):
            return False
        with self._lock:
            told: tuple[Callable[[Any], object], ...] = ()
            if self._life.state.terminal:  # and user code has not taken them
                told, self._when_over = self._when_over, ()
        for fn in told:
            run_aside(partial(self._call_safely, fn))
        return True

    def _note(
        self,
        happening: Happening,
        *,
        outcome: Outcome | None = None,
        reason: CancelReason | None = None,
        if_unread: bool = False,
    ) -> bool:
        """Take one step of the state machine; return whether anything changed."""
        # User code may be asked for the text of its exception, so not under the lock.
        error = None if outcome is None else outcome.error
        failure = None if error is None else self._describe(error)
        with self._lock:
            before = self._life
            life = before.after(happening)
            if life is before or (if_unread and self._readers > 0):
                return False
            if reason is not None:
                self._cancel = (reason, utc_now())
                self._grace_ends = time.monotonic() + self._cancel_grace
            self._life = life  # after the reason: `refused` looks at both, unlocked
            if happening is Happening.ENTERED:
                self._started = time.monotonic()
            ends = life.state.terminal and not before.state.terminal
            if ends:
                told = self._conclude_locked(outcome, failure)
        if ends:
            alarms().clear(self)
            for fn in told:
                self._call_safely(fn)
        if life.confirmed:
            self._settle()
        if life.state.terminal:
            self._publish(ends=ends, settled=life.confirmed)
        elif happening is Happening.ENTERED:
            self.progress.take(Step.STARTED)
        return True

    def _conclude_locked(
        self, outcome: Outcome | None, failure: Failure | None
    ) -> tuple[Callable[[Any], object], ...]:
        """Note what it ended with; return who is to be told of that here."""
        self._ended = time.monotonic()
        state, imposed = self._life.state, None
        if state is not InvocationState.SUCCEEDED:
            imposed = imposed_error(state, self.id, self.cancel_reason)
        if imposed is not None:
            self.error, self.failure = imposed, self._describe(imposed)
        elif outcome is not None:
            self.value, self.result_json = outcome.value, outcome.json
            self.error, self.failure = outcome.error, failure
        told, self._when_over_quick = self._when_over_quick, ()
        if self._when_over and outcome is not None:  # user code's own thread
            told, self._when_over = told + self._when_over, ()
        return told

    @abstractmethod
    def _settle(self) -> None:
        """Let go of what only user code needed, and tell the owner."""

    @abstractmethod
    def _publish(self, *, ends: bool, settled: bool) -> None:
        """Tell whoever waits or reads; only now, when the owner is up to date.

        Args:
            ends: The caller has made it terminal. The end is its to tell, also if
                user code ends, and is told of, meanwhile.
            settled: User code has ended, and the owner knows.
        """
