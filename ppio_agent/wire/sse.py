"""Event streams: bytes to events and events to bytes.

The framer is linear in its input however that is cut: each byte is scanned once, so
an event of 8 MiB that comes in pieces of 128 bytes costs no more than one that comes
whole. Text is UTF-8 with replacement, whatever charset the answer claims.

Source: WHATWG HTML Living Standard, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import re

from attrs import frozen

from ppio_agent.exceptions import EventTooLargeError

__all__ = [
    "CONTENT_TYPE",
    "Heartbeat",
    "SSEEvent",
    "SSEFramer",
    "Truncation",
    "format_comment",
    "format_event",
]

CONTENT_TYPE = "text/event-stream"

_LINE_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@frozen
class SSEEvent:
    """One event of a stream.

    Attributes:
        data: The data lines, joined with LF.
        event: Its type; `message` if the stream named none.
        id: The last id seen on the stream so far, or None.
        retry: Reconnection time in seconds, if this block gave one.
    """

    data: str
    event: str = "message"
    id: str | None = None
    retry: float | None = None


@frozen
class Heartbeat:
    """A comment line: no content, but a sign of life."""

    text: str


@frozen
class Truncation:
    """What a stream lost when it ended inside a block.

    Attributes:
        bytes_dropped: Size of the unfinished block.
        last_event_id: Id of the last complete event, from which to resume.
    """

    bytes_dropped: int
    last_event_id: str | None


class SSEFramer:
    """Cuts a byte stream into events, as it comes.

    Args:
        max_event_bytes: Largest block, counted while it grows.

    Attributes:
        last_event_id: Id of the last complete event.
        error: That a block has outgrown the limit; the framer is spent then.

    Thread safety: one thread at a time.
    """

    def __init__(self, max_event_bytes: int = 8 * 1024 * 1024) -> None:
        self._limit = max_event_bytes
        self._first_line = True
        self._skip_lf = False  # the last feed ended in CR: an LF now belongs to it
        # What is kept while it grows is kept in one buffer: a list of small pieces
        # would take many times the memory of its bytes.
        self._partial = bytearray()  # the unfinished line
        self._size = 0  # of the finished lines of the unfinished block
        self._data: bytes | bytearray | None = None  # a buffer from the second line on
        self._event = b""
        self._retry: float | None = None
        self._pending_id: str | None = None  # takes effect when the block ends
        self.last_event_id: str | None = None
        self.error: EventTooLargeError | None = None

    def feed(self, data: bytes) -> list[SSEEvent | Heartbeat]:
        """Take the next bytes; return what they completed, in order.

        Raises:
            EventTooLargeError: A block outgrew the limit, and nothing was completed
                before; else it is in `error`, and raised by what is called next.
        """
        if self.error is not None:
            raise self.error
        if self._skip_lf and data:
            self._skip_lf = False
            if data[0] == 0x0A:
                data = data[1:]
        if b"\r" in data:
            lines = _LINE_END.split(data)
            self._skip_lf = data.endswith(b"\r")
        else:
            lines = data.split(b"\n")
        found: list[SSEEvent | Heartbeat] = []
        try:
            self._take_lines(lines, found)
        except EventTooLargeError as error:
            self.error = error
            if not found:
                raise
        return found

    def _take_lines(
        self, lines: list[bytes], found: list[SSEEvent | Heartbeat]
    ) -> None:
        rest = lines.pop()
        if lines and (self._partial or self._first_line):
            self._take_line(self._first_of(lines), found)
        for line in lines:
            self._take_line(line, found)
        if rest:
            self._partial += rest
            self._check(self._size + len(self._partial))

    def finish(self) -> Truncation | None:
        """Say that no more bytes come; return what is lost by that, if anything.

        Raises:
            EventTooLargeError: A block outgrew the limit.
        """
        if self.error is not None:
            raise self.error
        dropped = self._size + len(self._partial)
        return Truncation(dropped, self.last_event_id) if dropped else None

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise EventTooLargeError(
                f"an event of the stream is larger than {self._limit} bytes;"
                " raise max_event_bytes if that is expected"
            )

    def _first_of(self, lines: list[bytes]) -> bytes:
        """Remove the first line; return it with what earlier feeds had of it."""
        line = lines.pop(0)
        if self._partial:
            self._partial += line
            line = bytes(self._partial)
            self._partial = bytearray()
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BOM)
        return line

    def _take_line(self, line: bytes, found: list[SSEEvent | Heartbeat]) -> None:
        if not line:
            self._end_block(found)
            return
        size = self._size + len(line) + 1
        if size > self._limit:
            self._check(size)
        name, _, value = line.partition(b":")
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._add_data(value)
        elif not name:
            found.append(Heartbeat(value.decode("utf-8", "replace")))
            return  # a comment is no part of a block: alone, it loses nothing
        elif name == b"id":
            if b"\0" not in value:
                self._pending_id = value.decode("utf-8", "replace")
        elif name == b"event":
            self._event = value
        elif name == b"retry" and value.isdigit() and len(value) < 16:
            self._retry = int(value) / 1000
        self._size = size

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += b"\n"
        self._data += value

    def _end_block(self, found: list[SSEEvent | Heartbeat]) -> None:
        if self._pending_id is not None:
            self.last_event_id = self._pending_id or None
            self._pending_id = None
        if self._data is not None:
            kind = self._event.decode("utf-8", "replace") if self._event else "message"
            text = self._data.decode("utf-8", "replace")
            found.append(SSEEvent(text, kind, self.last_event_id, self._retry))
            self._data = None
        self._event = b""
        self._retry = None
        self._size = 0


def format_event(
    data: bytes,
    *,
    id: int | str | None = None,
    event: str | None = None,
    retry_ms: int | None = None,
) -> bytes:
    """Return one event as bytes.

    Args:
        data: One line, as JSON is: it must hold no CR or LF.
        id: Value of the `id:` line, if any.
        event: Value of the `event:` line, if any.
        retry_ms: Value of the `retry:` line, in milliseconds, if any.
    """
    head = b"" if id is None else b"id: %b\n" % str(id).encode()
    if event is not None:
        head += b"event: %b\n" % event.encode()
    if retry_ms is not None:
        head += b"retry: %d\n" % retry_ms
    return b"%bdata: %b\n\n" % (head, data)


def format_comment(text: str) -> bytes:
    """Return a comment block, which clients take for a sign of life."""
    return f": {text}\n\n".encode()
