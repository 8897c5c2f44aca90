"""One call, as other threads may reach it: to wake it, or to end it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from ppio_agent.exceptions import PPIOAgentError

__all__ = ["CallHandle"]


class CallHandle:
    """Ends one call from any thread: while it waits, connects, sends or reads.

    Give one to `Transport.send` or `Transport.stream` and keep it. A handle belongs to
    one call.

    Thread safety: thread-safe; `abort` may also be called by a signal handler.
    """

    __slots__ = ("_event", "_lock", "_pid", "_socket", "error")

    def __init__(self) -> None:
        # Guards the fields below. Re-entrant, since a signal handler that aborts runs
        # on top of whatever the thread of the call was doing.
        self._lock = threading.RLock()
        self._socket: socket.socket | None = None
        self._event: threading.Event | None = None
        self._pid = os.getpid()
        self.error: PPIOAgentError | None = None

    def abort(self, error: PPIOAgentError) -> bool:
        """Let the call end with `error`, at once.

        Returns:
            Whether it does; False if it was aborted before.
        """
        with self._lock:
            if self.error is not None:
                return False
            self.error = error
            if self._event is not None:
                self._event.set()
            # Under the lock, or the connection might serve another call by now; it
            # does not block. In a forked child the connection is the parent's.
            if self._socket is not None and self._pid == os.getpid():
                with contextlib.suppress(OSError):
                    # Not the method of a TLS socket, which would also take away the
                    # state that the reader is using.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            return True

    def check(self) -> None:
        """Raise the error the call was aborted with, if it was.

        To be called before any result, end or error of the network is believed: after
        `abort` a connection looks as if the peer had closed it.
        """
        if self.error is not None:
            raise self.error

    def attach(self, sock: socket.socket) -> None:
        """Say which socket the call uses from now on."""
        with self._lock:
            # In this order, since a signal handler may abort between the two.
            self._socket = sock
            self.check()

    def detach(self) -> None:
        """Say that the call uses no socket any more; after that none is touched."""
        with self._lock:
            self._socket = None

    def wait(self, timeout: float | None) -> None:
        """Block until `wake`, `abort` or the timeout; None waits without limit.

        It may return early, so look at what is waited for. Raises what `abort` gave.
        """
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
            event = self._event
            self.check()
        event.wait(timeout)
        event.clear()
        self.check()

    def wake(self) -> None:
        """Let `wait` return, now or the next time it is called."""
        with self._lock:
            if self._event is None:
                self._event = threading.Event()
            self._event.set()
