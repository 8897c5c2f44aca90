"""Pieces of a stream: as a handler yields them, and as the replay ring keeps them."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from attrs import field, frozen

from ppio_agent.wire.json import decode_json, encode_json

__all__ = ["Chunk", "ChunkCollector", "Entry"]

_EVENT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_RESERVED = ("error", "end")


@frozen
class Chunk:
    """One piece of a stream, for handlers that want more than its data.

    Attributes:
        data: Any JSON value.
        event: Name of the event; `error` and `end` belong to the protocol.
        id: The handler's own id of the piece; the wire's id is always its number.
        retry: Seconds a browser should wait before it connects again.
        seq: Number of the piece in its stream, from 1; None where it has none yet.

    Thread safety: immutable.
    """

    data: Any
    event: str | None = field(default=None, kw_only=True)
    id: str | None = field(default=None, kw_only=True)
    retry: float | None = field(default=None, kw_only=True)
    seq: int | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        event = self.event
        if event is not None and (not _EVENT.fullmatch(event) or event in _RESERVED):
            raise ValueError(
                f"event {event!r} is not 1 to 64 of A-Z a-z 0-9 _ . -,"
                " or is one of error, end"
            )
        if self.retry is not None and self.retry < 0:
            raise ValueError("retry is a number of seconds from 0 on")


@frozen
class Entry:
    """One numbered entry of a replay ring.

    Attributes:
        seq: Its number, from 1, without gaps.
        data: Its JSON.
        kind: `chunk`, or one of the terminal `error` and `end`.
        event: Name of the event, if the handler gave one.
        retry_ms: Reconnection time in milliseconds, if the handler gave one.
        handler_id: The handler's own id of the piece, if it gave one.
        offset: Bytes appended to the ring up to and including this entry.

    Thread safety: immutable.
    """

    seq: int
    data: bytes
    kind: Literal["chunk", "error", "end"] = "chunk"
    event: str | None = None
    retry_ms: int | None = None
    handler_id: str | None = None
    offset: int = 0


class ChunkCollector:
    """Keeps the encoded pieces of a stream, to give its whole result afterwards.

    Args:
        max_bytes: Largest sum of JSON kept; above it there is no result at all.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_all_text", "_json", "_max_bytes", "truncated")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._json = bytearray()
        self._all_text = True
        self.truncated = False

    @property
    def size(self) -> int:
        """Bytes kept."""
        return len(self._json)

    def add(self, data: bytes, *, is_text: bool) -> None:
        """Take the next piece, as JSON."""
        if self.truncated:
            return
        if len(self._json) + len(data) > self._max_bytes:
            self.truncated = True
            self._json = bytearray()
            return
        if self._json:
            self._json += b","
        self._json += data
        self._all_text = self._all_text and is_text

    def result_json(self) -> bytes:
        """Return the whole: one text if all pieces are texts, else their array."""
        if self.truncated:
            return b"null"
        if not self._json:
            return b'""' if self._all_text else b"[]"
        if self._all_text:
            return encode_json("".join(json.loads(self._array())))
        return self._array()

    def _array(self) -> bytes:
        return b"[%b]" % bytes(self._json)

    def result(self) -> Any:
        """Return the same as a Python value; None if it was too much."""
        return decode_json(self.result_json())
