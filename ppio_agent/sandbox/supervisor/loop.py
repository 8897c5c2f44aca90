"""One thread that waits for descriptors, timers and signals, and calls back.

The supervisor has a single thread: its children carry a signal that fires when the
*thread* that made them ends, and forking is only safe without other threads. asyncio
would do, but costs more to import than the whole supervisor.
"""

from __future__ import annotations

import heapq
import itertools
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable

__all__ = ["READ", "WRITE", "Loop", "Timer"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

OnReady = Callable[[int], None]


class Timer:
    """A call that is still to be made, unless it is cancelled."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Make no call. Idempotent."""
        self._call = None

    def fire(self) -> None:
        """Make the call once, unless cancelled."""
        call, self._call = self._call, None
        if call is not None:
            call()


class Loop:
    """Calls back when descriptors are ready and when timers are due.

    An exception of a callback ends `run`.

    Thread safety: one thread at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False

    def now(self) -> float:
        """Return the present instant of the loop's clock."""
        return self._clock()

    def watch(self, fd: int, events: int, on_ready: OnReady) -> None:
        """Call `on_ready(events)` whenever `fd` is ready; replaces an earlier watch.

        Args:
            fd: The descriptor.
            events: `READ`, `WRITE` or both; 0 stops watching.
            on_ready: Told which of the events are there.
        """
        if not events:
            self.unwatch(fd)
        elif fd in self._selector.get_map():
            self._selector.modify(fd, events, on_ready)
        else:
            self._selector.register(fd, events, on_ready)

    def unwatch(self, fd: int) -> None:
        """Watch a descriptor no longer; call before it is closed. Idempotent."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        """Call once in `delay` seconds."""
        timer = Timer(call)
        entry = (self._clock() + delay, next(self._order), timer)
        heapq.heappush(self._timers, entry)
        return timer

    def watch_signals(
        self, signums: Iterable[int], on_signal: Callable[[int], None]
    ) -> None:
        """Call `on_signal(number)` from the loop after each of these signals."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in signums:
            signal.signal(signum, lambda *_: None)

        def on_ready(_: int) -> None:
            for signum in set(os.read(reader, 4096)):
                on_signal(signum)

        self.watch(reader, READ, on_ready)

    def run(self) -> None:
        """Wait and call back until `stop`, which may have come before."""
        while not self._stopped:
            self._fire_due()
            for key, events in self._selector.select(self._wait()):
                # An earlier callback of this round may have closed or changed it.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(events)
        self._stopped = False

    def stop(self) -> None:
        """Let `run` return after this round; the next one at once if none is."""
        self._stopped = True

    def _wait(self) -> float | None:
        if self._stopped:
            return 0.0
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - self._clock())

    def _fire_due(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].fire()
