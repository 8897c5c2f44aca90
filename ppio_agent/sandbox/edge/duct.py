"""A pipe by which bytes go from socket to socket without being copied through here."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import ssl
from collections.abc import Iterator

__all__ = ["Duct", "open_duct"]

# All that a direction may hold; in a body that is poured nothing else is held.
_SIZE = 256 * 1024
_F_SETPIPE_SZ = 1031  # fcntl has it from Python 3.10 on, on some systems


class Duct:
    """Carries bytes from a socket to another one inside the kernel.

    Neither socket is waited for: both calls raise `BlockingIOError` instead.

    Args:
        source: Where the bytes come from.
        sink: Where they go.
    """

    def __init__(self, source: socket.socket, sink: socket.socket) -> None:
        self._source = source
        self._sink = sink
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # above what this user may have in all
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _SIZE)

    def fill(self, most: int) -> int:
        """Take up to `most` bytes from the source; 0 is its end.

        To be called when all is drained: the pipe itself may have room for more than
        a direction is to hold.
        """
        return os.splice(self._source.fileno(), self._in, min(most, _SIZE))

    def drain(self, count: int) -> int:
        """Give the sink up to `count` bytes of those taken; how many it took."""
        return os.splice(self._out, self._sink.fileno(), count)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._out)
        os.close(self._in)


@contextlib.contextmanager
def open_duct(source: socket.socket, sink: socket.socket) -> Iterator[Duct | None]:
    """Give a duct between two sockets, None where there can be none.

    There is none where the system cannot do it, under TLS, and when descriptors are
    out.
    """
    plain = not isinstance(source, ssl.SSLSocket) and not isinstance(
        sink, ssl.SSLSocket
    )
    duct = None
    if plain and hasattr(os, "splice"):
        with contextlib.suppress(OSError):
            duct = Duct(source, sink)
    try:
        yield duct
    finally:
        if duct is not None:
            duct.close()
