"""The loop that waits for sockets: `epoll` where there is one, else waitress's own.

Waitress asks every socket before each wait what it is interested in, and each worker
wakes it, through a pipe, after each request. With one-shot `epoll` a worker arms its
connection itself, and the loop wakes up for what clients send and nothing else.
"""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from waitress import wasyncore

__all__ = ["EpollLoop", "Loop", "new_loop"]

_LONGEST_WAIT = 1.0
_SHORT_WAIT = 0.005
# Seconds between looks at all connections: those to be closed are closed then.
_SWEEP_EVERY = 5.0


def _nothing_waits() -> bool:
    return False


class Loop:
    """Waitress's loop, with calls from other threads and an end.

    Args:
        between: Called between two waits; if it returns true, the next one is short.

    Attributes:
        sockets: File descriptor to waitress's object; waitress adds and removes.

    Thread safety: `call`, `changed` and `stop` from any thread.
    """

    def __init__(self, between: Callable[[], bool] = _nothing_waits) -> None:
        self.sockets: dict[int, Any] = {}
        self._between = between
        self._calls: deque[Callable[[], object]] = deque()
        self._listeners: Sequence[Any] = ()
        self._asleep = False
        self._stopping = False
        self._sweep_at = 0.0
        # Guards the trigger: its descriptor must not be written to once closed.
        self._wake_lock = threading.Lock()
        self._closed = False

    def attach(self, listeners: Sequence[Any]) -> None:
        """Take over waitress's listeners; the first one's trigger wakes the loop."""
        self._listeners = listeners
        for listener in listeners:
            listener.ppio_loop = self
            # Waitress pulls it whenever `changed` is called as well.
            listener.pull_trigger = _nothing

    def call(self, function: Callable[[], object]) -> None:
        """Run `function` soon on the loop's thread; it must not raise."""
        self._calls.append(function)
        self.wake()

    def changed(self, channel: Any) -> None:
        """Note that a connection may now want to read, write or close."""
        del channel
        self.wake()

    def wake(self) -> None:
        """Let the loop look again."""
        # One that is awake looks at everything before it sleeps again, and so sees
        # what the caller has changed; writing to the pipe can be saved.
        if not self._asleep:
            return
        with self._wake_lock:
            if not self._closed:
                self._asleep = False
                self._listeners[0].trigger.pull_trigger()

    def stop(self) -> None:
        """Let `run` return soon."""
        self._stopping = True
        self.wake()

    def run(self) -> None:
        """Serve the sockets until `stop`."""
        while not self._stopping:
            self._asleep = True
            while self._calls:
                self._calls.popleft()()
            if not self._stopping:
                self._wait(_SHORT_WAIT if self._between() else _LONGEST_WAIT)

    def _wait(self, timeout: float) -> None:
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        wasyncore.poll2(timeout, self.sockets)

    def _sweep(self) -> None:
        self._sweep_at = time.monotonic() + _SWEEP_EVERY
        for one in list(self.sockets.values()):
            if hasattr(one, "arm_lock"):
                one.look()
                self.changed(one)

    def close(self) -> None:
        """Close every socket; on the loop's thread, after `run`."""
        with self._wake_lock:
            self._closed = True
        for one in list(self.sockets.values()):
            if hasattr(one, "arm_lock"):
                one.handle_close()
            else:
                one.close()


class EpollLoop(Loop):
    """A loop whose connections are armed for one event at a time.

    A connection is armed by the thread that knows what it waits for next: the loop
    after each event, a worker when it has answered. Each computes the interest anew
    under the connection's `arm_lock`, so the last one is right.
    """

    def __init__(self, between: Callable[[], bool] = _nothing_waits) -> None:
        super().__init__(between)
        self._epoll = select.epoll()
        self.sockets = _Registered(self._epoll)
        # Listeners that accept nobody, since there are too many connections.
        self._full: set[Any] = set()

    def changed(self, channel: Any) -> None:
        """Arm the connection for what it is interested in now."""
        with channel.arm_lock:
            descriptor = channel.descriptor
            if descriptor is None:
                return
            flags = select.EPOLLIN if channel.readable() else 0
            if channel.writable():
                flags |= select.EPOLLOUT
            if flags:
                self._epoll.modify(descriptor, flags | select.EPOLLONESHOT)

    def _wait(self, timeout: float) -> None:
        self._watch_listeners()
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        for descriptor, flags in self._epoll.poll(timeout):
            one = self.sockets.get(descriptor)
            if one is None:
                continue
            wasyncore.readwrite(one, flags)
            if hasattr(one, "arm_lock"):
                self.changed(one)

    def _watch_listeners(self) -> None:
        for listener in self._listeners:
            # Asking it is what lets waitress mark idle connections and count.
            full = not listener.readable()
            if listener.accepting and full is not (listener in self._full):
                (self._full.add if full else self._full.discard)(listener)
                flags = 0 if full else select.EPOLLIN
                self._epoll.modify(listener.socket.fileno(), flags)

    def close(self) -> None:
        """Close every socket and the poller itself."""
        super().close()
        self._epoll.close()


class _Registered(dict[int, Any]):
    """Sockets by descriptor, each known to the poller while it is in here."""

    def __init__(self, epoll: select.epoll) -> None:
        super().__init__()
        self._epoll = epoll

    def __setitem__(self, descriptor: int, one: Any) -> None:
        super().__setitem__(descriptor, one)
        once = select.EPOLLONESHOT if hasattr(one, "arm_lock") else 0
        self._epoll.register(descriptor, select.EPOLLIN | once)

    def __delitem__(self, descriptor: int) -> None:
        super().__delitem__(descriptor)
        self._epoll.unregister(descriptor)


def _nothing() -> None:
    return None


def new_loop(between: Callable[[], bool]) -> Loop:
    """Return the best loop of this system; see `Loop` for the argument."""
    return (EpollLoop if hasattr(select, "epoll") else Loop)(between)
