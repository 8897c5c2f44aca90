"""Connect to a port of the sandbox without waiting for it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

from .loop import WRITE, Loop, Timer

__all__ = ["Dial"]


class Dial:
    """One attempt to connect, host by host until one answers.

    Args:
        loop: Where it waits.
        ways: Hosts and ports to try; asked for the next one only when it is needed.
        timeout: Seconds for all of them together.
        done: Told once: the connected socket, or `refused` or `timeout`.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        ways: Iterator[tuple[str, int]],
        *,
        timeout: float,
        done: Callable[[socket.socket | str], None],
    ) -> None:
        self._loop = loop
        self._ways = ways
        self._done = done
        self._sock: socket.socket | None = None
        self._timer: Timer = loop.call_later(timeout, self._expire)

    def begin(self) -> None:
        """Try until one connects or all have refused."""
        try:
            result = self._next()
        except OSError:  # such as too few descriptors
            result = "refused"
        if result is not None:
            self._finish(result)

    def _next(self) -> socket.socket | str | None:
        """Try the next ways; return the result, or None if one is under way."""
        for host, port in self._ways:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            error = sock.connect_ex((host, port))
            if error == errno.EINPROGRESS:
                self._sock = sock
                self._loop.watch(sock.fileno(), WRITE, self._ready)
                return None
            if error == 0:
                return sock
            sock.close()
        return "refused"

    def _ready(self, _: int) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.unwatch(sock.fileno())
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            sock.close()
            self.begin()
        else:
            self._finish(sock)

    def _expire(self) -> None:
        if self._sock is not None:
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
        self._finish("timeout")

    def _finish(self, result: socket.socket | str) -> None:
        self._timer.cancel()
        self._done(result)
