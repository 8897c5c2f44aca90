"""Decompression in bounded pieces."""

from __future__ import annotations

import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.transport.content import Inflater, inflater_for
from ppio_agent.transport.http1 import FramingError


def _raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


_CODINGS = {"gzip": gzip.compress, "deflate": zlib.compress, "raw deflate": _raw}


def _feed(inflater: Inflater, pieces: list[bytes], limit: int) -> bytes:
    found = []
    for piece in pieces:
        found.append(inflater.feed(piece, limit))
        while inflater.pending:
            found.append(inflater.feed(b"", limit))
    assert all(len(piece) <= limit for piece in found)
    return b"".join(found)


@given(
    coding=st.sampled_from(sorted(_CODINGS)),
    data=st.binary(max_size=200)
    | st.binary(min_size=1, max_size=9).map(lambda b: b * 999),
    size=st.integers(1, 50),
    limit=st.integers(1, 300),
)
@settings(max_examples=100)
def test_what_was_packed_is_unpacked(
    coding: str, data: bytes, size: int, limit: int
) -> None:
    """However it is cut, never more than the limit at a time."""
    packed = _CODINGS[coding](data)
    inflater = inflater_for(coding.removeprefix("raw "))
    assert inflater is not None
    pieces = [packed[i : i + size] for i in range(0, len(packed), size)]
    assert _feed(inflater, pieces, limit) == data
    inflater.end()


def test_a_file_of_several_members_is_one() -> None:
    """As gzip allows."""
    packed = gzip.compress(b"one") + gzip.compress(b"two")
    inflater = Inflater(gzip=True)
    assert _feed(inflater, [packed], 1000) == b"onetwo"
    inflater.end()


def test_a_bomb_is_unpacked_piece_by_piece() -> None:
    """10 MiB of zeros in 10 KiB never take more than asked for."""
    inflater = Inflater(gzip=True)
    first = inflater.feed(gzip.compress(bytes(10 * 1024 * 1024)), 65536)
    assert len(first) == 65536
    assert inflater.pending


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_what_is_not_packed_is_refused(coding: str) -> None:
    """As far as it can be told."""
    inflater = inflater_for(coding)
    assert inflater is not None
    with pytest.raises(FramingError):
        inflater.feed(b"{\xff not packed at all", 1000)


def test_packed_data_that_is_cut_is_no_end() -> None:
    """The checksum is missing; nothing at all is fine."""
    inflater = Inflater(gzip=True)
    inflater.end()
    inflater.feed(gzip.compress(b"one")[:-9], 1000)
    with pytest.raises(FramingError):
        inflater.end()


def test_codings() -> None:
    """Those that were asked for, in any case, or none."""
    assert inflater_for(None) is None
    assert inflater_for("Identity") is None
    assert inflater_for(" X-GZIP ") is not None
    with pytest.raises(FramingError, match="br"):
        inflater_for("br")
