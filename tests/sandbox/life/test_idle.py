"""Idleness: exact, on one timer that no traffic touches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.life.idle import IdleWatch
from ppio_agent.sandbox.life.timers import Timer, Timers
from tests.sandbox.fakes import FakeClock


class StillTimers(Timers):
    """Timers without a thread: `advance` moves the clock and calls what is due."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__("ppio-test-timer", clock=self.clock)
        self.set: list[Timer] = []

    def at(self, instant: float, action: Callable[[], object]) -> Timer:
        timer = Timer(instant, action)
        self.set.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while due := [t for t in self.set if t.action is not None and t.instant <= end]:
            timer = min(due, key=lambda timer: timer.instant)
            self.set.remove(timer)
            self.clock.now = max(self.clock.now, timer.instant)
            assert timer.action is not None
            timer.action()
        self.clock.now = end


class Watched:
    """A watch on such timers; `told` are the instants at which it told of the end."""

    def __init__(self, limit: float = 10.0) -> None:
        self.timers = StillTimers()
        self.told: list[float] = []
        self.watch = IdleWatch(
            limit,
            timers=self.timers,
            monotonic=self.timers.clock,
            on_idle=lambda: self.told.append(self.timers.clock.now),
        )
        self.begin = self.timers.clock.now


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_without_traffic_it_is_told_at_the_limit(watched: Watched) -> None:
    watched.watch.start()
    watched.timers.advance(9.9)
    assert not watched.watch.over()
    watched.timers.advance(0.2)

    assert watched.told == [watched.begin + 10]
    assert watched.watch.over()


def test_an_open_exchange_is_traffic_however_long_it_takes(watched: Watched) -> None:
    watched.watch.start()
    watched.timers.advance(5)
    watched.watch.began()
    watched.timers.advance(33)
    watched.watch.ended()
    watched.timers.advance(9.9)
    assert watched.told == []
    watched.timers.advance(5)

    assert watched.told == [watched.begin + 5 + 33 + 10]


def test_it_counts_anew_from_a_start_and_not_after_a_stop(watched: Watched) -> None:
    watched.watch.start()
    watched.timers.advance(9)
    watched.watch.start()
    watched.timers.advance(9)
    watched.watch.stop()
    watched.watch.stop()
    watched.timers.advance(99)
    assert watched.told == []
    assert not watched.watch.over()
    watched.watch.start()
    watched.timers.advance(11)

    assert watched.told == [watched.begin + 9 + 9 + 99 + 10]


def test_without_a_limit_nothing_is_set() -> None:
    watched = Watched(0.0)
    watched.watch.start()
    watched.watch.began()
    watched.watch.ended()

    assert watched.timers.set == []
    assert not watched.watch.over()


@given(
    exchanges=st.lists(
        st.tuples(
            st.floats(0, 9.9),  # quiet before it
            st.floats(0, 40),  # how long it takes
        ),
        max_size=8,
    )
)
@settings(max_examples=50)
def test_it_is_told_exactly_at_the_limit_after_the_last_traffic(
    exchanges: list[tuple[float, float]],
) -> None:
    """And requests set no timer: there is one, set again when it fires too soon."""
    watched = Watched()
    watched.watch.start()
    for quiet, busy in exchanges:
        watched.timers.advance(quiet)
        before = len(watched.timers.set)
        watched.watch.began()
        assert len(watched.timers.set) == before == 1
        watched.timers.advance(busy)
        watched.watch.ended()
    last = watched.timers.clock.now
    assert watched.told == []
    watched.timers.advance(20)

    assert watched.told == [pytest.approx(last + 10)]
