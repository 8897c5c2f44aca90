"""Ends that come by themselves: looked at in time, and once at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import pytest

from ppio_agent._util.threads import WorkerPool
from ppio_agent.sandbox.life.due import Due
from ppio_agent.sandbox.life.machine import Event, State
from ppio_agent.sandbox.life.timers import Timers
from tests.sandbox.fakes import FakeClock
from tests.support import wait_until


class Rig:
    """An end, on a clock of the test's own; `looks` counts how often it was looked."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers = Timers("ppio-test-timer", clock=self.clock)
        self.pool = WorkerPool("ppio-test-pool", max_threads=4)
        self.looks = 0
        self.during: Callable[[], object] = lambda: None
        self.due = Due(
            idle_timeout=5.0,
            timers=self.timers,
            monotonic=self.clock,
            background=self.pool.submit,
            look=self._look,
        )

    def _look(self) -> None:
        self.looks += 1
        self.during()

    def advance(self, seconds: float) -> None:
        self.clock.now += seconds
        done = threading.Event()
        self.timers.at(self.clock.now, done.set)
        # Its thread sleeps by another clock, and wakes for the next timer only.
        self.timers.at(-math.inf, lambda: None)
        assert done.wait(5)
        wait_until(lambda: self.pool.busy == 0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.timers.close()
    made.pool.close()


def test_the_end_of_its_time_is_what_was_said_last(rig: Rig) -> None:
    rig.due.at(rig.clock.now + 10)
    rig.due.at(rig.clock.now + 30)
    rig.advance(11)
    assert rig.looks == 0
    rig.advance(20)

    assert rig.looks == 1
    assert rig.due.event(State.RUNNING, rig.clock.now) is Event.TTL
    assert rig.due.event(State.RUNNING, rig.clock.now + 1) is None


def test_idleness_ends_only_what_runs_and_time_comes_first(rig: Rig) -> None:
    rig.due.idle.start()
    later = rig.clock.now + 99
    assert rig.due.event(State.RUNNING, later) is None
    rig.advance(6)

    assert rig.looks == 1
    assert rig.due.event(State.RUNNING, later) is Event.IDLE
    assert rig.due.event(State.PAUSED, later) is None
    assert rig.due.event(State.RUNNING, rig.clock.now) is Event.TTL


def test_what_is_cancelled_is_looked_at_no_more(rig: Rig) -> None:
    rig.due.at(rig.clock.now + 10)
    rig.due.idle.start()
    rig.due.cancel()
    rig.due.cancel()
    rig.due.at(rig.clock.now + 1)
    rig.due.idle.start()
    rig.advance(99)

    assert rig.looks == 0


def test_looks_do_not_pile_up_while_none_can_begin() -> None:
    """However often its end is said to be now."""
    rig = Rig()
    waiting: list[Callable[[], object]] = []
    rig.due._background = waiting.append
    try:
        for _ in range(50):
            rig.due.at(rig.clock.now)
            rig.advance(0)
        assert len(waiting) == 1
        waiting.pop()()
        rig.due.at(rig.clock.now)
        rig.advance(0)
    finally:
        rig.timers.close()
        rig.pool.close()

    assert (rig.looks, len(waiting)) == (1, 1)
