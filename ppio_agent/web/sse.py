"""Writes a stream of events while it is waited for: first bytes, heartbeat, framing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from ppio_agent.exceptions import WireError
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.sse import CONTENT_TYPE, format_comment, format_event

__all__ = ["SSE_HEADERS", "Entry", "Source", "sse_body"]

SSE_HEADERS: tuple[tuple[str, str], ...] = (
    ("Content-Type", f"{CONTENT_TYPE}; charset=utf-8"),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
)

_HEARTBEAT = format_comment("hb")
_OPEN = {"bare": format_comment("open"), "full": b": open\nretry: 1000\n\n"}
# How often a waiting writer looks whether its client has left, in seconds.
_LOOK_EVERY = 0.25
# About how many bytes are written at once: what a reader does not take is held several
# times over, by the writer and in the connection's buffer.
_PIECE = 1 << 16
_BARE_ERROR = ("error", "error_type", "message")


class Entry(Protocol):
    """One recorded event."""

    @property
    def seq(self) -> int:
        """Its number: 1, 2, 3 … without gaps."""

    @property
    def data(self) -> bytes:
        """One line of JSON."""

    @property
    def kind(self) -> str:
        """`chunk`, or one of `error` and `end`, which end a stream."""

    @property
    def event(self) -> str | None:
        """Name of the event, if the chunk gave one."""

    @property
    def retry_ms(self) -> int | None:
        """Reconnection time in milliseconds, if the chunk gave one."""


class Source(Protocol):
    """Where events come from, such as a replay ring."""

    @property
    def closed(self) -> bool:
        """Whether the entry of kind `end` is in, so that nothing will follow."""

    def read(self, after: int, timeout: float | None) -> Sequence[Entry]:
        """Return what comes after number `after`, waiting up to `timeout` for it.

        An empty sequence means that nothing came in time.
        """


def sse_body(
    source: Source,
    *,
    dialect: Literal["full", "bare"],
    heartbeat: float | None = 15.0,
    after: int = 0,
    client_gone: Callable[[], bool] | None = None,
) -> Iterator[bytes]:
    """Yield a stream's body up to its end.

    The first piece comes before anything is waited for, since a server sends the head
    of an answer with the first piece only. What a source has is one piece, or several
    of about 64 KiB.

    Args:
        source: The events; that of kind `end` is the last.
        dialect: `full` has ids, event names and a last `end` event; `bare` has only
            data lines and comments, which is what older clients understand.
        heartbeat: Seconds of silence after which a comment is sent; None means never.
        after: Number of the last event that the client has.
        client_gone: Asked every 0.25 s of silence; once true, the stream ends here.

    Blocking: each step waits for the source, at most until the next heartbeat.
    """
    yield _OPEN[dialect]
    frame = _FullFrame() if dialect == "full" else _BareFrame()
    silent_since = time.monotonic()
    while not frame.ended:
        closed = source.closed
        entries = source.read(after, _patience(silent_since, heartbeat, client_gone))
        if entries:
            entries = _at_once(entries)
            after = entries[-1].seq
            piece = b"".join(map(frame.format, entries))
        elif closed or (client_gone is not None and client_gone()):
            return
        elif heartbeat is None or time.monotonic() - silent_since < heartbeat:
            continue
        else:
            piece = _HEARTBEAT
        if piece:
            yield piece
        silent_since = time.monotonic()


def _at_once(entries: Sequence[Entry]) -> Sequence[Entry]:
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.data)
        if size > _PIECE and count:
            return entries[:count]
    return entries


def _patience(
    silent_since: float,
    heartbeat: float | None,
    client_gone: Callable[[], bool] | None,
) -> float | None:
    look = None if client_gone is None else _LOOK_EVERY
    if heartbeat is None:
        return look
    beat = max(0.0, silent_since + heartbeat - time.monotonic())
    return beat if look is None else min(beat, look)


class _FullFrame:
    ended = False

    def format(self, entry: Entry) -> bytes:
        event = entry.event
        if entry.kind != "chunk":
            event = entry.kind
            self.ended = event == "end"
        return format_event(
            entry.data, id=entry.seq, event=event, retry_ms=entry.retry_ms
        )


class _BareFrame:
    ended = False
    _failed = False

    def format(self, entry: Entry) -> bytes:
        if entry.kind == "end":
            self.ended = True
            return b"" if self._failed else format_comment("end")
        if entry.kind == "error":
            self._failed = True
            return format_event(_bare_error(entry.data))
        return format_event(entry.data)


def _bare_error(data: bytes) -> bytes:
    try:
        facts = decode_json(data)
    except WireError:
        return data
    if not isinstance(facts, dict):
        return data
    return encode_json({name: facts[name] for name in _BARE_ERROR if name in facts})
