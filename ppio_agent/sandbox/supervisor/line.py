"""The supervisor's end of the line: to the platform of the moment, and to its successor.

The platform listens for the supervisor: it makes a unix socket, hands it over, and is
the first to connect. The first message of each line is ``hello``; it brings, where the
system has such handles, one of the platform's process, so that its end is noticed even
if a fork of it holds the line open. A later platform that says the secret in its
``hello`` takes the sandbox over.
"""

from __future__ import annotations

import hmac
import os
import select
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from .boot import Boot
from .channel import Channel, ChannelError, Message, MessageReader, receive, receive_one
from .loop import READ, Loop, Timer

__all__ = ["Line", "PlatformLine", "accept_first", "read_boot"]

_CLAIM_LIMIT = 2.0
_ACCEPT_AGAIN = 0.2
_GONE = "the platform has ended"


class Line(NamedTuple):
    """A connection to a platform.

    Attributes:
        sock: Where messages come and go.
        platform: Handle of the platform's process, readable when that has ended; None
            where the system has none.
    """

    sock: socket.socket
    platform: int | None


def accept_first(listener: socket.socket) -> Line:
    """Take the connection that the platform made before it started this process.

    Raises:
        ChannelError: It does not begin with a greeting.
        SystemExit: The platform has ended.
    """
    sock, _ = listener.accept()
    message, fd = receive_one(sock)
    if "hello" not in message:
        raise ChannelError("a line begins with a greeting")
    return Line(sock, fd)


def read_boot(line: Line) -> Boot:
    """Wait for what the sandbox is to be, and take nothing that comes behind it.

    Raises:
        ChannelError: It is not of that kind.
        SystemExit: The platform has ended.
    """
    if line.platform is not None:
        ready, _, _ = select.select([line.sock.fileno(), line.platform], [], [])
        if line.platform in ready:
            raise SystemExit(_GONE)
    message, _ = receive_one(line.sock)
    try:
        return Boot(**message["boot"])
    except (KeyError, TypeError) as exc:
        raise ChannelError("the first message does not say what to be") from exc


class PlatformLine:
    """Speaks with one platform at a time, and lets the next one take over.

    Args:
        loop: Where it waits.
        listener: Where platforms call; owned by this.
        first: The line in use from now on.
        on_message: Told each message of the platform.
        on_lost: Told that the platform is gone or cannot be understood.
        on_taken: Told that another platform has taken over.

    Attributes:
        secret: What a platform must say to take over; as long as it is None, none can.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        first: Line,
        *,
        on_message: Callable[[Message], None],
        on_lost: Callable[[], None],
        on_taken: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._listener = listener
        self.secret: str | None = None
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_taken = on_taken
        self._channel: Channel | None = None
        self._platform: int | None = None
        self._claim: _Claim | None = None
        listener.settimeout(0)
        loop.watch(listener.fileno(), READ, self._accept)
        self._use(first)

    def send(self, message: Mapping[str, Any], fd: int | None = None) -> None:
        """Send a message, if anybody is there, and with it a descriptor.

        Args:
            message: What to say.
            fd: Taken charge of.
        """
        if self._channel is not None:
            self._channel.send(message, fd)
        elif fd is not None:
            os.close(fd)

    def _use(self, line: Line) -> None:
        self._drop()
        self._channel = Channel(
            self._loop, line.sock, on_message=self._on_message, on_end=self._lose
        )
        self._platform = line.platform
        if line.platform is not None:
            self._loop.watch(line.platform, READ, lambda _: self._lose())

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        platform, self._platform = self._platform, None
        if channel is not None:
            channel.close()
        if platform is not None:
            self._loop.unwatch(platform)
            os.close(platform)

    def _lose(self) -> None:
        self._drop()
        self._on_lost()

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:
            # They wait where they are; asked at once, it would be so for ever.
            fd = self._listener.fileno()
            self._loop.unwatch(fd)
            watch = partial(self._loop.watch, fd, READ, self._accept)
            self._loop.call_later(_ACCEPT_AGAIN, watch)
            return
        if self._claim is not None:
            self._claim.close()  # one at a time, so that they cannot pile up
        self._claim = _Claim(self._loop, sock, partial(self._judge))

    def _judge(self, line: Line, secret: str) -> None:
        self._claim = None
        # What is no text at all is no reason to end.
        said = secret.encode(errors="surrogatepass")
        right = self.secret
        if right is None or not hmac.compare_digest(said, right.encode()):
            line.sock.close()
            if line.platform is not None:
                os.close(line.platform)
            return
        self._use(line)
        self._on_taken()


class _Claim:
    """Somebody who has called and is still to say the secret."""

    def __init__(
        self, loop: Loop, sock: socket.socket, judge: Callable[[Line, str], None]
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._judge = judge
        self._reader = MessageReader()
        self._fds: list[int] = []
        sock.settimeout(0)
        self._timer: Timer = loop.call_later(_CLAIM_LIMIT, self.close)
        loop.watch(sock.fileno(), READ, self._ready)

    def close(self) -> None:
        """Send them away. Idempotent."""
        self._stop()
        self._sock.close()
        while self._fds:
            os.close(self._fds.pop())

    def _stop(self) -> None:
        self._timer.cancel()
        if self._sock.fileno() >= 0:
            self._loop.unwatch(self._sock.fileno())

    def _ready(self, _: int) -> None:
        try:
            data, fds = receive(self._sock)
            self._fds += fds
            messages = self._reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ChannelError):
            self.close()
            return
        if not data or len(messages) > 1 or len(self._fds) > 1:
            self.close()
            return
        for message in messages:
            self._stop()
            fd = self._fds.pop() if self._fds else None
            self._judge(Line(self._sock, fd), str(message.get("hello", "")))
