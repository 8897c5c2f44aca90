"""Whether actors wait for each other in a circle."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.storage.actors.waitgraph import cycle_of

_ACTORS = st.integers(0, 7)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_ACTORS, _ACTORS), _ACTORS, _ACTORS)
def test_each_of_a_cycle_waits_for_the_next(
    waits: dict[int, int], asker: int, target: int
) -> None:
    """And the last for the first, each of them once; the new edge comes first."""
    cycle = cycle_of(asker, target, waits.get)
    new = {**waits, asker: target}
    if cycle:
        assert cycle[0] == asker
        assert len(set(cycle)) == len(cycle)
        assert [new[actor] for actor in cycle] == [*cycle[1:], asker]


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(_ACTORS, _ACTORS), _ACTORS, _ACTORS)
def test_no_cycle_is_missed(waits: dict[int, int], asker: int, target: int) -> None:
    """Whoever follows the edges from the asker comes back to it, or not."""
    new = {**waits, asker: target}
    here: int | None = target
    steps = 0
    while here is not None and here != asker and steps <= len(new):
        here = new.get(here)
        steps += 1
    assert bool(cycle_of(asker, target, waits.get)) == (here == asker)


def test_one_that_asks_itself_is_a_cycle_of_one() -> None:
    """It would wait for its own turn."""
    assert cycle_of("a", "a", {}.get) == ["a"]


def test_a_cycle_of_others_is_not_the_askers() -> None:
    """Who joins a queue behind a deadlock is not part of it."""
    assert cycle_of("a", "b", {"b": "c", "c": "b"}.get) == []
