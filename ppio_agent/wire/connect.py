"""Frames of the Connect protocol's streams: a flag byte, a length, a payload.

Without attrs, which a supervisor would load for this alone.

Source: the Connect protocol, "Streaming RPCs" (connectrpc.com/docs/protocol).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ppio_agent.exceptions import WireError

__all__ = [
    "HTTP_STATUS",
    "STREAM_CONTENT_TYPE",
    "Frame",
    "FrameReader",
    "encode_frame",
]

STREAM_CONTENT_TYPE = "application/connect+json"

HTTP_STATUS = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "failed_precondition": 400,
    "resource_exhausted": 429,
    "internal": 500,
    "unimplemented": 501,
    "unavailable": 503,
}
"""Status of a unary answer for each error code in use."""

_HEAD = struct.Struct(">BI")
_COMPRESSED = 0b01
_END = 0b10


class Frame(NamedTuple):
    """One message of a stream; the last has `end` set and may carry an error."""

    payload: bytes
    end: bool = False


def encode_frame(payload: bytes, *, end: bool = False) -> bytes:
    """Return a frame as one piece, to be sent in one write."""
    return _HEAD.pack(_END if end else 0, len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into frames, as it comes.

    Args:
        max_frame: Largest payload in bytes.

    Thread safety: one thread at a time.
    """

    def __init__(self, max_frame: int = 4 * 1024 * 1024) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished frame are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes; return the frames they completed, in order.

        Raises:
            WireError: A frame is compressed or too large.
        """
        self._buffer += data
        frames: list[Frame] = []
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            flags, length = _HEAD.unpack_from(self._buffer, start)
            if flags & _COMPRESSED:
                raise WireError("", "compressed frames are not supported")
            if length > self._max_frame:
                raise WireError("", f"a frame is larger than {self._max_frame} bytes")
            end = start + _HEAD.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + _HEAD.size : end])
            frames.append(Frame(payload, end=bool(flags & _END)))
            start = end
        del self._buffer[:start]
        return frames
