"""One side of an exchange: a line, and HTTP/1.1 by h11 on it.

Everything here runs on the edge's loop thread; nothing blocks it. Of a body 256 KiB are
held at most: 128 KiB each in the inbox of the line and in the one batch under way, or,
where it is poured, all of it in a duct. Beyond that the socket is not read, and the
kernel makes the sender wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TypeAlias

import h11

from .heads import HEAD_LIMIT
from .line import Line, PeerError
from .pour import pour

__all__ = ["Body", "Peer", "PeerError"]

Body: TypeAlias = list[h11.Data | h11.EndOfMessage]
"""What is there of a body: at most one piece of data, then, if it is there, the end."""

# What h11 proposes for a large head; it is a bad head like any other.
_TOO_LARGE = 431
# How h11 shows in a message what it was sent, up to the end of the message.
_SHOWN = re.compile(r":? (?:bytearray\()?b['\"].*", re.DOTALL)


class Peer(Line):
    """A line and the state of the HTTP conversation on it.

    Args:
        sock: Owned from now on.
        role: Our own role, `h11.SERVER` towards a client.
        loop: The loop that runs on this thread.

    Attributes:
        http: The state of the conversation.
    """

    def __init__(
        self,
        sock: socket.socket,
        role: type[h11.CLIENT | h11.SERVER],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(sock, loop)
        self.http = h11.Connection(role, max_incomplete_event_size=HEAD_LIMIT)

    @property
    def finished(self) -> bool:
        """Whether request and answer are complete and another request may follow."""
        return set(self.http.states.values()) == {h11.DONE}

    @property
    def may_answer(self) -> bool:
        """Whether an answer to the other side has not begun."""
        return self.http.our_state in {h11.IDLE, h11.SEND_RESPONSE}

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
        await pour(source, self, count)
        # h11 wants no more than the length of what is sent past it.
        sent = h11.Data(data=range(count))  # type: ignore[arg-type] # documented for sendfile
        self.http.send_with_data_passthrough(sent)

    def reusable(self) -> bool:
        """Whether a kept connection is idle: nothing received, and no end seen."""
        if self.ended or self._inbox or self.http.trailing_data[0]:
            return False
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def detach(self) -> socket.socket:
        """Give the socket away; see `Line.detach`."""
        if self.http.trailing_data[0]:
            raise PeerError(self, "it did not wait for the answer")
        return super().detach()

    def _parse(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        try:
            return self.http.next_event()
        except h11.RemoteProtocolError as exc:
            hint = exc.error_status_hint
            status = 0 if self.ended else 400 if hint == _TOO_LARGE else hint
            raise PeerError(self, _SHOWN.sub("", str(exc)), status) from exc

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
