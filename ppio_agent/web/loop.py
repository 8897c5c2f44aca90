"""The loop that waits for sockets: `epoll` where there is one, else waitress's own.

Waitress asks every socket before each wait what it is interested in, and each worker
wakes it, through a pipe, after each request. With one-shot `epoll` a worker arms its
connection itself, and the loop wakes up for what clients send and nothing else.

The thread of such a loop may serve a quick request itself. If it is held up by one, the
loop goes on in another thread: whichever has the turn waits for the sockets.
"""

from __future__ import annotations

import logging
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from waitress import wasyncore

from ppio_agent._util.alarm import alarms

from .inline import Inline

__all__ = ["EpollLoop", "Loop", "new_loop"]

_LONGEST_WAIT = 1.0
# While connections are open and nothing at all is under way.
_IDLE_WAIT = 30.0
_SHORT_WAIT = 0.005
# Seconds between looks at all connections: those to be closed are closed then.
_SWEEP_EVERY = 5.0
# Seconds for which a request may hold up the loop.
_HELD_UP = 0.004
# Seconds until another thread is tried again, when the system had none.
_RETRY = 0.1

_log = logging.getLogger(__name__)


class Loop:
    """Waitress's loop, with calls from other threads and an end.

    Args:
        between: Called between two waits; if it returns true, the next one is short.

    Attributes:
        sockets: File descriptor to waitress's object; waitress adds and removes.

    Thread safety: `call`, `changed` and `stop` from any thread.
    """

    def __init__(self, between: Callable[[], bool]) -> None:
        self.sockets: dict[int, Any] = {}
        self._between = between
        self._calls: deque[Callable[[], object]] = deque()
        self._listeners: Sequence[Any] = ()
        self._asleep = False
        self._turn = 0  # which of the threads that have called `run` serves
        self._stopping = False
        self._quiet = False  # whether the last wait was in vain
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

    def run(self) -> bool:
        """Serve the sockets until `stop`.

        Returns:
            Whether that is the end; not if another thread goes on.
        """
        turn = self._turn
        while not self._stopping and self._turn == turn:
            self._asleep = True
            while self._calls:
                self._calls.popleft()()
            if not self._stopping:
                timeout = _SHORT_WAIT if self._between() else self._longest_wait()
                began = time.monotonic()
                self._wait(timeout)
                self._quiet = timeout is not None and (
                    time.monotonic() - began >= timeout
                )
        return self._turn == turn

    def _longest_wait(self) -> float | None:
        """Return after how many seconds to look again; None if there is nobody."""
        channels = [one.active_channels for one in self._listeners]
        if not any(channels):
            return None
        # Only after a wait in vain, for looking at all takes long where there are many.
        if not self._quiet or any(
            channel.pending for some in channels for channel in some.values()
        ):
            return _LONGEST_WAIT
        # Then waitress looks which of them have been idle for too long.
        cleanup: float = min(one.next_channel_cleanup for one in self._listeners)
        due = cleanup - time.time()
        return min(max(due, _LONGEST_WAIT), _IDLE_WAIT)

    def _wait(self, timeout: float | None) -> None:
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

    Args:
        between: As for `Loop`.
        inline: What the loop's thread may serve itself.
        succeed: Starts a further thread that calls `run`, when this one is held up;
            raises RuntimeError if it cannot.
    """

    def __init__(
        self,
        between: Callable[[], bool],
        inline: Inline,
        succeed: Callable[[], object],
    ) -> None:
        super().__init__(between)
        self._epoll = select.epoll()
        self.sockets = _Registered(self._epoll)
        # Listeners that accept nobody, since there are too many connections.
        self._full: set[Any] = set()
        # What `epoll` has told and nobody has dealt with; a successor goes on with it.
        self._ready: deque[tuple[Any, int]] = deque()
        self._inline = inline
        self._succeed = succeed
        self._since: float | None = None  # when the present inline request began
        self._alarmed = False  # whether an alarm will look at that
        # Held while the turn passes on, and while it is kept after a request.
        self._turn_lock = threading.Lock()

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

    def _wait(self, timeout: float | None) -> None:
        self._watch_listeners()
        if time.monotonic() >= self._sweep_at:
            self._sweep()
        ready = self._ready
        if not ready:
            # Looked up now: a number may be another socket's when its turn comes.
            for descriptor, flags in self._epoll.poll(timeout):
                ready.append((self.sockets.get(descriptor), flags))
        while ready:
            one, flags = ready.popleft()
            if one is None:
                continue
            job = self._inline.collect(partial(wasyncore.readwrite, one, flags))
            if job is None:
                if hasattr(one, "arm_lock"):
                    self.changed(one)
            elif not self._serve(job):
                return

    def _serve(self, job: Callable[[], object]) -> bool:
        """Run a request here; return whether this thread still has the turn."""
        turn = self._turn
        began, used = time.monotonic(), time.thread_time()
        self._since = began
        if not self._alarmed:
            self._alarm(began + _HELD_UP)
        try:
            self._inline.run(job)
        except Exception:  # noqa: BLE001 - the loop goes on whatever a request does
            _log.exception("a request failed")
        with self._turn_lock:
            if self._turn != turn:
                return False
            self._since = None
        self._inline.note(time.monotonic() - began, cpu=time.thread_time() - used)
        return True

    def _alarm(self, instant: float) -> None:
        self._alarmed = True
        try:
            alarms().set(self, instant)
        except RuntimeError as error:  # the system has no thread for it
            self._alarmed = False
            _log.warning("nobody will notice if the loop is held up: %s", error)

    def on_alarm(self) -> None:
        """Let another thread go on, if a request holds up the loop."""
        # In this order: a request that begins now sees that it has no alarm.
        self._alarmed = False
        now = time.monotonic()
        with self._turn_lock:
            since = self._since
            if since is None:
                return
            # The successor is started under the lock: until it is known that there is
            # one, the turn stays where it is.
            held_up = now - since >= _HELD_UP
            if held_up and self._pass_on_locked(since):
                return
        self._alarm(now + _RETRY if held_up else since + _HELD_UP)

    def _pass_on_locked(self, since: float) -> bool:
        self._inline.held_up()  # the successor must not try the next one at once
        self._turn += 1
        self._since = None
        try:
            self._succeed()
        except RuntimeError as error:
            self._turn -= 1
            self._since = since
            _log.warning("the loop is held up, and no thread can go on: %s", error)
            return False
        return True

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
        alarms().clear(self)


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


def new_loop(
    between: Callable[[], bool], inline: Inline, succeed: Callable[[], object]
) -> Loop:
    """Return the best loop of this system; see `EpollLoop` for the arguments."""
    if hasattr(select, "epoll"):
        return EpollLoop(between, inline, succeed)
    return Loop(between)
