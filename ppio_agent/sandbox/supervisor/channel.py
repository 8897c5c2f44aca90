"""The line between the platform and a supervisor: messages and descriptors.

Each message is a JSON object behind its length in four bytes, at most 1 MiB. A message
may carry one descriptor, and says so by `"fd": true`. Neither end trusts the other: a
message of another shape is `ChannelError`, after which the line is of no more use.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from .loop import READ, WRITE, Loop

__all__ = [
    "MAX_MESSAGE",
    "Channel",
    "ChannelError",
    "Message",
    "MessageReader",
    "encode_message",
    "receive",
    "receive_one",
]

MAX_MESSAGE = 1024 * 1024
_HEAD = struct.Struct(">I")
_CHUNK = 65536
_MAX_FDS = 16
_MAX_QUEUED = 4096

Message = dict[str, Any]


class ChannelError(Exception):
    """The other end does not keep to the protocol, or does not read."""


def encode_message(message: Mapping[str, Any]) -> bytes:
    """Return a message as it travels.

    Raises:
        ChannelError: It is larger than `MAX_MESSAGE`.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_MESSAGE:
        raise ChannelError(f"a message is larger than {MAX_MESSAGE} bytes")
    return _HEAD.pack(len(body)) + body


class MessageReader:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take the next bytes; return the messages they completed, in order.

        Raises:
            ChannelError: A message is too large or not a JSON object.
        """
        self._buffer += data
        messages = []
        while len(self._buffer) >= _HEAD.size:
            (length,) = _HEAD.unpack_from(self._buffer)
            if length > MAX_MESSAGE:
                raise ChannelError(f"a message is larger than {MAX_MESSAGE} bytes")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            messages.append(_decode(bytes(self._buffer[_HEAD.size : end])))
            del self._buffer[:end]
        return messages


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise ChannelError("a message is not JSON") from exc
    if not isinstance(message, dict):
        raise ChannelError("a message is not an object")
    return message


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Read what there is from the line, and the descriptors that came with it.

    Returns:
        Bytes, empty at the end of the line, and open descriptors, not inheritable.

    Blocking: as the socket does.
    """
    return _receive(sock, _CHUNK)


def _receive(sock: socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
    flags |= getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, _, _ = sock.recvmsg(size, room, flags)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - its only form
    return data, list(fds)


def receive_one(sock: socket.socket) -> tuple[Message, int | None]:
    """Wait for one message, and read not a byte more.

    Returns:
        The message, and the descriptor that came with it.

    Raises:
        ChannelError: The line ends before it is whole, or it is not a message.
    """
    head, fds = _receive(sock, _HEAD.size, socket.MSG_WAITALL)
    try:
        length = _HEAD.unpack(head)[0] if len(head) == _HEAD.size else 0
        if length > MAX_MESSAGE:
            raise ChannelError(f"a message is larger than {MAX_MESSAGE} bytes")
        body = sock.recv(length, socket.MSG_WAITALL)
        if len(body) < length:
            raise ChannelError("the line has ended within a message")
        message = _decode(body)
    except BaseException:
        _close_all(fds)
        raise
    _close_all(fds[1:])
    return message, fds[0] if fds else None


class Channel:
    """The supervisor's end: never blocks, and calls back for each message.

    Args:
        loop: Where it waits.
        sock: The line; owned by the channel.
        on_message: Told each message.
        on_end: Told once that the platform is gone or cannot be understood.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        *,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_end = on_end
        self._reader = MessageReader()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._open = True
        sock.settimeout(0)
        loop.watch(sock.fileno(), READ, self._ready)

    def send(self, message: Mapping[str, Any], fd: int | None = None) -> None:
        """Send a message, and with it a descriptor, of which this takes charge."""
        if fd is not None:
            message = {**message, "fd": True}
        if not self._open or len(self._queue) >= _MAX_QUEUED:
            _close_all([] if fd is None else [fd])
            self._end()
            return
        self._queue.append((encode_message(message), [] if fd is None else [fd]))
        self._flush()

    def close(self) -> None:
        """Close the line. Idempotent."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            while self._queue:
                _close_all(self._queue.popleft()[1])

    def _end(self) -> None:
        if self._open:
            self.close()
            self._on_end()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and self._open:
            self._read()

    def _read(self) -> None:
        try:
            data, fds = receive(self._sock)
            _close_all(fds)  # the platform has none to give
            messages = self._reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, ChannelError):
            self._end()
            return
        if not data:
            self._end()
        for message in messages:
            self._on_message(message)

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds)
            except BlockingIOError:
                break
            except OSError:
                self._end()
                return
            _close_all(fds)
            if sent < len(data):
                self._queue[0] = (data[sent:], [])
                break
            self._queue.popleft()
        events = READ | WRITE if self._queue else READ
        self._loop.watch(self._sock.fileno(), events, self._ready)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
