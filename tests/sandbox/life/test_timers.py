"""Timers: in order, on one thread, whatever an action does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.life.timers import Timers
from tests.support import wait_until


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("ppio-test-timer")
    yield made
    made.close()


def test_actions_run_in_the_order_of_their_instants(timers: Timers) -> None:
    done: list[str] = []
    now = time.monotonic()
    timers.at(now + 0.06, lambda: done.append("late"))
    timers.at(now + 0.03, lambda: done.append("early"))
    timers.at(now - 9.0, lambda: done.append("past"))

    wait_until(lambda: len(done) == 3)
    assert done == ["past", "early", "late"]


def test_an_action_is_not_run_before_its_instant(timers: Timers) -> None:
    ran: list[float] = []
    instant = time.monotonic() + 0.05
    timers.at(instant, lambda: ran.append(time.monotonic()))

    wait_until(lambda: ran)
    assert instant <= ran[0] < instant + 0.25


def test_a_cancelled_timer_does_nothing(timers: Timers) -> None:
    done: list[str] = []
    now = time.monotonic()
    timers.at(now + 0.02, lambda: done.append("cancelled")).cancel()
    timers.at(now + 0.04, lambda: done.append("kept"))

    wait_until(lambda: done)
    assert done == ["kept"]


def test_nobody_wakes_up_for_a_timer_that_is_not_the_next_one() -> None:
    """The thread looks at the clock when it wakes up, and when a sooner one comes."""
    looks: list[float] = []

    def clock() -> float:
        looks.append(time.monotonic())
        return looks[-1]

    quiet = Timers("ppio-test-timer", clock=clock)
    try:
        ran = threading.Event()
        quiet.at(time.monotonic() + 60, ran.set)
        wait_until(lambda: looks, what="it waits")
        for _ in range(9):
            quiet.at(time.monotonic() + 70, ran.set).cancel()
        assert len(looks) == 1
        quiet.at(time.monotonic(), ran.set)
        assert ran.wait(5)
    finally:
        quiet.close()


def test_an_action_that_fails_is_logged_and_stops_nothing(
    timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    done = threading.Event()

    def fail() -> None:
        raise ValueError("oops")

    with caplog.at_level(logging.ERROR):
        timers.at(0.0, fail)
        timers.at(1.0, done.set)
        assert done.wait(5)

    assert "oops" in caplog.text


def test_cancelled_timers_do_not_pile_up(timers: Timers) -> None:
    """A life that is extended a thousand times holds on to one timer."""
    far = time.monotonic() + 1000
    for _ in range(1000):
        timers.at(far, lambda: None).cancel()

    assert len(timers._heap) < 130


def test_after_close_nothing_runs_and_no_thread_is_left() -> None:
    timers = Timers("ppio-test-closed-timer")
    done: list[str] = []
    timers.at(time.monotonic() + 0.02, lambda: done.append("x"))
    timers.close()
    timers.close()
    timers.at(0.0, lambda: done.append("y"))

    names = [t.name for t in threading.enumerate()]
    assert "ppio-test-closed-timer" not in names
    assert done == []
