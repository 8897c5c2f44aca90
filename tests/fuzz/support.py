"""How many examples each property gets, and how well-formed bytes are spoiled."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

__all__ = ["fuzz", "header_values", "split", "spoiled"]

_ASKED = int(os.environ.get("PPIO_FUZZ_EXAMPLES", "0"))
_SLOW_TO_MAKE = [HealthCheck.too_slow, HealthCheck.data_too_large]


def fuzz(examples: int = 100, *, share: float = 1.0) -> Callable[[Any], Any]:
    """Return the settings of one property.

    Args:
        examples: How many the suite has time for.
        share: Part of `PPIO_FUZZ_EXAMPLES` that it gets, if its examples are slow.
    """
    most = max(examples, int(_ASKED * share)) if _ASKED else examples
    return settings(max_examples=most, suppress_health_check=_SLOW_TO_MAKE)


header_values = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"),
    max_size=40,
).map(str.strip)
"""Whatever a server may pass on as the value of a header."""


@st.composite
def spoiled(draw: Callable[[Any], Any], whole: st.SearchStrategy[bytes]) -> bytes:
    """Give well-formed bytes, mostly with a few places changed."""
    data: bytes = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 4)))
        piece = draw(
            st.sampled_from([b"", b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0"])
            | st.just(data[start:end] * 2)
            | st.binary(max_size=3)
        )
        data = data[:start] + piece + data[end:]
    return data


def split(text: str, mark: str) -> list[str]:
    """Split at a mark outside of quoted strings; a quote that stays open is none."""
    pieces, piece, rest = [], "", text
    while rest:
        quoted = re.match(r'"(?:\\.|[^"\\])*"', rest)
        taken = quoted.group() if quoted else rest[0]
        rest = rest[len(taken) :]
        if taken == mark:
            pieces.append(piece.strip(" \t"))
            piece = ""
        else:
            piece += taken
    return [*pieces, piece.strip(" \t")]
