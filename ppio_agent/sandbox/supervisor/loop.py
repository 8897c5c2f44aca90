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
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

__all__ = ["READ", "WRITE", "Loop", "Timer", "show"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# Rounds that follow one another.
_MAX_FAILING = 100
_LONGEST_LOG = 1024 * 1024

OnReady = Callable[[int], None]


class Timer:
    """A call that is still to be made, unless it is cancelled."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], object]) -> None:
        self._call: Callable[[], object] | None = call

    @property
    def over(self) -> bool:
        """Whether the call has been made or cancelled."""
        return self._call is None

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

    An exception of a callback is shown on the standard error, and all else goes on:
    what one request or program leads to is no reason to end the others. Only when it
    happens in round after round, so that it would do so for ever, does it end `run`.

    Thread safety: one thread at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._stopped = False
        self._rounds = 0
        self._waits = False
        self._failed = False
        self._failing = 0

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
        # Noted by the handlers, for a flood of one signal may fill the pipe, which only
        # wakes the loop, and so hide another.
        came: set[int] = set()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in set(signums):
            signal.signal(signum, lambda signum, _: came.add(signum))

        def on_ready(_: int) -> None:
            os.read(reader, 4096)
            for _ in range(len(came)):
                # On its own, for what one of them leads to must not lose the others.
                self.call_later(0, partial(on_signal, came.pop()))

        self.watch(reader, READ, on_ready)

    def run(self) -> None:
        """Wait and call back until `stop`, which may have come before."""
        while not self._stopped:
            self._rounds += 1
            self._failing = self._failing + 1 if self._failed else 0
            self._failed = False
            self._fire_due()
            self._waits = True
            ready = self._selector.select(self._wait())
            self._waits = False
            for key, events in ready:
                # An earlier callback of this round may have closed or changed it.
                if self._selector.get_map().get(key.fd) is key:
                    self._call(partial(key.data, events))
        self._stopped = False

    def watch_itself(self, limit: float) -> None:
        """End the process if a callback has not returned for `limit` to twice that.

        What waits where nothing may wait would keep all for ever. Time in which the
        whole process stands still, as that of a paused machine, does not count.
        """
        seen, since = -1, 0.0

        def look(*_: object) -> None:
            nonlocal seen, since
            if self._waits or self._rounds != seen:
                seen, since = self._rounds, self._clock()
            elif self._clock() - since >= limit / 2:  # else it was somebody's signal
                os._exit(1)

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, limit, limit)

    def _call(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as exc:
            self._failed = True
            if self._failing >= _MAX_FAILING:
                raise
            show(exc)

    def stop(self) -> None:
        """Let `run` return after this round; the next one at once if none is."""
        self._stopped = True

    def _wait(self) -> float | None:
        if self._stopped:
            return 0.0
        while self._timers and self._timers[0][2].over:
            heapq.heappop(self._timers)  # nobody wakes up for it
        if not self._timers:
            return None
        return max(0.0, self._timers[0][0] - self._clock())

    def _fire_due(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            self._call(heapq.heappop(self._timers)[2].fire)


def show(exc: BaseException) -> None:
    """Write an exception that ends nothing to the standard error.

    Where that is a log, which is appended to, it begins anew when it is longer than
    1 MiB: nobody looks after it while the sandbox lives.
    """
    with suppress(OSError):
        if os.fstat(sys.stderr.fileno()).st_size > _LONGEST_LOG:
            os.ftruncate(sys.stderr.fileno(), 0)
    sys.excepthook(type(exc), exc, exc.__traceback__)
