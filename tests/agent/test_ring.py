"""The replay ring against a model, and its readers."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent._util.threads import start_thread
from ppio_agent.agent import ReplayRing
from ppio_agent.agent.chunk import Entry
from ppio_agent.exceptions import InvocationError, ReplayGoneError
from tests.support import wait_until


def numbers(entries: list[Entry]) -> list[int]:
    return [entry.seq for entry in entries]


@settings(max_examples=100)
@given(
    st.integers(1, 8),
    st.integers(10, 40),
    st.lists(st.binary(min_size=1, max_size=10), max_size=40),
)
def test_without_readers_the_newest_entries_are_kept(
    max_events: int, max_bytes: int, items: list[bytes]
) -> None:
    """As many as fit both limits, numbered without gaps; the end is always there."""
    ring = ReplayRing(max_events, max_bytes)
    kept: list[tuple[int, bytes]] = []
    for number, item in enumerate(items, 1):
        assert ring.append(item) == number
        kept.append((number, item))
        while len(kept) > max_events or sum(len(d) for _, d in kept) > max_bytes:
            kept.pop(0)
        assert ring.last == number
        assert ring.first == kept[0][0]
        assert ring.size == sum(len(data) for _, data in kept)
    ring.finish(b"{}", b"{}")
    found = ring.read(ring.first - 1)
    assert [(e.seq, e.data) for e in found if e.kind == "chunk"] == kept
    last = len(items)
    assert [(e.seq, e.kind) for e in found[-2:]] == [
        (last + 1, "error"),
        (last + 2, "end"),
    ]


@settings(max_examples=50)
@given(
    st.lists(
        st.one_of(st.integers(1, 9), st.tuples(st.sampled_from("ab"), st.just(0))),
        max_size=60,
    )
)
def test_a_reader_misses_nothing(steps: list[int | tuple[str, int]]) -> None:
    """Appends and reads in any order, as long as the producer need not wait."""
    ring = ReplayRing(max_events=8, max_bytes=10_000)
    readers = {name: ring.attach() for name in "ab"}
    taken: dict[str, list[int]] = {"a": [], "b": []}

    def read(name: str) -> None:
        after = taken[name][-1] if taken[name] else 0
        taken[name] += numbers(readers[name].read(after, 0))

    for step in steps:
        if isinstance(step, tuple):
            read(step[0])
            continue
        for name in "ab":
            # Twice: asking again says that the first answer was taken.
            if ring.last + 1 - readers[name].position > 8:
                read(name)
                read(name)
        ring.append(b"x" * step)
    ring.finish(b"{}")
    for name in "ab":
        read(name)
        assert taken[name] == list(range(1, ring.last + 1))


def test_an_entry_carries_what_the_handler_gave() -> None:
    """Event name, reconnection time and the handler's own id."""
    ring = ReplayRing()
    ring.append(b"1", event="token", retry_ms=5, handler_id="h")
    (entry,) = ring.read()
    assert (entry.event, entry.retry_ms, entry.handler_id) == ("token", 5, "h")


def test_a_piece_larger_than_the_ring_is_an_error() -> None:
    """It could never be replayed."""
    ring = ReplayRing(max_bytes=10)
    ring.append(b"x" * 10)
    with pytest.raises(InvocationError, match="chunk 2 has 11 bytes") as caught:
        ring.append(b"x" * 11)
    assert caught.value.code == "chunk_too_large"


def test_a_value_may_be_larger_than_the_ring() -> None:
    """It is kept anyway, as the invocation's result."""
    ring = ReplayRing(max_bytes=10)
    ring.append_value(b"x" * 11)
    assert numbers(ring.read()) == [1]


def test_reading_waits_for_an_entry() -> None:
    """No longer than until the next one comes."""
    ring = ReplayRing()
    start_thread("t", lambda: ring.append(b"1"))
    assert numbers(ring.read(0, 5.0)) == [1]
    assert ring.read(1, 0.01) == []


def test_reading_past_the_end_returns_nothing_at_once() -> None:
    """A closed ring has nothing to wait for."""
    ring = ReplayRing()
    ring.finish(b"{}")
    ring.finish(b"again")
    assert ring.closed
    assert ring.read(1) == []
    assert ring.append(b"late") == 0
    assert ring.last == 1


def test_what_was_forgotten_cannot_be_read() -> None:
    """410 for the reader, instead of a gap nobody notices."""
    ring = ReplayRing(max_events=2)
    for _ in range(4):
        ring.append(b"x")
    assert ring.first == 3
    assert numbers(ring.read(2)) == [3, 4]
    for call in (ring.read, ring.attach):
        with pytest.raises(ReplayGoneError, match="oldest is 3"):
            call(1)


def blocked_producer(ring: ReplayRing, data: bytes = b"x") -> Callable[[], int | None]:
    """Append on a thread; return what tells the number it got, once it did."""
    got: list[int] = []
    start_thread("producer", lambda: got.append(ring.append(data)))
    return lambda: got[0] if got else None


def test_the_producer_waits_for_the_slowest_reader() -> None:
    """256 events behind, and not one more."""
    ring = ReplayRing()
    slow, quick = ring.attach(), ring.attach()
    for _ in range(256):
        ring.append(b"x")
    quick.read(256, 0)
    number = blocked_producer(ring)
    assert ring.read(256, 0.05) == []
    assert number() is None
    slow.read(1, 0)
    wait_until(lambda: number() == 257)


def test_the_producer_waits_for_bytes_too() -> None:
    """A reader's unread bytes are never pushed out."""
    ring = ReplayRing(max_bytes=100)
    reader = ring.attach()
    ring.append(b"x" * 60)
    number = blocked_producer(ring, b"y" * 41)
    assert ring.read(1, 0.05) == []
    reader.read(1, 0)
    wait_until(lambda: number() == 2)


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (lambda ring, reader: reader.close(), 257),
        (lambda ring, reader: ring.interrupt(), 0),
        (lambda ring, reader: ring.finish(b"{}"), 0),
    ],
    ids=["reader leaves", "interrupted", "closed"],
)
def test_a_waiting_producer_is_let_go(
    free: Callable[[ReplayRing, object], None], expected: int
) -> None:
    """By a reader's leaving, by a cancel, and at the end."""
    ring = ReplayRing()
    reader = ring.attach()
    for _ in range(256):
        ring.append(b"x")
    number = blocked_producer(ring)
    assert ring.read(256, 0.02) == []
    free(ring, reader)
    wait_until(lambda: number() == expected)


def test_a_reader_that_takes_nothing_is_let_go() -> None:
    """It is told on the producer's thread, under no lock, and the stream goes on."""
    ring = ReplayRing(stall_timeout=0.05)
    told: list[tuple[str, int]] = []

    def on_stalled() -> None:
        told.append((threading.current_thread().name, ring.last))
        ring.detach(reader)

    reader = ring.attach(on_stalled=on_stalled)
    for _ in range(256):
        ring.append(b"x")
    number = blocked_producer(ring)
    wait_until(lambda: number() == 257)
    assert told == [("producer", 256)]
    assert reader.stalled


def test_time_without_anything_to_take_is_no_stall() -> None:
    """The clock of a stall starts when the producer begins to wait."""
    now = [0.0]
    ring = ReplayRing(stall_timeout=30.0, clock=lambda: now[0])
    reader = ring.attach()
    now[0] = 1000.0
    for _ in range(256):
        ring.append(b"x")
    number = blocked_producer(ring)
    assert ring.read(256, 0) == []
    reader.read(256, 0)
    wait_until(lambda: number() == 257)
    assert not reader.stalled


def test_the_end_never_waits_for_readers() -> None:
    """Whoever is behind still finds every entry."""
    ring = ReplayRing()
    with ring.attach() as reader:
        for _ in range(256):
            ring.append(b"x")
        ring.finish(b"{}")
        assert reader.closed
        assert numbers(reader.read(0)) == list(range(1, 258))


@pytest.mark.slow
def test_memory_is_flat_over_many_appends() -> None:
    """A hundred thousand small pieces leave 1024."""
    ring = ReplayRing()
    for _ in range(100_000):
        ring.append(b"12345678")
    assert ring.last - ring.first + 1 == 1024
    assert ring.size == 8 * 1024
