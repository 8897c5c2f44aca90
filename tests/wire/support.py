"""JSON values, and ways to cut bytes, for the tests of the wire."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

__all__ = ["cuts", "json_values", "texts"]

texts = st.text(st.characters(codec="utf-8"))
"""Every text that has a UTF-8 form: no lone surrogates."""

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=30,
)


@st.composite
def cuts(draw: Callable[[Any], Any], stream: st.SearchStrategy[bytes]) -> list[bytes]:
    """Give the pieces of a stream: whole, byte by byte, or cut anywhere."""
    data = draw(stream)
    places = draw(
        st.just([])
        | st.just(list(range(1, len(data))))
        | st.lists(st.integers(0, len(data)), max_size=8).map(sorted)
    )
    ends = [0, *places, len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]
