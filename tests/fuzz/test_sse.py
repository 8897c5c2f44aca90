"""Streams as they are written, read by our framer and by another package's."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal

import sseclient
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.agent import Chunk, ReplayRing
from ppio_agent.web import sse_body
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.sse import Heartbeat, SSEEvent, SSEFramer
from tests.fuzz.support import fuzz
from tests.wire.support import json_values

LINE_ENDS = st.text("\r\n\u2028\u2029\x85\x0b\x0c\0: dateiv", max_size=12)
NAMES = st.none() | st.text(
    "abcxyzABCXYZ019_.-", min_size=1, max_size=12
).filter(lambda name: name not in ("error", "end"))  # fmt: skip
CHUNKS = st.lists(
    st.builds(
        Chunk,
        json_values | LINE_ENDS,
        event=NAMES,
        retry=st.none() | st.floats(0, 1000),
    ),
    max_size=8,
)
ERRORS = st.none() | st.fixed_dictionaries(
    {"error": LINE_ENDS, "error_type": st.just("E"), "message": LINE_ENDS},
    optional={"code": LINE_ENDS},
)
END = b'{"status":"over"}'


@frozen
class Sent:
    """One event as a client sees it."""

    id: str | None
    event: str
    data: Any


def ring_of(chunks: list[Chunk], error: dict[str, Any] | None) -> ReplayRing:
    ring = ReplayRing()
    for chunk in chunks:
        retry_ms = None if chunk.retry is None else round(chunk.retry * 1000)
        data = encode_json(chunk.data)
        ring.append(data, event=chunk.event, retry_ms=retry_ms)
    ring.finish(END, None if error is None else encode_json(error))
    return ring


def written(ring: ReplayRing, dialect: Literal["full", "bare"], after: int) -> bytes:
    reader = ring.attach(after)
    return b"".join(sse_body(reader, dialect=dialect, after=after))


def expected(chunks: list[Chunk], error: dict[str, Any] | None) -> list[Sent]:
    """Return what a client of the full dialect is to see."""
    named = [(chunk.event or "message", chunk.data) for chunk in chunks]
    named += [] if error is None else [("error", error)]
    named.append(("end", {"status": "over"}))
    return [Sent(str(n), event, data) for n, (event, data) in enumerate(named, 1)]


def framed(pieces: list[bytes]) -> list[Sent]:
    framer = SSEFramer()
    found = [event for piece in pieces for event in framer.feed(piece)]
    assert framer.finish() is None
    return [
        Sent(event.id, event.event, decode_json(event.data.encode()))
        for event in found
        if isinstance(event, SSEEvent)
    ]


class _Pieces(list[bytes]):
    """What sseclient-py reads from."""

    def close(self) -> None:
        """Nothing to close."""


def read_by_sseclient(pieces: list[bytes]) -> Iterator[Sent]:
    for event in sseclient.SSEClient(_Pieces(pieces)).events():
        yield Sent(event.id, event.event, decode_json(event.data.encode()))


@fuzz()
@given(CHUNKS, ERRORS, st.data())
def test_a_full_stream_gives_back_what_was_yielded(
    chunks: list[Chunk], error: dict[str, Any] | None, data: st.DataObject
) -> None:
    """To both readers, however it is cut, and from any event on."""
    whole = expected(chunks, error)
    after = data.draw(st.integers(0, len(whole)))
    body = written(ring_of(chunks, error), "full", after)
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=6).map(sorted))
    ends = [0, *places, len(body)]
    pieces = [body[a:b] for a, b in pairwise(ends)]
    assert framed(pieces) == whole[after:]
    assert list(read_by_sseclient(pieces)) == whole[after:]


@fuzz(100)
@given(CHUNKS, ERRORS)
def test_a_bare_stream_is_data_lines_and_comments(
    chunks: list[Chunk], error: dict[str, Any] | None
) -> None:
    """Which say the same; the comment `end` only after a success."""
    body = written(ring_of(chunks, error), "bare", 0)
    lines = body.split(b"\n")
    assert all(line[:6] == b"data: " or line[:1] in (b":", b"") for line in lines)
    values = [decode_json(line[6:]) for line in lines if line[:1] == b"d"]
    facts = {k: v for k, v in (error or {}).items() if k != "code"}
    assert values == [chunk.data for chunk in chunks] + [facts] * (error is not None)
    comments = [e.text for e in SSEFramer().feed(body) if isinstance(e, Heartbeat)]
    assert comments == ["open"] + ["end"] * (error is None)
