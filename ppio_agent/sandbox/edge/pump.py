"""One socket of the edge: bytes in and out, back-pressure, HTTP/1.1 by h11.

Everything here runs on the edge's loop thread; nothing blocks it. Of a body 256 KiB are
held at most: 128 KiB each in the peer's inbox and in the one batch under way, or, where
it is poured, all of it in a pipe. Beyond that the socket is not read, and the kernel
makes the sender wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeAlias, TypeVar

import h11

from .duct import Duct, open_duct
from .heads import HEAD_LIMIT
from .secure import SecureSocket
from .waits import hung_up, settle, tried

__all__ = ["Body", "Peer", "PeerError"]

Body: TypeAlias = list[h11.Data | h11.EndOfMessage]
"""What is there of a body: at most one piece of data, then, if it is there, the end."""

_Some = TypeVar("_Some", bytes, int)

# A socket is read while less than _INBOX_FULL waits, so their sum is what can wait.
_READ_SIZE = 96 * 1024
_INBOX_FULL = 32 * 1024
_POUR_SIZE = 128 * 1024
_POURS_AT_ONCE = 16
_RESET = struct.pack("ii", 1, 0)
_LINGER = 1.0
# Seconds between looks for the end of one that is not read.
_LOOK_EVERY = 5.0
# Seconds after which one that takes nothing of what it is sent is given up.
_STALLED = 600.0
_MAX_MESSAGE = 200
# What h11 proposes for a large head; it is a bad head like any other.
_TOO_LARGE = 431
# How h11 shows in a message what it was sent.
_BYTES = re.compile(r"bytearray\(b(.*)\)", re.DOTALL)


class PeerError(Exception):
    """One side of an exchange left, was too slow or broke the protocol.

    Args:
        peer: Which side.
        message: What it did.
        status: The status to answer a client that did it; 0: it is gone.
    """

    def __init__(self, peer: Peer, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.peer = peer
        self.status = status


class Peer:
    """A connected socket and the state of the HTTP conversation on it.

    One task at a time may read and one may write. Reading goes on by itself until the
    inbox is full, so that the end of the other side is noticed while nothing is asked.
    One that takes nothing of what it is sent for 10 minutes counts as gone.

    Args:
        sock: Owned from now on.
        role: Our own role, `h11.SERVER` towards a client.
        loop: The loop that runs on this thread.

    Attributes:
        http: The state of the conversation.
        ended: Whether the other side has closed or broken the connection.
        on_end: Called once when it ends; None: that shows at the next read.
        poured: Whether a body was poured from it: it serves no further message.
    """

    def __init__(
        self,
        sock: socket.socket,
        role: type[h11.CLIENT | h11.SERVER],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        sock.settimeout(0)
        # Refused by a unix socket, and by some systems if it is reset already.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The only way to learn that a silent client's machine has gone.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.http = h11.Connection(role, max_incomplete_event_size=HEAD_LIMIT)
        self.ended = False
        self.poured = False
        self.on_end: Callable[[], object] | None = None
        self._sock = sock
        self._loop = loop
        self._error: OSError | None = None
        self._closed = False
        self._inbox: bytes | bytearray = b""
        self._reading = True
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        loop.add_reader(sock, self._on_readable)

    @property
    def finished(self) -> bool:
        """Whether request and answer are complete and another request may follow."""
        return set(self.http.states.values()) == {h11.DONE}

    @property
    def may_answer(self) -> bool:
        """Whether an answer to the other side has not begun."""
        return self.http.our_state in {h11.IDLE, h11.SEND_RESPONSE}

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
            if unseen and self.on_end is not None and hung_up(self._sock):
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

    async def arrived(self, timeout: float) -> bool:
        """Wait for the first byte of a message; whether it came in time."""
        if not self._inbox and not self.http.trailing_data[0]:
            with contextlib.suppress(TimeoutError):
                await self._wait(self._loop.time() + timeout)
        return bool(self._inbox or self.http.trailing_data[0])

    async def next_event(
        self, timeout: float | None = None
    ) -> h11.Event | type[h11.PAUSED]:
        """Return the next event, waiting for it as long as `timeout`.

        Raises:
            PeerError: It did not come.
        """
        deadline = None if timeout is None else self._loop.time() + timeout
        while (event := self._parse()) is h11.NEED_DATA:
            await self._fill(deadline)
        return event  # type: ignore[return-value] # mypy cannot narrow a sentinel

    def take_body(self) -> Body:
        """Return what has arrived of the body, without waiting.

        Raises:
            PeerError: Nothing more will come, or what came is malformed.
        """
        self._feed()
        parts: list[bytes] = []
        try:
            while type(event := self._parse()) is h11.Data:
                parts.append(event.data)
        except PeerError:
            # What came before is passed on; asked again, h11 fails again.
            if not parts:
                raise
            event = h11.NEED_DATA
        batch: Body = []
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            batch.append(h11.Data(data=data))
        if type(event) is h11.EndOfMessage:
            batch.append(event)
        elif event is not h11.NEED_DATA:
            raise PeerError(self, "the connection is not in a body")
        return batch

    async def body(self) -> Body:
        """Return the next part of the body as `take_body`, waiting for it."""
        while not (batch := self.take_body()):
            await self._fill(None)
        return batch

    async def rest_of_body(self, body: Body, timeout: float) -> Body:
        """Return a body with what is missing of it, waiting as long as `timeout`.

        Raises:
            PeerError: It did not come.
        """
        deadline = self._loop.time() + timeout
        data = bytearray()
        while True:
            data += b"".join(it.data for it in body if type(it) is h11.Data)
            if body and type(body[-1]) is h11.EndOfMessage:
                return [h11.Data(data=bytes(data)), body[-1]]
            await self._fill(deadline)
            body = self.take_body()

    async def send(self, *events: h11.Event) -> None:
        """Send events in one write, waiting for as long as the other side is slow.

        Raises:
            PeerError: The other side is gone.
        """
        pieces: list[bytes] = []
        for event in events:
            pieces += self.http.send_with_data_passthrough(event) or ()
        await self.send_raw(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    async def pour(self, source: Peer, count: int) -> None:
        """Send the next `count` bytes of a body just as they come from `source`.

        For the rest of a large body of known length, of which h11 would copy each byte
        several times. The h11 of the source never learns of it, so that the connection
        of the source ends with this message.

        Raises:
            PeerError: Either side is gone.
        """
        source.poured = True
        with open_duct(source._sock, self._sock) as duct:
            pour = self._copy if duct is None else partial(self._splice, duct)
            with source._reading_paused():
                for turn in itertools.count(1):
                    size = await pour(source, count)
                    # h11 wants no more than the length of what is sent past it.
                    self.http.send_with_data_passthrough(h11.Data(data=range(size)))  # type: ignore[arg-type] # documented for sendfile
                    count -= size
                    if not count:
                        return
                    if turn % _POURS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # others want to be served, too

    async def _copy(self, source: Peer, most: int) -> int:
        data = source._take(most) or await source._io(
            lambda: source._sock.recv(min(most, _POUR_SIZE)), source._readable
        )
        await self.send_raw(data)
        return len(data)

    async def _splice(self, duct: Duct, source: Peer, most: int) -> int:
        data = source._take(most)
        if data:
            await self.send_raw(data)
            return len(data)
        size = await source._io(partial(duct.fill, most), source._readable)
        left = size
        while left:
            left -= await self._io(partial(duct.drain, left), self._writable)
        return size

    async def receive(self) -> bytes | bytearray:
        """Return what comes next, past h11; nothing at the end.

        Raises:
            PeerError: The other side is gone.
        """
        while not (self._inbox or self.ended):
            await self._wait(None)
        garbled = isinstance(self._sock, SecureSocket) and self._sock.garbled
        if garbled or (self._error is not None and not self._inbox):
            raise PeerError(self, "the connection was lost") from self._error
        data, self._inbox = self._inbox, b""
        self._resume()
        return data

    def end(self) -> None:
        """Tell the other side that nothing more is sent; it may go on sending."""
        with contextlib.suppress(OSError):  # it has gone: reading will show
            self._sock.shutdown(socket.SHUT_WR)

    def reusable(self) -> bool:
        """Whether a kept connection is idle: nothing received, and no end seen."""
        if self.ended or self._inbox or self.http.trailing_data[0]:
            return False
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def linger(self) -> None:
        """Close, letting the other side read what it was sent.

        A socket closed over unread bytes is reset, which takes away the answer.
        """
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
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
        if self._inbox or self.http.trailing_data[0]:
            raise PeerError(self, "it did not wait for the answer")
        if self.ended:
            raise PeerError(self, "the other side has left")
        self._closed = self.ended = True
        self._loop.remove_reader(self._sock)
        return self._sock

    def close(self, *, reset: bool = False) -> None:
        """Close at once. Idempotent.

        Args:
            reset: Make sure that the other side sees an error, not an end.
        """
        if self._closed:
            return
        self._closed = self.ended = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        if reset:
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._sock.close()
        self._error = ConnectionAbortedError("closed here")
        settle(self._reader)
        settle(self._writer, self._error)

    def _parse(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as exc:
            hint = exc.error_status_hint
            status = 0 if self.ended else 400 if hint == _TOO_LARGE else hint
            message = _BYTES.sub(r"\1", str(exc))[:_MAX_MESSAGE]
            raise PeerError(self, message, status) from exc

    async def _fill(self, deadline: float | None) -> None:
        if not self._inbox and not self.ended:
            try:
                await self._wait(deadline)
            except TimeoutError:
                raise PeerError(self, "the request took too long", 408) from None
        self._feed()

    def _feed(self) -> None:
        """Give what was received to h11, the end included."""
        got = bool(self._inbox)
        if got:
            self.http.receive_data(bytes(self._inbox))
            self._inbox = b""
        if not self.ended:
            self._resume()
        elif self._error is None:
            self.http.receive_data(b"")
        elif not got:
            raise PeerError(self, "the connection was lost") from self._error

    def _drop_inbox(self) -> None:
        self._inbox = b""
        self._resume()

    def _resume(self) -> None:
        if not self._reading and not self.ended:
            self._reading = True
            self._loop.add_reader(self._sock, self._on_readable)

    def _on_readable(self) -> None:
        if len(self._inbox) >= _INBOX_FULL:
            # Only now, since in a steady flow it has been emptied by now.
            self._reading = False
            self._loop.remove_reader(self._sock)
            return
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            data, self._error = b"", exc
        if not data:
            self.ended = True
            self._loop.remove_reader(self._sock)
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

    async def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes past h11, waiting for as long as the other side is slow.

        Raises:
            PeerError: The other side is gone.
        """
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[self._sock.send(left) :]
                except BlockingIOError:
                    await self._writable()
        except OSError as exc:
            raise PeerError(self, "the connection was lost") from exc

    def _take(self, most: int) -> bytes:
        """Take up to `most` bytes of what was read before reading was paused."""
        data = bytes(self._inbox[:most])
        self._inbox = self._inbox[most:]
        if not data and self.ended:
            raise PeerError(self, "the connection ended in a body") from self._error
        return data

    @contextlib.contextmanager
    def _reading_paused(self) -> Iterator[None]:
        """Let nobody else read meanwhile."""
        self._reading = False
        if not self.ended:
            self._loop.remove_reader(self._sock)
        try:
            yield
        finally:
            self._resume()

    async def _io(
        self, act: Callable[[], _Some], ready: Callable[[], Awaitable[None]]
    ) -> _Some:
        """Return what `act` gives, waiting until the socket is ready for it."""
        try:
            while not (given := tried(act)):
                if given is not None:
                    raise PeerError(self, "the connection ended in a body")
                await ready()
        except OSError as exc:
            raise PeerError(self, "the connection was lost") from exc
        return given

    async def _readable(self) -> None:
        self._reader = waiter = self._loop.create_future()
        self._loop.add_reader(self._sock, settle, waiter)
        try:
            await waiter
            if self._closed:
                raise PeerError(self, "closed here")
        finally:
            self._reader = None
            if not self._closed:
                self._loop.remove_reader(self._sock)

    async def _writable(self) -> None:
        self._writer = waiter = self._loop.create_future()
        self._loop.add_writer(self._sock, settle, waiter)
        stalled = TimeoutError("nothing was taken for too long")
        timer = self._loop.call_later(_STALLED, settle, waiter, stalled)
        try:
            await waiter
        finally:
            timer.cancel()
            self._writer = None
            if not self._closed:
                self._loop.remove_writer(self._sock)
