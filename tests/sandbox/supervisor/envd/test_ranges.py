"""Which bytes a `Range` header asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.ranges import parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", range(1)),
        ("bytes=2-4", range(2, 5)),
        ("bytes=2-", range(2, 10)),
        ("bytes=-3", range(7, 10)),
        ("bytes=-30", range(10)),
        ("bytes=8-90", range(8, 10)),
        (None, None),
        ("bytes=-", None),
        ("bytes=4-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_one_range_is_understood_anything_else_is_the_whole(
    header: str | None, expected: range | None
) -> None:
    """Of ten bytes."""
    assert expected == parse_range(header, 10)


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0", "bytes=11-12"])
def test_bytes_that_are_not_there_are_refused(header: str) -> None:
    """The answer is then 416."""
    with pytest.raises(ValueError, match="10 bytes"):
        parse_range(header, 10)


@given(st.text(max_size=20).map("bytes={}".format) | st.text(), st.integers(0, 99))
def test_no_header_asks_for_what_is_not_there(header: str, size: int) -> None:
    """A range is never empty and never outside."""
    try:
        found = parse_range(header, size)
    except ValueError:
        return
    assert found is None or 0 <= found.start < found.stop <= size
