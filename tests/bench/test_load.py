"""The load programs count what comes, however it is cut into pieces."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.load.streams import Stream
from tests.bench.load.wire import answer_size, percentile

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWER = HEAD + b"".join(
    b'27\r\ndata: {"piece":0,"at":%d.5}\n\n\r\n' % number for number in range(1, 6)
)


@pytest.fixture(scope="module")
def end_of_a_pair() -> Iterator[socket.socket]:
    """A socket to stand in a stream; nothing is sent over it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@given(cuts=st.lists(st.integers(1, len(ANSWER)), max_size=12))
def test_chunks_and_stamps_are_counted_once(
    end_of_a_pair: socket.socket, cuts: list[int]
) -> None:
    """A chunk, its time or the end may come in several pieces of bytes."""
    whole = ANSWER + b"0\r\n\r\n"
    # The status line comes in one piece.
    edges = sorted({0, *(cut for cut in cuts if cut > 12), len(whole)})
    stream = Stream(end_of_a_pair, stamped=True)
    for begin, end in itertools.pairwise(edges):
        stream.feed(whole[begin:end], now=10.0)
    assert stream.chunks == 5
    assert stream.delays == [8.5, 7.5, 6.5, 5.5, 4.5]
    assert (stream.ended, stream.failed) == (True, False)


def test_a_stream_that_is_cut_off_has_failed(end_of_a_pair: socket.socket) -> None:
    """The end of the connection is not the end of the answer."""
    stream = Stream(end_of_a_pair)
    stream.feed(ANSWER, now=1.0)
    stream.feed(b"", now=2.0)
    assert (stream.ended, stream.failed) == (True, True)


def test_the_size_of_an_answer_is_known_with_its_head() -> None:
    """Until then it is 0; without a length there is no knowing."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    assert answer_size(answer) == len(answer)
    assert answer_size(answer[:20]) == 0
    with pytest.raises(ConnectionError, match="Content-Length"):
        answer_size(HEAD)


@given(values=st.lists(st.floats(0, 100), min_size=1))
def test_a_percentile_is_one_of_the_values(values: list[float]) -> None:
    """The largest is the 100 %, and none lies above it."""
    assert percentile(values, 1.0) == max(values)
    assert percentile(values, 0.5) in values
