"""Runs a server until a signal ends it, and then stops it in order."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ppio_agent._util.threads import start_thread

__all__ = ["Served", "run"]

_log = logging.getLogger(__name__)

# How long the thread that drains is waited for once everything is closed.
_LAST_LOOK = 5.0


class _Bell:
    """Wakes one thread when another one rings, or a signal arrives.

    The system may give a signal to any thread; that wakes no other, not even the main
    thread, where the handler has to run. So the signal rings, too.
    """

    def __init__(self) -> None:
        self._inside, self._button = socket.socketpair()
        self._button.settimeout(0)

    def ring(self) -> None:
        """Let `wait_for` look."""
        with contextlib.suppress(OSError):  # it is ringing already, or closed
            self._button.send(b".")

    def wait_for(self, event: threading.Event) -> None:
        """Wait, in the one thread, for an event that is followed by a ring."""
        while not event.is_set():
            self._inside.recv(4096)

    @contextlib.contextmanager
    def rung_by_signals(self) -> Iterator[None]:
        """Have all signals ring; in the main thread only."""
        button = self._button.fileno()
        earlier = signal.set_wakeup_fd(button, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(earlier)

    def close(self) -> None:
        """Ring no more."""
        self._button.close()
        self._inside.close()


class Served(Protocol):
    """A server that can be run.

    Attributes:
        stopping: Set as soon as it is to end: by a signal, by `close`, or since it is
            broken.
        on_stop: Called when it was set, but by a signal.
    """

    stopping: threading.Event
    on_stop: Callable[[], object] | None

    @property
    def page(self) -> tuple[str, str] | None:
        """Name and address of the page that browsers get, if there is one."""

    @property
    def broken(self) -> bool:
        """Whether nobody is served any more, because of a failure told in the log."""

    @property
    def url(self) -> str:
        """Where a client of this machine reaches it."""

    def start(self) -> object:
        """Listen."""

    def drain(self) -> object:
        """Listen no more, begin nothing, and let what runs come to its end."""

    def close(self) -> bool:
        """Cancel what runs, close everything; return whether all code has ended."""


def run(server: Served) -> bool:
    """Serve until a signal, or `close`; then stop in order, by a second one at once.

    A server that is broken is stopped likewise: whoever watches the process starts it
    again.

    Returns:
        Whether all user code has ended, and nothing of the server was broken.
    """
    hurry = threading.Event()
    with contextlib.closing(_Bell()) as bell, _signals(server.stopping, hurry, bell):
        server.on_stop = bell.ring
        server.start()
        _say_ready()
        _log.info("listening on %s", server.url)
        if server.page is not None:
            _log.info("%s: open %s in a browser", *server.page)
        bell.wait_for(server.stopping)
        _log.info("stopping")
        drain = start_thread("ppio-drain", _drain, server, hurry, bell)
        bell.wait_for(hurry)
        ended = server.close()
        drain.join(_LAST_LOOK)
    if not ended:
        _log.error("code of the agent still runs although it was cancelled")
    return ended and not server.broken


def _drain(server: Served, done: threading.Event, bell: _Bell) -> None:
    try:
        server.drain()
    finally:
        done.set()
        bell.ring()


@contextlib.contextmanager
def _signals(
    stop: threading.Event, hurry: threading.Event, bell: _Bell
) -> Iterator[None]:
    """Let SIGTERM and SIGINT set `stop`, and the second of them `hurry`."""

    def on_signal(number: int, frame: Any) -> None:
        del number, frame
        (hurry if stop.is_set() else stop).set()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers: the host's own are in force
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    earlier = [signal.signal(number, on_signal) for number in numbers]
    try:
        with bell.rung_by_signals():
            yield
    finally:
        for number, handler in zip(numbers, earlier, strict=True):
            signal.signal(number, handler)


def _say_ready() -> None:
    """Tell whoever started this process that it listens (`PPIO_READY_FD`)."""
    text = os.environ.pop("PPIO_READY_FD", "")
    if not text.isdigit():
        return
    with contextlib.suppress(OSError):
        os.write(int(text), b"1")
        os.close(int(text))
