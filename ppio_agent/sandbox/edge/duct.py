"""What moves bytes from socket to socket: a pipe inside the kernel, or a buffer here."""

from __future__ import annotations

import abc
import contextlib
import enum
import fcntl
import os
import select
import socket
import ssl
from collections.abc import Iterator

from .waits import tried

__all__ = ["Duct", "Halt", "open_duct"]

# All that a direction may hold; in a body that is poured nothing else is held.
_SIZE = 256 * 1024
_COPY_SIZE = 128 * 1024
# What one turn may move, in fills; others want to be served, too.
_FILLS = 16
_F_SETPIPE_SZ = 1031  # fcntl has it from Python 3.10 on, on some systems


class Halt(enum.Enum):
    """Why a duct has stopped moving."""

    SOURCE = "nothing more has come"
    SINK = "the sink has no room"
    END = "the source has ended"
    TURN = "it has moved enough for once"


class Duct(abc.ABC):
    """Moves a number of bytes from a socket to another one, never waiting.

    Args:
        source: Where the bytes come from.
        sink: Where they go.
        count: How many.

    Attributes:
        left: How many have not reached the sink yet.
        held: How many of these have been taken from the source.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, count: int) -> None:
        self.left = count
        self.held = 0
        self._source = source
        self._sink = sink

    def move(self) -> Halt:
        """Move what can be moved now; why no more.

        Raises:
            OSError: Of the sink if bytes are held, else of the source.
        """
        for _ in range(_FILLS):
            if not self.held and self.left:
                filled = tried(self._fill)
                if not filled:
                    return Halt.SOURCE if filled is None else Halt.END
                self.held = filled
            while self.held:
                drained = tried(self._drain)
                if drained is None:
                    return Halt.SINK
                self.held -= drained
                self.left -= drained
        return Halt.TURN

    @abc.abstractmethod
    def _fill(self) -> int:
        """Take some of what is left from the source while none is held; 0: its end."""

    @abc.abstractmethod
    def _drain(self) -> int:
        """Give the sink some of what is held; how many bytes."""


class _PipeDuct(Duct):
    """Moves bytes inside the kernel, without copying them."""

    def __init__(self, source: socket.socket, sink: socket.socket, count: int) -> None:
        super().__init__(source, sink, count)
        self._out, self._in = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # above what this user may have in all
            fcntl.fcntl(self._in, _F_SETPIPE_SZ, _SIZE)
        # Whether nothing was there when it was last looked for.
        self._dry = False

    def _fill(self) -> int:
        moved = 0
        try:
            # The pipe may have room for more than a direction is to hold.
            size = min(self.left, _SIZE)
            moved = os.splice(self._source.fileno(), self._in, size)
        except BlockingIOError:
            self._dry = not self._dry
            if self._dry:
                raise
        if moved:
            self._dry = False
            return moved
        # At an urgent byte of TCP it never moves more, although there is more: only
        # receiving passes it. The pipe is empty, and so has room for this. Not tried
        # before every wait, where it finds the crumbs that have just come.
        size = min(self.left, select.PIPE_BUF)
        return os.write(self._in, self._source.recv(size))

    def _drain(self) -> int:
        return os.splice(self._out, self._sink.fileno(), self.held)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._out)
        os.close(self._in)


class _CopyDuct(Duct):
    """Moves bytes through a buffer of this process."""

    def __init__(self, source: socket.socket, sink: socket.socket, count: int) -> None:
        super().__init__(source, sink, count)
        self._buffer = memoryview(bytearray(_COPY_SIZE))
        self._rest = self._buffer[:0]

    def _fill(self) -> int:
        size = self._source.recv_into(self._buffer[: self.left])
        self._rest = self._buffer[:size]
        return size

    def _drain(self) -> int:
        sent = self._sink.send(self._rest)
        self._rest = self._rest[sent:]
        return sent


@contextlib.contextmanager
def open_duct(source: socket.socket, sink: socket.socket, count: int) -> Iterator[Duct]:
    """Give a duct between two sockets.

    It copies where the system cannot do without, under TLS, and when descriptors are
    out.
    """
    # Between programs of one machine large buffers of the kernel gain nothing, and what
    # is in them leaves the processor's cache before it is read.
    if _is_near(source):
        source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SIZE)
    if _is_near(sink):
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SIZE)
    pipe = None
    secure = isinstance(source, ssl.SSLSocket) or isinstance(sink, ssl.SSLSocket)
    if hasattr(os, "splice") and not secure:
        with contextlib.suppress(OSError):
            pipe = _PipeDuct(source, sink, count)
    try:
        yield pipe or _CopyDuct(source, sink, count)
    finally:
        if pipe is not None:
            pipe.close()


def _is_near(sock: socket.socket) -> bool:
    """Whether the other end is on this machine, as far as its address tells."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except (OSError, IndexError):  # it has gone; its address is no pair
        return False
