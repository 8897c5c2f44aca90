"""What is due when."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.storage.actors._agenda import Agenda

_THINGS = st.sampled_from("abcde")
_STEPS = st.lists(
    st.tuples(st.just("set"), _THINGS, st.integers(0, 9))
    | st.tuples(st.just("drop"), _THINGS, st.just(0))
    | st.tuples(st.just("pop"), st.just(""), st.integers(0, 9))
    | st.tuples(st.just("first"), st.just(""), st.integers(0, 9))
    | st.tuples(st.just("take"), _THINGS, st.integers(0, 9)),
    max_size=60,
)


@settings(max_examples=100)
@given(_STEPS)
def test_each_thing_comes_at_its_latest_time(steps: list[tuple[str, str, int]]) -> None:
    """The earliest first, and each once."""
    agenda: Agenda[str] = Agenda()
    times: dict[str, int] = {}
    for what, thing, when in steps:
        if what == "set":
            agenda.set(thing, when)
            times[thing] = when
        elif what == "drop":
            agenda.drop(thing)
            times.pop(thing, None)
        elif what == "take":
            assert agenda.take(thing, when) == (times.get(thing, 99) <= when)
            if times.get(thing, 99) <= when:
                del times[thing]
        else:
            got = agenda.pop(when) if what == "pop" else agenda.first(when)
            due = {one for one, at in times.items() if at <= when}
            if not due:
                assert got is None
            else:
                assert got in due
                assert times[got] == min(times[one] for one in due)
                if what == "pop":
                    del times[got]
        assert len(agenda) == len(times)


def test_things_of_one_time_come_in_the_order_in_which_they_were_set() -> None:
    """Also after many were dropped."""
    agenda: Agenda[int] = Agenda()
    for thing in range(1000):
        agenda.set(thing, 1.0)
    for thing in range(0, 1000, 3):
        agenda.drop(thing)
    left = [thing for thing in range(1000) if thing % 3]
    assert [agenda.pop(1.0) for _ in left] == left


def test_what_is_no_longer_due_takes_no_place() -> None:
    """However often times change."""
    agenda: Agenda[str] = Agenda()
    for number in range(10_000):
        agenda.set("a", float(number))
        agenda.set("b", float(number))
        agenda.drop("b")
    assert len(agenda._heap) < 100
