"""When a sandbox ends by itself: its time is over, or nobody uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .idle import IdleWatch
from .machine import Event, State
from .timers import Timer, Timers

__all__ = ["Due"]


class Due:
    """Has a sandbox looked at when an end of it may have come.

    Args:
        idle_timeout: Seconds without traffic that end it; 0 is no limit.
        timers: Its clock.
        monotonic: The clock of `timers`.
        background: Runs a function on another thread.
        look: Run there, one at a time; asks for `event`.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        *,
        idle_timeout: float,
        timers: Timers,
        monotonic: Callable[[], float],
        background: Callable[[Callable[[], object]], None],
        look: Callable[[], object],
    ) -> None:
        self._timers = timers
        self._monotonic = monotonic
        self._background = background
        self._look = look
        self.idle = IdleWatch(
            idle_timeout, timers=timers, monotonic=monotonic, on_idle=self._ask
        )
        # Guards everything below.
        self._lock = threading.Lock()
        self._timer: Timer | None = None
        self._asked = False
        self._cancelled = False

    def at(self, instant: float) -> None:
        """Let its time be over at `instant`, whatever was said before."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if not self._cancelled:
                self._timer = self._timers.at(instant, self._ask)

    def cancel(self) -> None:
        """Look no more. Idempotent."""
        with self._lock:
            self._cancelled = True
            if self._timer is not None:
                self._timer.cancel()
        self.idle.close()

    def event(self, state: State, ends: float) -> Event | None:
        """Return what is due now; for what is not due yet a timer is set.

        Args:
            state: Where it is now.
            ends: When its time is over.
        """
        if self._monotonic() >= ends:
            return Event.TTL
        if state is State.RUNNING and self.idle.over():
            return Event.IDLE
        return None

    def _ask(self) -> None:
        # On the thread of the timers, which must not wait. Once at a time, so that
        # what is asked for does not pile up behind a change that takes long.
        with self._lock:
            if self._asked:
                return
            self._asked = True
        self._background(self._answer)

    def _answer(self) -> None:
        with self._lock:
            self._asked = False
        self._look()
