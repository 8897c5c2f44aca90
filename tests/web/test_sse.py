"""Event streams as they are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from attrs import frozen

from ppio_agent.web import sse_body
from ppio_agent.wire.sse import SSEEvent, SSEFramer
from tests.support import SLOW


@frozen
class Piece:
    seq: int
    data: bytes
    kind: str = "chunk"
    event: str | None = None
    retry_ms: int | None = None


class Script:
    """A source that gives one list of entries a read, then is silent."""

    def __init__(self, *reads: Sequence[Piece], closed: bool = False) -> None:
        self._reads = list(reads)
        self._silence = threading.Event()
        self.closed = closed
        self.asked: list[tuple[int, float | None]] = []

    def read(self, after: int, timeout: float | None) -> Sequence[Piece]:
        self.asked.append((after, timeout))
        if self._reads:
            return self._reads.pop(0)
        if not self.closed:
            self._silence.wait(timeout)
        return []


class Whole:
    """A source that has everything from the start."""

    closed = True

    def __init__(self, entries: Sequence[Piece]) -> None:
        self._entries = entries

    def read(self, after: int, timeout: float | None) -> Sequence[Piece]:
        del timeout
        return [entry for entry in self._entries if entry.seq > after]


END = Piece(3, b'{"status":"succeeded"}', "end")
ERROR = Piece(
    2,
    b'{"error":"boom","error_type":"ValueError","message":"boom","code":"x"}',
    "error",
)


def test_the_first_bytes_come_before_anything_is_read() -> None:
    """A server sends the head of an answer with the first piece only."""
    source = Script()
    body = sse_body(source, dialect="bare")
    assert next(body) == b": open\n\n"
    assert source.asked == []


def test_the_full_dialect_numbers_names_and_ends() -> None:
    """Every event has an id, the chunk's own name and retry, and `end` is the last."""
    source = Script(
        [Piece(1, b'"a"'), Piece(2, b'{"n":1}', event="tool", retry_ms=250)], [END]
    )
    assert b"".join(sse_body(source, dialect="full")) == (
        b": open\nretry: 1000\n\n"
        b'id: 1\ndata: "a"\n\n'
        b'id: 2\nevent: tool\nretry: 250\ndata: {"n":1}\n\n'
        b'id: 3\nevent: end\ndata: {"status":"succeeded"}\n\n'
    )


def test_the_full_dialect_ends_after_an_error_too() -> None:
    """`error` first, then `end`."""
    body = b"".join(sse_body(Script([ERROR, END]), dialect="full"))
    events = [e for e in SSEFramer().feed(body) if isinstance(e, SSEEvent)]
    assert [(e.id, e.event) for e in events] == [("2", "error"), ("3", "end")]


def test_the_bare_dialect_has_only_data_and_comments() -> None:
    """Clients that take every other line for content see none."""
    source = Script([Piece(1, b'"a"', event="tool", retry_ms=5)], [END])
    assert b"".join(sse_body(source, dialect="bare")) == (
        b': open\n\ndata: "a"\n\n: end\n\n'
    )


def test_the_bare_dialect_tells_an_error_without_an_end() -> None:
    """Three facts, and no comment that would say it went well."""
    assert b"".join(sse_body(Script([ERROR, END]), dialect="bare")) == (
        b": open\n\n"
        b'data: {"error":"boom","error_type":"ValueError","message":"boom"}\n\n'
    )


def test_all_that_is_there_is_one_piece() -> None:
    """Many small events cost one send."""
    entries = [Piece(n, b"%d" % n) for n in range(1, 100)]
    pieces = list(sse_body(Script(entries, [END]), dialect="full"))
    assert len(pieces) == 3


def test_much_is_several_pieces() -> None:
    """None is lost, and one that is large itself comes whole."""
    sizes = (40_000, 20_000, 40_000, 90_000, 1)
    entries = [Piece(n, b"x" * size) for n, size in enumerate(sizes, 1)]
    pieces = list(sse_body(Whole([*entries, Piece(6, b"{}", "end")]), dialect="bare"))
    assert [len(piece) // 1000 for piece in pieces] == [0, 60, 40, 90, 0]
    assert b"".join(pieces).count(b"data: ") == 5


def test_reading_goes_on_where_it_was() -> None:
    """Each read asks for what follows the last event sent."""
    source = Script([Piece(6, b"1"), Piece(7, b"2")], [Piece(8, b"3", "end")])
    list(sse_body(source, dialect="full", after=5, heartbeat=None))
    assert source.asked == [(5, None), (7, None)]


def test_silence_is_filled_with_heartbeats() -> None:
    """A comment for each interval, and no empty pieces, which would not be sent."""
    body = sse_body(Script(), dialect="bare", heartbeat=0.05)
    next(body)
    began = time.monotonic()
    assert [next(body) for _ in range(4)] == [b": hb\n\n"] * 4
    assert 0.19 <= time.monotonic() - began < 1.0 * SLOW


def test_a_client_that_left_ends_the_stream() -> None:
    """It is asked for a few times a second while nothing is sent."""
    gone = threading.Event()
    body = sse_body(Script(), dialect="bare", client_gone=gone.is_set)
    next(body)
    threading.Timer(0.1, gone.set).start()
    began = time.monotonic()
    assert list(body) == []
    assert time.monotonic() - began < 0.6 * SLOW


def test_a_closed_source_with_nothing_left_ends_the_stream() -> None:
    """A reader that has the last event already is not kept waiting."""
    source = Script(closed=True)
    assert list(sse_body(source, dialect="full", after=9)) == [
        b": open\nretry: 1000\n\n"
    ]


def test_entries_that_came_just_before_the_end_are_sent() -> None:
    """That the source has closed says nothing of what was there to read."""
    source = Script([], [Piece(1, b"1"), END])
    body = b"".join(sse_body(source, dialect="bare", heartbeat=0.01))
    assert b"data: 1\n\n: end\n\n" in body


def test_an_error_that_is_no_object_is_sent_as_it_is() -> None:
    """Whatever the source holds, the stream does not break over it."""
    for data in (b'"boom"', b"boom"):
        body = b"".join(
            sse_body(Script([Piece(1, data, "error"), END]), dialect="bare")
        )
        assert body == b": open\n\ndata: " + data + b"\n\n"
