"""Whether anybody still uses a sandbox."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .timers import Timer, Timers

__all__ = ["IdleWatch"]


class IdleWatch:
    """Tells when a sandbox has had no traffic for as long as it may.

    One timer, which is not touched by traffic: when it fires it is set again for the
    instant that the traffic since then allows. It never fires after that instant, so
    the end is exact.

    Args:
        limit: Seconds without traffic; 0 is no limit.
        timers: Its clock.
        monotonic: The clock of `timers`.
        on_idle: Called on the thread of `timers` when the limit has passed.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        limit: float,
        *,
        timers: Timers,
        monotonic: Callable[[], float],
        on_idle: Callable[[], object],
    ) -> None:
        self._limit = limit
        self._timers = timers
        self._monotonic = monotonic
        self._on_idle = on_idle
        # Guards everything below.
        self._lock = threading.Lock()
        self._open = 0
        self._last = 0.0
        self._timer: Timer | None = None

    def began(self) -> None:
        """Take note that an exchange with the sandbox is under way."""
        with self._lock:
            self._open += 1

    def ended(self) -> None:
        """Take note that an exchange is over."""
        with self._lock:
            self._open -= 1
            self._last = self._monotonic()

    def start(self) -> None:
        """Count from now."""
        with self._lock:
            self._last = self._monotonic()
            if self._limit:
                self._arm_locked()

    def stop(self) -> None:
        """Count no more. Idempotent."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def close(self) -> None:
        """Never count again. Idempotent."""
        with self._lock:
            self._limit = 0.0
        self.stop()

    def over(self) -> bool:
        """Return whether the limit has passed; if not, `on_idle` tells when it has."""
        with self._lock:
            if self._timer is None:
                return False
            passed = self._due_locked() <= self._monotonic()
            if not passed:
                self._arm_locked()
            return passed

    def _due_locked(self) -> float:
        # While an exchange is under way the limit passes that long from now at the
        # soonest.
        return self._limit + (self._monotonic() if self._open else self._last)

    def _arm_locked(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timers.at(self._due_locked(), self._fire)

    def _fire(self) -> None:
        if self.over():
            self._on_idle()
