"""Whether actors wait for each other in a circle. Pure.

A turn waits for at most one other actor, so who waits for whom is a graph in which each
actor has one way on, and a cycle is found by walking it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["cycle_of"]

_T = TypeVar("_T")


def cycle_of(asker: _T, target: _T, waits_for: Callable[[_T], _T | None]) -> list[_T]:
    """Return the cycle that is closed when `asker` waits for `target`.

    Args:
        asker: Who is about to wait.
        target: For whom.
        waits_for: Gives for whom an actor waits; None: for nobody. What it says of
            `asker` is not asked for.

    Returns:
        `asker`, `target` and so on, each waiting for the next and the last for the
        first; empty if there is no cycle with `asker` in it.

    Example:
        >>> cycle_of("a", "b", {"b": "c", "c": "a"}.get)
        ['a', 'b', 'c']
        >>> cycle_of("a", "b", {"b": "c", "c": "b"}.get)
        []
    """
    way = [asker]
    seen = {asker}
    here: _T | None = target
    while here is not None and here not in seen:
        way.append(here)
        seen.add(here)
        here = waits_for(here)
    return way if here == asker else []
