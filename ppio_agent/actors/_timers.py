"""The one thread of a runtime that knows when something is due.

Deadlines, timers, backoff and sweeps are functions in a heap; none has a thread while
it waits. What is due runs on a few threads beside, so that a store that is slow delays
no other deadline.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.threads import WorkerPool, start_thread
from ppio_agent.exceptions import RuntimeOverloadedError

__all__ = ["Timer", "Timers"]

_log = logging.getLogger(__name__)

_MOST = 100_000
_ASIDE = 4  # threads
_FEW = 64  # cancelled entries that are not worth a new heap


class Timer:
    """One function that is due at an instant; see `Timers.at`."""

    __slots__ = ("blocks", "fn", "instant", "owner")

    def __init__(
        self, owner: Timers, instant: float, fn: Callable[[], object], *, blocks: bool
    ) -> None:
        self.owner = owner
        self.instant = instant
        self.fn: Callable[[], object] | None = fn  # None: called, or cancelled
        self.blocks = blocks

    def cancel(self) -> bool:
        """Forget it; return whether it was neither called nor cancelled before."""
        return self.owner.cancel(self)


class Timers:
    """Calls functions at instants of `time.monotonic`, never before.

    The thread starts with the first one. Functions answer for their own errors; one
    that escapes is logged.

    Args:
        name: The threads are `<name>-1` and `<name>-aside-<n>`.
        most: So many may wait at once.

    Thread safety: thread-safe. A forked child has forgotten what its parent waits for.
    """

    def __init__(self, name: str = "ppio-actor-timer", *, most: int = _MOST) -> None:
        self._name = name
        self._most = most
        self._closed = False
        self._forget()
        renew_in_child(self, Timers._forget)

    def _forget(self) -> None:
        # Guards all below, and `Timer.fn`; signals what the thread has to know.
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._cancelled = 0  # in the heap
        self._thread: threading.Thread | None = None
        self._aside = WorkerPool(
            f"{self._name}-aside", max_threads=_ASIDE, max_waiting=self._most
        )

    def __len__(self) -> int:
        """How many wait for their instant."""
        return len(self._heap) - self._cancelled

    def at(
        self,
        instant: float,
        fn: Callable[[], object],
        *,
        blocks: bool = True,
        always: bool = False,
    ) -> Timer:
        """Call `fn()` once `instant` (of `time.monotonic`) has come.

        Args:
            instant: When; one that has passed is now.
            fn: What is called; never, if this was closed.
            blocks: Whether it may block, and so runs on a thread beside.
            always: Whether it is set also if as many wait as may.

        Raises:
            RuntimeOverloadedError: As many wait as may.
            NoThreadError: It is the first, and the thread cannot be started.
        """
        timer = Timer(self, instant, fn, blocks=blocks)
        with self._changed:
            if self._closed:
                timer.fn = None
                return timer
            if len(self) >= self._most and not always:
                raise RuntimeOverloadedError(
                    f"{self._most} timers and deadlines wait in this runtime: set fewer"
                )
            if self._thread is None:
                self._thread = start_thread(f"{self._name}-1", self._run)
            heapq.heappush(self._heap, (instant, next(self._order), timer))
            if self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def cancel(self, timer: Timer) -> bool:
        """Forget a timer of this object; see `Timer.cancel`."""
        with self._changed:
            if timer.fn is None:
                return False
            timer.fn = None
            self._cancelled += 1
            # They leave the heap in heaps, so that each costs a constant time.
            if self._cancelled > max(_FEW, len(self._heap) // 2):
                self._heap = [entry for entry in self._heap if entry[2].fn is not None]
                heapq.heapify(self._heap)
                self._cancelled = 0
        return True

    def close(self, timeout: float | None = 5.0) -> bool:
        """Forget all that waits, and wait for what has begun.

        Args:
            timeout: Seconds to wait; None waits for as long as it takes.

        Returns:
            Whether every thread has ended. Idempotent. Of its own threads the one that
            calls this is not waited for.
        """
        with self._changed:
            self._closed = True
            for _, _, timer in self._heap:
                timer.fn = None
            self._heap.clear()
            self._cancelled = 0
            self._changed.notify()
            thread = self._thread
        end = None if timeout is None else time.monotonic() + timeout
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
            if thread.is_alive():
                return False
        return self._aside.close(
            None if end is None else max(0.0, end - time.monotonic())
        )

    def _run(self) -> None:
        while (due := self._next_due()) is not None:
            self._call(*due)
            del due  # the wait for the next one keeps nothing alive

    def _call(self, fn: Callable[[], object], blocks: bool) -> None:  # noqa: FBT001 - as it is kept
        try:
            if blocks:
                self._aside.submit(fn)
                return
        except RuntimeError:  # no thread to be had: late is better than never
            if self._closed:
                return
        try:
            fn()
        except Exception:  # noqa: BLE001 - the others' instants must be kept
            _log.exception("what was due in a runtime of actors failed")

    def _next_due(self) -> tuple[Callable[[], object], bool] | None:
        with self._changed:
            while not self._closed:
                wait = self._wait_locked()
                if wait is None or wait > 0.0:
                    self._changed.wait(wait)
                    continue
                timer = heapq.heappop(self._heap)[2]
                fn, timer.fn = timer.fn, None
                if fn is not None:
                    return fn, timer.blocks
                self._cancelled -= 1
        return None

    def _wait_locked(self) -> float | None:
        """Return the seconds until the first is due; None: there is none."""
        if not self._heap:
            return None
        return min(self._heap[0][0] - time.monotonic(), threading.TIMEOUT_MAX)
