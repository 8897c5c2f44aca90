"""Event streams: bytes to events and events to bytes."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
import sseclient
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import EventTooLargeError
from ppio_agent.wire.sse import (
    Heartbeat,
    SSEEvent,
    SSEFramer,
    Truncation,
    format_comment,
    format_event,
)
from tests.wire.support import cuts

Found = tuple[list[SSEEvent | Heartbeat], Truncation | None]

MIB = 1024 * 1024
PIECES = [
    b"data:", b"data: ", b"data", b"id:", b"id", b"event: ", b"retry: ", b":", b": ",
    b"\n", b"\n", b"\n\n", b"\r", b"\r\n", b"\r\r", b"\n\r\n",
    b"x", b"{\"a\": 1}", b"7", b" ", b"\0", b"\xef\xbb\xbf",
    "\u2028\u0085é😀".encode(), b"\x80", b"\xff\xfe", b"\xe2\x82",
]  # fmt: skip
STREAMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join)
MESSY = (
    b"\xef\xbb\xbf: hi\r\nid: 1\rdata: a\xe2\x80\xa8b\ndata:\xff\r\n\n\r\n"
    b"event: end\r\ndata\r\rid\ndata: last\n\nretry: 5\ndata: {"
)


def read(pieces: list[bytes], **options: int) -> Found:
    """Feed the pieces; return all that came of them and what was lost."""
    framer = SSEFramer(**options)
    found = [each for piece in pieces for each in framer.feed(piece)]
    return found, framer.finish()


def events(*pieces: bytes) -> list[SSEEvent | Heartbeat]:
    return read([*pieces])[0]


@settings(deadline=None, max_examples=300)
@example(pieces=[MESSY[i : i + 1] for i in range(len(MESSY))])
@example(pieces=[b"data: x\r", b"", b"\n\r", b"\n"])
@example(pieces=[b"\xef", b"\xbb", b"\xbf", b"data: x\n\n"])
@given(pieces=cuts(STREAMS))
def test_events_do_not_depend_on_the_cut(pieces: list[bytes]) -> None:
    """Any cut of any stream gives the same events, and the same loss at its end."""
    assert read(pieces) == read([b"".join(pieces)])


def test_a_messy_stream_is_read_as_the_standard_says() -> None:
    """BOM, CR, LF, CRLF, U+2028, a bad byte, an id cleared, an unfinished end."""
    assert read([MESSY]) == (
        [
            Heartbeat("hi"),
            SSEEvent("a\u2028b\n\ufffd", id="1"),
            SSEEvent("", "end", id="1"),
            SSEEvent("last"),
        ],
        Truncation(len(b"retry: 5\ndata: {"), None),
    )


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\ufeff"))
FIELDS = st.tuples(
    st.sampled_from(["data", "data", "event", "id", "comment", "other"]),
    TEXT,
    st.sampled_from([":", ": ", ":  ", ""]),
)
BLOCKS = st.lists(st.lists(FIELDS, max_size=6), max_size=5)


@settings(deadline=None, max_examples=200)
@given(blocks=BLOCKS, end=st.sampled_from(["\n", "\r", "\r\n"]))
def test_another_parser_reads_the_same(
    blocks: list[list[tuple[str, str, str]]], end: str
) -> None:
    """On clean, whole blocks the package `sseclient-py` agrees field by field."""
    whole = [
        "".join(
            f"{name}{mark}{text if mark else ''}{end}" for name, text, mark in block
        )
        + end
        for block in blocks
    ]
    stream = [block.encode() for block in whole]
    theirs = [
        (event.data, event.event)
        for event in sseclient.SSEClient(_Source(stream)).events()
    ]
    ours = [(e.data, e.event) for e in events(*stream) if isinstance(e, SSEEvent)]
    assert ours == theirs


class _Source(list[bytes]):
    """What sseclient-py reads from."""

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("block", "event"),
    [
        (b"data:x\n\n", SSEEvent("x")),
        (b"data: x\n\n", SSEEvent("x")),
        (b"data:  x \n\n", SSEEvent(" x ")),
        (b"data\n\n", SSEEvent("")),
        (b"data:\ndata:\n\n", SSEEvent("\n")),
        (b"data: a\ndata: b\ndata: c\n\n", SSEEvent("a\nb\nc")),
        (b"data: a:b\n\n", SSEEvent("a:b")),
        (b"Data: x\ndata : x\n data: x\ndata: y\n\n", SSEEvent("y")),
        (b"event: end\nevent:\ndata: x\n\n", SSEEvent("x")),
        (b"event: end\ndata: x\n\n", SSEEvent("x", "end")),
        (b"retry: 1500\ndata: x\n\n", SSEEvent("x", retry=1.5)),
        (b"retry: 1.5\ndata: x\n\n", SSEEvent("x")),
        (b"retry: -1\ndata: x\n\n", SSEEvent("x")),
        (b"retry:\ndata: x\n\n", SSEEvent("x")),
        ("retry: \u0663\ndata: x\n\n".encode(), SSEEvent("x")),
        (b"retry: " + b"9" * 5000 + b"\ndata: x\n\n", SSEEvent("x")),
        (b"id: 1\nid: 2\ndata: x\n\n", SSEEvent("x", id="2")),
        (b"id: 1\nid: 2\0\ndata: x\n\n", SSEEvent("x", id="1")),
        ("id: é\ndata: x\n\n".encode(), SSEEvent("x", id="é")),
        (b"data: \xe2\x82\n\n", SSEEvent("\ufffd")),
    ],
)
def test_fields_are_read_as_the_standard_says(block: bytes, event: SSEEvent) -> None:
    """WHATWG HTML, 9.2.6."""
    assert events(block) == [event]


@pytest.mark.parametrize(
    "block", [b"\n", b"\r\n\r\n", b"event: end\n\n", b"retry: 1\n\n", b"x\n\n"]
)
def test_a_block_without_data_is_no_event(block: bytes) -> None:
    """And leaves nothing to the next one."""
    assert events(block, b"data: x\n\n") == [SSEEvent("x")]


def test_an_id_lasts_until_it_is_changed_or_cleared() -> None:
    """A block without data counts; one that is not finished does not."""
    framer = SSEFramer()
    stream = b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\ndata: c\n\nid\ndata: d\n\n"
    assert [e.id for e in framer.feed(stream) if isinstance(e, SSEEvent)] == [
        "1", "1", "2", None,
    ]  # fmt: skip
    framer.feed(b"id: 3\ndata: e\n\nid: 4\ndata: f\n")
    assert framer.last_event_id == "3"
    assert framer.finish() == Truncation(len(b"id: 4\ndata: f\n"), "3")


def test_a_comment_is_a_sign_of_life_only() -> None:
    """It is reported at once, also inside a block, of which it is no part."""
    framer = SSEFramer()
    assert framer.feed(b": one\ndata: a\n:two\n") == [
        Heartbeat("one"),
        Heartbeat("two"),
    ]
    assert framer.feed(b":\ndata: b\n\n:\n") == [
        Heartbeat(""),
        SSEEvent("a\nb"),
        Heartbeat(""),
    ]
    assert framer.finish() is None


@pytest.mark.parametrize(
    ("stream", "dropped"),
    [(b"", 0), (b"data: x\n\n", 0), (b"data: x\n", 8), (b"data: x", 7), (b"\r", 0)],
)
def test_an_unfinished_block_is_dropped_and_reported(
    stream: bytes, dropped: int
) -> None:
    """`{"x": tru` is never taken for an event."""
    found, truncation = read([stream])
    assert found == [SSEEvent("x")] * (stream == b"data: x\n\n")
    assert truncation == (Truncation(dropped, None) if dropped else None)


LIMIT = 64
BOUNDED = st.lists(st.sampled_from([p for p in PIECES if b"\xef" not in p])).map(
    b"".join
)


def _too_large(pieces: list[bytes]) -> bool:
    try:
        read(pieces, max_event_bytes=20)
    except EventTooLargeError:
        return True
    return False


@settings(deadline=None, max_examples=200)
@given(pieces=cuts(BOUNDED))
def test_the_limit_does_not_depend_on_the_cut(pieces: list[bytes]) -> None:
    """A stream that is too large for one reader is so for every other."""
    assert _too_large(pieces) == _too_large([b"".join(pieces)])


def test_the_limit_holds_for_each_block_alone() -> None:
    """Any number of events may pass, none may be larger."""
    framer = SSEFramer(LIMIT)
    for _ in range(100):
        assert len(framer.feed(b"data: %b\n\n" % (b"x" * (LIMIT - 7)))) == 1
    with pytest.raises(EventTooLargeError, match="larger than 64 bytes"):
        framer.feed(b"data: %b\n\n" % (b"x" * (LIMIT - 6)))


def test_what_comes_before_a_block_that_is_too_large_is_given_first() -> None:
    """Then the framer is spent: it raises, whatever is called."""
    framer = SSEFramer(LIMIT)
    found = framer.feed(b"data: 1\n\ndata: " + b"x" * LIMIT)

    assert found == [SSEEvent("1")]
    for call in (lambda: framer.feed(b"\n\ndata: 2\n\n"), framer.finish):
        with pytest.raises(EventTooLargeError):
            call()


@pytest.mark.parametrize("line", [b"data: x\n", b"other: x\n", b"data: ", b"\xff"])
def test_whatever_makes_a_block_grow_counts(line: bytes) -> None:
    """Lines, known or not, and unfinished ones."""
    with pytest.raises(EventTooLargeError):
        read([line] * (LIMIT + 1), max_event_bytes=LIMIT)


def test_comments_do_not_make_a_block_grow() -> None:
    """An event may take its time between many signs of life."""
    found, _ = read([b": still here\n"] * LIMIT, max_event_bytes=LIMIT)
    assert found == [Heartbeat("still here")] * LIMIT


def _endless(piece: bytes, sent: list[int]) -> Iterator[bytes]:
    while True:
        sent[0] += len(piece)
        yield piece


@pytest.mark.parametrize(
    "piece", [b"x", b"xyz", b"x" * 128, b"data:ab\n", b"data\n", b"x" * 4096]
)
def test_a_growing_event_is_refused_before_its_end_in_bounded_memory(
    piece: bytes,
) -> None:
    """The peer may go on for ever; its reader stops at the limit and stays small.

    Small pieces and many short lines cost their bytes, not an object each.
    """
    limit = 64 * 1024
    sent = [0]
    framer = SSEFramer(limit)
    framer.feed(b"data:")
    tracemalloc.start()
    try:
        with pytest.raises(EventTooLargeError):
            any(map(framer.feed, _endless(piece, sent)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert limit - 8 <= sent[0] <= limit + len(piece)
    assert peak < 2 * limit + 2 * len(piece)


def test_a_complete_event_at_the_limit_needs_three_times_its_size() -> None:
    """The line, its value and its text; not a copy for each piece that came."""
    limit = MIB
    framer = SSEFramer(limit)
    body = b"data: " + b"x" * (limit - 7)
    pieces = [*(body[i : i + 1000] for i in range(0, len(body), 1000)), b"\n\n"]
    tracemalloc.start()
    try:
        found = [event for piece in pieces for event in framer.feed(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(e.data) for e in found if isinstance(e, SSEEvent)] == [limit - 7]
    assert peak < 3.2 * limit


@pytest.mark.parametrize("line", [1000, 8 * MIB])
def test_a_large_event_in_small_feeds_completes(line: int) -> None:
    """8 MiB in 65,536 feeds: looking at a byte twice would take minutes."""
    framer = SSEFramer(9 * MIB)
    row = b"data: %b\n" % (b"x" * (line - 7))
    body = row * (8 * MIB // len(row)) + b"\n"
    found = [
        event
        for i in range(0, len(body), 128)
        for event in framer.feed(body[i : i + 128])
    ]
    (event,) = found
    assert isinstance(event, SSEEvent)
    assert len(event.data) == len(body) - 1 - 6 * (len(body) // len(row)) - 1


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"))


@settings(deadline=None)
@given(
    data=VALUES,
    id_=st.none() | st.integers(0) | VALUES.filter(bool),
    event=st.none() | VALUES.filter(bool),
    retry_ms=st.none() | st.integers(0, 10**9),
)
def test_what_is_written_is_read(
    data: str, id_: int | str | None, event: str | None, retry_ms: int | None
) -> None:
    """Every field comes back."""
    written = format_event(data.encode(), id=id_, event=event, retry_ms=retry_ms)
    assert events(written) == [
        SSEEvent(
            data,
            event or "message",
            None if id_ is None else str(id_),
            None if retry_ms is None else retry_ms / 1000,
        )
    ]


def test_events_and_comments_have_one_form() -> None:
    """Bare clients take each other line for content, so none is written unasked."""
    assert format_event(b"{}") == b"data: {}\n\n"
    assert format_event(b"1", id=0, event="error", retry_ms=0) == (
        b"id: 0\nevent: error\nretry: 0\ndata: 1\n\n"
    )
    assert format_comment("ping") == b": ping\n\n"
    assert events(format_comment("ping")) == [Heartbeat("ping")]
