"""Frames of Connect streams."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import WireError
from ppio_agent.wire.connect import HTTP_STATUS, Frame, FrameReader, encode_frame
from tests.wire.support import cuts

FRAMES = st.lists(st.builds(Frame, st.binary(max_size=300), st.booleans()))


@settings(deadline=None, max_examples=100)
@given(frames=FRAMES, data=st.data())
def test_frames_come_back_from_any_cut(
    frames: list[Frame], data: st.DataObject
) -> None:
    """Byte by byte, whole, or cut within a head."""
    stream = b"".join(encode_frame(f.payload, end=f.end) for f in frames)
    reader = FrameReader()
    pieces = data.draw(cuts(st.just(stream)))
    assert [frame for piece in pieces for frame in reader.feed(piece)] == frames
    assert reader.pending == 0


def test_a_frame_is_a_flag_a_length_and_a_payload() -> None:
    """As the Connect protocol says."""
    assert encode_frame(b"{}") == b"\x00\x00\x00\x00\x02{}"
    assert encode_frame(b"", end=True) == b"\x02\x00\x00\x00\x00"


def test_an_unfinished_frame_is_held_back() -> None:
    """`pending` tells a stream that was cut from one that ended."""
    reader = FrameReader()
    assert reader.feed(encode_frame(b"abc")[:-1]) == []
    assert reader.pending == 7
    assert reader.feed(b"c") == [Frame(b"abc")]
    assert reader.pending == 0


def test_a_frame_too_large_is_refused_by_its_head() -> None:
    """Nothing of its payload needs to come first."""
    reader = FrameReader(max_frame=10)
    assert reader.feed(encode_frame(b"x" * 10)) == [Frame(b"x" * 10)]
    with pytest.raises(WireError, match="a frame is larger than 10 bytes"):
        reader.feed(struct.pack(">BI", 0, 11))


def test_a_compressed_frame_is_refused() -> None:
    """No compression was offered."""
    with pytest.raises(WireError, match="compressed frames are not supported"):
        FrameReader().feed(b"\x01\x00\x00\x00\x01x")


def test_each_code_has_a_status_of_an_error() -> None:
    """Of a unary answer."""
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())
