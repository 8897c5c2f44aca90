"""Pieces of a stream, and their collection into a result."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.agent import Chunk
from ppio_agent.agent.chunk import ChunkCollector
from ppio_agent.wire.json import encode_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("event", ["error", "end", "", "a b", "x" * 65, "ä"])
def test_an_event_name_the_protocol_cannot_carry_is_refused(event: str) -> None:
    """`error` and `end` are the protocol's own."""
    with pytest.raises(ValueError, match="event"):
        Chunk(1, event=event)


def test_a_chunk_may_name_its_event() -> None:
    """Letters, digits and _ . - up to 64."""
    assert Chunk(1, event="tool.call_1-a").event == "tool.call_1-a"


def test_a_negative_retry_is_refused() -> None:
    """There is no such time."""
    with pytest.raises(ValueError, match="retry"):
        Chunk(1, retry=-0.1)


def collected(items: list[Any], max_bytes: int = 10_000) -> ChunkCollector:
    collector = ChunkCollector(max_bytes)
    for item in items:
        collector.add(encode_json(item), is_text=isinstance(item, str))
    return collector


@settings(max_examples=100)
@given(st.lists(JSON, max_size=10))
def test_texts_are_joined_and_anything_else_is_a_list(items: list[Any]) -> None:
    """One value that is not a text makes it a list."""
    all_text = all(isinstance(item, str) for item in items)
    expected = "".join(items) if all_text else items
    assert collected(items).result() == expected


def test_too_much_gives_no_result() -> None:
    """Rather none than a part that looks like the whole."""
    collector = collected(["abc", "def", "ghi"], max_bytes=12)
    assert collector.truncated
    assert collector.result() is None
