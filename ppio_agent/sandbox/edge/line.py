"""One socket of the edge: bytes in and out, back-pressure, ends.

Everything here runs on the edge's loop thread; nothing blocks it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from typing import ClassVar

from .secure import SecureSocket
from .waits import hung_up, settle

__all__ = ["Line", "PeerError"]

# A socket is read while less than _INBOX_FULL waits, so their sum is what can wait.
_READ_SIZE = 96 * 1024
_INBOX_FULL = 32 * 1024
_RESET = struct.pack("ii", 1, 0)
_LINGER = 1.0
# Seconds between looks for the end of one that is not read.
_LOOK_EVERY = 5.0


class PeerError(Exception):
    """One side of an exchange left, was too slow or broke the protocol.

    Args:
        peer: Which side.
        message: What it did.
        status: The status to answer a client that did it; 0: it is gone.
    """

    def __init__(self, peer: Line, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.peer = peer
        self.status = status


class Line:
    """A connected socket, read ahead a little, and what waits for it.

    One task at a time may read and one may write. Reading goes on by itself until the
    inbox is full, so that the end of the other side is noticed while nothing is asked.

    Args:
        sock: Owned from now on.
        loop: The loop that runs on this thread.

    Attributes:
        sock: For who moves bytes between sockets, while reading is paused.
        closed: Whether it was closed, or given away, here.
        ended: Whether the other side has closed or broken the connection, or it is
            closed here.
        on_end: Called once when it ends; None: that shows at the next read.
        waiters: What a close here makes fail.
        stalled: Seconds after which one that takes nothing of what it is sent counts as
            gone.
    """

    stalled: ClassVar[float] = 600.0

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        sock.settimeout(0)
        # Refused by a unix socket, and by some systems if it is reset already.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The only way to learn that a silent client's machine has gone.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sock = sock
        self.closed = False
        self.ended = False
        self.on_end: Callable[[], object] | None = None
        self.waiters: set[asyncio.Future[None]] = set()
        self._loop = loop
        self._error: OSError | None = None
        self._inbox: bytes | bytearray = b""
        self._reading = True
        self._reader: asyncio.Future[None] | None = None
        loop.add_reader(sock, self._on_readable)

    @contextlib.contextmanager
    def at_end(self, act: Callable[[], object]) -> Iterator[None]:
        """Call `act` if the other side ends meanwhile, though it be not read.

        Raises:
            PeerError: It already has.
        """
        if self.ended:
            raise PeerError(self, "the other side has left")

        timer: asyncio.TimerHandle

        def look() -> None:
            nonlocal timer
            unseen = not (self._reading or self.ended)
            if unseen and self.on_end is not None and hung_up(self.sock):
                self.on_end()
            else:
                timer = self._loop.call_later(_LOOK_EVERY, look)

        timer = self._loop.call_later(_LOOK_EVERY, look)
        self.on_end = act
        try:
            yield
        finally:
            self.on_end = None
            timer.cancel()

    async def receive(self) -> bytes | bytearray:
        """Return what comes next, past h11; nothing at the end.

        Raises:
            PeerError: The other side is gone.
        """
        while not (self._inbox or self.ended):
            await self._wait(None)
        garbled = isinstance(self.sock, SecureSocket) and self.sock.garbled
        if garbled or (self._error is not None and not self._inbox):
            raise PeerError(self, "the connection was lost") from self._error
        data, self._inbox = self._inbox, b""
        self._resume()
        return data

    def end(self) -> None:
        """Tell the other side that nothing more is sent; it may go on sending."""
        with contextlib.suppress(OSError):  # it has gone: reading will show
            self.sock.shutdown(socket.SHUT_WR)

    async def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes past h11, waiting for as long as the other side is slow.

        Raises:
            PeerError: The other side is gone.
        """
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[self.sock.send(left) :]
                except BlockingIOError:
                    await self._writable()
        except OSError as exc:
            raise PeerError(self, "the connection was lost") from exc

    def take(self, most: int) -> bytes:
        """Take up to `most` bytes of what was read before reading was paused."""
        data = bytes(self._inbox[:most])
        self._inbox = self._inbox[most:]
        if not data and self.ended:
            raise PeerError(self, "the connection ended in a body") from self._error
        return data

    @contextlib.contextmanager
    def reading_paused(self) -> Iterator[None]:
        """Let nobody else read meanwhile."""
        self._reading = False
        if not self.ended:
            self._loop.remove_reader(self.sock)
        try:
            yield
        finally:
            self._resume()

    async def linger(self) -> None:
        """Close, letting the other side read what it was sent.

        A socket closed over unread bytes is reset, which takes away the answer.
        """
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            deadline = self._loop.time() + _LINGER
            while not self.ended:
                self._drop_inbox()
                await self._wait(deadline)
        self.close()

    def detach(self) -> socket.socket:
        """Give the socket away, which begins another conversation; close nothing.

        Raises:
            PeerError: That has already been read of which it would need the beginning.
        """
        if self._inbox:
            raise PeerError(self, "it did not wait for the answer")
        if self.ended:
            raise PeerError(self, "the other side has left")
        self.closed = self.ended = True
        self._loop.remove_reader(self.sock)
        return self.sock

    def close(self, *, reset: bool = False) -> None:
        """Close at once. Idempotent.

        Args:
            reset: Make sure that the other side sees an error, not an end.
        """
        if self.closed:
            return
        self.closed = self.ended = True
        self._loop.remove_reader(self.sock)
        self._loop.remove_writer(self.sock)
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()
        self._error = ConnectionAbortedError("closed here")
        settle(self._reader)
        for waiter in self.waiters:
            settle(waiter, self._error)

    def _drop_inbox(self) -> None:
        self._inbox = b""
        self._resume()

    def _resume(self) -> None:
        if not self._reading and not self.ended:
            self._reading = True
            self._loop.add_reader(self.sock, self._on_readable)

    def _on_readable(self) -> None:
        if len(self._inbox) >= _INBOX_FULL:
            # Only now, since in a steady flow it has been emptied by now.
            self._reading = False
            self._loop.remove_reader(self.sock)
            return
        try:
            data = self.sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            data, self._error = b"", exc
        if not data:
            self.ended = True
            self._loop.remove_reader(self.sock)
        elif not self._inbox:
            self._inbox = data
        else:
            if isinstance(self._inbox, bytes):
                self._inbox = bytearray(self._inbox)
            self._inbox += data
        settle(self._reader)
        if self.ended and self.on_end is not None:
            self.on_end()

    async def _wait(self, deadline: float | None) -> None:
        """Wait until something is received or the other side ends."""
        self._reader = waiter = self._loop.create_future()
        timer = None
        if deadline is not None:
            timer = self._loop.call_at(deadline, settle, waiter, TimeoutError())
        try:
            await waiter
        finally:
            self._reader = None
            if timer is not None:
                timer.cancel()

    async def _writable(self) -> None:
        waiter = self._loop.create_future()
        self.waiters.add(waiter)
        self._loop.add_writer(self.sock, settle, waiter)
        stalled = TimeoutError("nothing was taken for too long")
        timer = self._loop.call_later(self.stalled, settle, waiter, stalled)
        try:
            await waiter
        finally:
            timer.cancel()
            self.waiters.discard(waiter)
            if not self.closed:
                self._loop.remove_writer(self.sock)
