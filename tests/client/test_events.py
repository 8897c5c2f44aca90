"""How an agent's event streams are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.client.events import EventReader, decode_chunk, join_chunks
from ppio_agent.exceptions import (
    EventTooLargeError,
    InvocationCancelledError,
    InvocationError,
    InvocationTimeoutError,
    ProtocolError,
    StreamInterruptedError,
)
from ppio_agent.wire.json import encode_json

LIMIT = 1 << 20

AWKWARD = (
    b"\xef\xbb\xbf: open\n\nretry: 1000\r\n\r\n"
    b'id: 1\rdata: "caf\xc3\xa9"\r\r'
    b"id: 2\r\ndata: two\r\ndata:lines\n\r\n"
    b"data: \xe2\x80\xa8 bad byte \xff\n\n"
    b'id: 3\ndata: {"n":3}\n\n'
)


def read(data: bytes, *, full: bool, size: int) -> tuple[list[Any], EventReader]:
    reader = EventReader(full=full, max_event_bytes=LIMIT)
    found = []
    for start in range(0, len(data), size):
        found += reader.feed(data[start : start + size])
    return found, reader


class TestEvents:
    @pytest.mark.parametrize("full", [True, False])
    @given(size=st.integers(1, len(AWKWARD)))
    @settings(max_examples=60)
    def test_cuts_make_no_difference(self, full: bool, size: int) -> None:
        """A byte at a time gives what one piece gives."""
        whole, _ = read(AWKWARD, full=full, size=len(AWKWARD))
        cut, _ = read(AWKWARD, full=full, size=size)

        assert cut == whole
        assert [decode_chunk(e.data) for e in whole] == [
            "café",
            "two\nlines",
            "\u2028 bad byte \ufffd",
            {"n": 3},
        ]

    @given(data=st.binary(max_size=300), full=st.booleans())
    @settings(max_examples=100)
    def test_no_bytes_make_it_fail_otherwise(self, data: bytes, *, full: bool) -> None:
        """Whatever comes: events, then an end or one typed error."""
        _, reader = read(data, full=full, size=7)
        failure = reader.finish()

        assert failure is None or isinstance(failure, InvocationError)

    def test_an_unfinished_event_is_dropped_and_told(self) -> None:
        """Half an event is no event."""
        events, reader = read(b'data: "a"\n\ndata: {"x": tru', full=False, size=5)
        failure = reader.finish()

        assert [e.data for e in events] == ['"a"']
        assert isinstance(failure, StreamInterruptedError)
        assert "15 bytes" in failure.message

    def test_too_large_an_event_is_refused_while_it_grows(self) -> None:
        """Long before its end."""
        reader = EventReader(full=True, max_event_bytes=1000)
        for _ in range(10):
            reader.feed(b"x" * 100)
        with pytest.raises(EventTooLargeError, match="max_event_bytes"):
            reader.feed(b"x" * 100)

    @pytest.mark.parametrize("full", [True, False])
    def test_what_came_before_one_that_is_too_large_is_not_lost(
        self, *, full: bool
    ) -> None:
        """In whatever pieces it came; nothing follows, and the end says why."""
        reader = EventReader(full=full, max_event_bytes=100)
        before = b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n"
        events = reader.feed(before + b"id: 3\ndata: " + b"x" * 200 + b"\n\n")

        assert [event.data for event in events] == ["a", "b"]
        assert reader.last_event_id == "2"
        assert reader.done is True
        assert isinstance(reader.finish(), EventTooLargeError)

    def test_what_follows_the_end_may_be_too_large(self) -> None:
        """It is nothing that anybody waits for."""
        reader = EventReader(full=True, max_event_bytes=100)
        reader.feed(b"event: end\ndata: {}\n\ndata: " + b"x" * 200)

        assert reader.finish() is None

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            ("failed", InvocationError),
            ("cancelled", InvocationCancelledError),
            ("timed_out", InvocationTimeoutError),
            ("crashed", InvocationError),
            (["?"], InvocationError),
        ],
    )
    def test_an_end_without_success_is_a_failure(
        self, status: object, error: type[InvocationError]
    ) -> None:
        """Also if no error event came before it; chunks are not lost by it."""
        record = {"status": status, "invocation_id": "inv_1"}
        told = b"data: 1\n\nevent: end\ndata: %b\n\n" % encode_json(record)
        events, reader = read(told, full=True, size=len(told))
        failure = reader.finish()

        assert [e.data for e in events] == ["1"]
        assert type(failure) is error
        assert str(status) in failure.message
        assert failure.invocation_id == "inv_1"

    def test_an_end_says_what_it_knows(self) -> None:
        """The error in the record is the failure's."""
        told = b'event: end\ndata: {"status":"failed","error":"no such city"}\n\n'
        failure = read(told, full=True, size=100)[1].finish()

        assert isinstance(failure, InvocationError)
        assert failure.message == "no such city"

    @pytest.mark.parametrize("record", [b"null", b"[]", b"all is well", b'"ok"'])
    def test_an_end_without_a_record_is_none(self, record: bytes) -> None:
        """Nobody knows what it says of the run."""
        told = b"data: 1\n\nevent: end\ndata: %b\n\n" % record
        events, reader = read(told, full=True, size=len(told))

        assert len(events) == 1
        assert isinstance(reader.finish(), ProtocolError)

    @pytest.mark.parametrize("first", [7, 10**15, 10**18, 17 * 10**17, 10**30])
    def test_ids_of_any_length_are_gone_on_with(self, first: int) -> None:
        """Those that are no count of events, as times in nanoseconds, have gaps."""
        step = 1 if first < 10**18 else 1000
        ids = [first + step * n for n in range(4)]
        blocks = [b"id: %d\ndata: %d\n\n" % (i, n) for n, i in enumerate(ids)]
        reader = EventReader(full=True, max_event_bytes=1000)
        seen = [e.data for e in reader.feed(b"".join(blocks[:2]))]
        reader.restart()
        seen += [e.data for e in reader.feed(b"".join(blocks[2:]))]

        assert seen == ["0", "1", "2", "3"]
        assert reader.last_event_id == str(ids[-1])

    def test_nothing_follows_the_end(self) -> None:
        """The full dialect's last event is the last."""
        events, reader = read(
            b'event: end\ndata: {"status":"succeeded"}\n\ndata: more\n\n',
            full=True,
            size=100,
        )

        assert events == []
        assert reader.done is True
        assert reader.final == {"status": "succeeded"}

    @pytest.mark.parametrize(
        ("data", "failed"),
        [
            ('{"error":"boom"}', True),
            ('{"error":"boom","error_type":"X","message":"m"}', True),
            ('{"error":"boom","code":3}', False),
            ('{"error":null}', False),
            ('{"error":{"message":"m"}}', False),
            ('"error"', False),
        ],
    )
    def test_bare_failures(self, data: str, *, failed: bool) -> None:
        """Only an object that is nothing but an error message."""
        events, reader = read(b"data: %b\n\n" % data.encode(), full=False, size=3)

        assert (reader.finish() is not None) is failed
        assert len(events) == (0 if failed else 1)

    def test_place_is_known_by_ids(self) -> None:
        """Chunks without ids would come again; before the first none can."""
        _, fresh = read(b": open\n\n", full=True, size=9)
        _, named = read(b"id: 1\ndata: 1\n\n", full=True, size=9)
        _, unnamed = read(b"data: 1\n\nid: 2\ndata: 2\n\n", full=True, size=9)
        _, bare = read(b"id: 1\ndata: 1\n\n", full=False, size=9)

        known = [reader.knows_place for reader in (fresh, named, unnamed, bare)]
        assert known == [True, True, False, False]

    @given(
        count=st.integers(1, 8),
        cuts=st.lists(st.integers(0, 120), max_size=4),
        size=st.integers(1, 50),
        repeats=st.booleans(),
    )
    @settings(max_examples=100)
    def test_cut_anywhere_and_gone_on_with(
        self, count: int, cuts: list[int], size: int, *, repeats: bool
    ) -> None:
        """Each event once and in order, though the peer may begin from the first."""
        blocks = [b"id: %d\ndata: %d\n\n" % (n, n) for n in range(1, count + 1)]
        blocks.append(b"id: %d\nevent: end\ndata: {}\n\n" % (count + 1))
        reader = EventReader(full=True, max_event_bytes=LIMIT)
        seen: list[str] = []
        for cut in [*cuts, 10_000]:
            after = 0 if repeats else int(reader.last_event_id or 0)
            sent = b"".join(blocks[after:])[:cut]
            for start in range(0, len(sent), size):
                seen += [e.data for e in reader.feed(sent[start : start + size])]
            if reader.done:
                break
            reader.restart()

        assert seen == [str(n) for n in range(1, count + 1)]
        assert reader.final == {}


def test_join() -> None:
    """Texts make a text, anything else a list."""
    assert join_chunks(["a", "b"]) == "ab"
    assert join_chunks(["a", 1]) == ["a", 1]
    assert join_chunks([]) == []
