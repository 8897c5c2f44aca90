"""Things to be done at an instant: one heap, one thread."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from ppio_agent._util.threads import start_thread

__all__ = ["Timer", "Timers"]

_log = logging.getLogger(__name__)

_COMPACT_FROM = 64


class Timer:
    """One thing to be done; `cancel` forgets it."""

    __slots__ = ("action", "instant")

    def __init__(self, instant: float, action: Callable[[], object]) -> None:
        self.instant = instant
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        """Do nothing when the instant comes. Idempotent."""
        self.action = None


class Timers:
    """Calls functions at instants of a monotonic clock, on one thread, in order.

    Actions must be quick: a slow one delays the others.

    Args:
        name: Name of the thread, which is started with the first timer.
        clock: The clock; seconds.

    Thread safety: thread-safe.
    """

    def __init__(
        self, name: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._clock = clock
        # Guards everything below; notified when the next instant may have changed.
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def at(self, instant: float, action: Callable[[], object]) -> Timer:
        """Call `action` at `instant`, or soon if that has passed."""
        timer = Timer(instant, action)
        with self._changed:
            if self._closed:
                return timer
            self._compact_locked()
            heapq.heappush(self._heap, (instant, next(self._count), timer))
            if self._thread is None:
                self._thread = start_thread(self._name, self._run)
            if self._heap[0][2] is timer:  # else it wakes up in time by itself
                self._changed.notify()
        return timer

    def _compact_locked(self) -> None:
        if len(self._heap) < _COMPACT_FROM:
            return
        live = [entry for entry in self._heap if entry[2].action is not None]
        if len(live) * 2 < len(self._heap):
            heapq.heapify(live)
            self._heap = live

    def _run(self) -> None:
        while True:
            action = self._next_action()
            if action is None:
                return
            try:
                action()
            except Exception:  # noqa: BLE001 - outermost frame of an action
                _log.exception("a timer's action failed")

    def _next_action(self) -> Callable[[], object] | None:
        """Wait for and take the next action; None when closed."""
        with self._changed:
            while not self._closed:
                if not self._heap:
                    self._changed.wait()
                    continue
                instant, _, timer = self._heap[0]
                wait = instant - self._clock()
                if wait > 0 and timer.action is not None:
                    self._changed.wait(wait)
                    continue
                action = heapq.heappop(self._heap)[2].action
                if action is not None:
                    return action
        return None

    def close(self, timeout: float = 5.0) -> None:
        """Forget all timers and end the thread. Idempotent."""
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
