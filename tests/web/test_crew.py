"""When a lane gets another thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from ppio_agent._util.threads import PoolSaturatedError
from ppio_agent.web.crew import Crew, Load
from tests.support import wait_until


class Clock:
    """Two hands, moved by the test."""

    def __init__(self) -> None:
        self.now = 100.0
        self.cpu = 0.0

    def move(self, seconds: float, *, busy: float = 0.0) -> None:
        self.now += seconds
        self.cpu += seconds * busy

    def load(self) -> Load:
        return Load(clock=lambda: self.now, cpu_clock=lambda: self.cpu)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What blocking jobs wait for."""
    event = threading.Event()
    yield event
    event.set()


def _crew(clock: Clock, *, threads: int = 8, waiting: int = 100) -> Crew:
    return Crew(
        "ppio-test",
        max_threads=threads,
        max_waiting=waiting,
        load=clock.load(),
        clock=lambda: clock.now,
    )


def test_load_is_full_while_a_core_is_used(clock: Clock) -> None:
    """Processor time is compared with the time since the last look."""
    load = clock.load()
    clock.move(0.01, busy=1.0)
    assert load.full()
    clock.move(0.01, busy=0.5)
    assert not load.full()
    clock.move(0.01, busy=2.0)
    assert not load.full(), "handlers that compute outside the interpreter"


def test_load_is_not_looked_at_too_often(clock: Clock) -> None:
    """Within the span the last verdict stands: a look costs a system call."""
    load = clock.load()
    clock.move(0.01, busy=1.0)
    assert load.full()
    clock.move(0.001, busy=0.0)
    assert load.full()


def test_blocking_jobs_get_a_thread_each(clock: Clock, gate: threading.Event) -> None:
    """While the processor is idle, waiting jobs do not wait for others."""
    crew = _crew(clock)
    for _ in range(8):
        clock.move(0.01, busy=0.1)
        crew.submit(gate.wait)
    wait_until(lambda: crew.waiting == 0)
    assert crew.busy == 8
    gate.set()
    assert crew.close()


def test_a_busy_process_gets_two_threads(clock: Clock, gate: threading.Event) -> None:
    """More would only take the interpreter lock from each other."""
    crew = _crew(clock)
    for _ in range(6):
        clock.move(0.003, busy=1.0)
        crew.submit(gate.wait)
    wait_until(lambda: crew.waiting == 4)
    assert crew.busy == 2
    gate.set()
    wait_until(lambda: crew.busy == 0)
    assert crew.close()


def test_many_blocking_jobs_get_ever_more_threads_when_busy(
    clock: Clock, gate: threading.Event
) -> None:
    """To begin hundreds keeps a process busy, too: one at a time would take seconds."""
    crew = _crew(clock, threads=64)
    for _ in range(100):
        clock.move(0.003, busy=1.0)
        crew.submit(gate.wait)
    grown = [crew.busy]
    while crew.busy < 64:
        clock.move(0.02, busy=1.0)
        crew.grow()
        grown.append(crew.busy)
    assert all(b - a == min(1 + a // 4, 64 - a) for a, b in pairwise(grown))
    gate.set()
    wait_until(lambda: crew.busy == 0)
    assert crew.close()


def test_nothing_waits_for_long_even_when_busy(
    clock: Clock, gate: threading.Event
) -> None:
    """Two jobs that compute for minutes do not keep the others from starting."""
    crew = _crew(clock)
    for _ in range(4):
        clock.move(0.003, busy=1.0)
        crew.submit(gate.wait)
    wait_until(lambda: crew.waiting == 2)
    clock.move(0.05, busy=1.0)
    crew.grow()
    wait_until(lambda: crew.waiting == 1)
    crew.grow()
    assert crew.busy == 3, "one further thread at a time"
    gate.set()
    assert crew.close()


def test_who_waits_too_long_is_given_away(clock: Clock, gate: threading.Event) -> None:
    """The oldest first, once all threads are taken, and as long as somebody takes."""
    crew = _crew(clock, threads=1)
    ran: list[int] = []
    taken: list[Any] = []
    crew.submit(gate.wait)
    for n in range(3):
        crew.submit(partial(ran.append, n), movable=True)
        clock.move(0.1)
    crew.hand_over(0.15, lambda job: taken.append(job) is None)
    assert crew.waiting == 1, "the last has not waited for so long"
    for job in taken:
        job()
    assert ran == [0, 1]
    clock.move(0.1)
    crew.hand_over(0.15, lambda job: False)
    assert crew.waiting == 1
    gate.set()
    wait_until(lambda: ran == [0, 1, 2])
    assert crew.close()


def test_only_movable_jobs_are_given_away(clock: Clock, gate: threading.Event) -> None:
    """The others stay and keep their order, and hold up none behind them."""
    crew = _crew(clock, threads=1)
    ran: list[int] = []
    crew.submit(gate.wait)
    for n in range(5):
        crew.submit(partial(ran.append, n), movable=n in {1, 3})
    clock.move(1.0)
    crew.hand_over(0.15, lambda job: job() is None)
    assert (crew.waiting, ran) == (3, [1, 3])
    gate.set()
    wait_until(lambda: ran == [1, 3, 0, 2, 4])
    assert crew.close()


def test_nothing_is_given_away_while_threads_can_be_added(
    clock: Clock, gate: threading.Event
) -> None:
    """A busy process adds them one by one."""
    crew = _crew(clock, threads=8)
    for _ in range(3):
        clock.move(0.003, busy=1.0)
        crew.submit(gate.wait, movable=True)
    wait_until(lambda: crew.waiting == 1)
    clock.move(1.0, busy=1.0)
    crew.hand_over(0.25, lambda job: pytest.fail("it was given away"))
    assert crew.waiting == 1
    gate.set()
    assert crew.close()


def test_a_job_that_fails_costs_no_thread(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it raises is logged, and the next job is run."""
    crew = _crew(clock, threads=1)
    ran = threading.Event()

    def fail() -> None:
        raise SystemExit

    crew.submit(fail)
    crew.submit(ran.set)
    assert ran.wait(5)
    wait_until(lambda: crew.busy == 0)
    assert "a job of a lane failed" in caplog.text
    assert crew.close()


def test_a_full_queue_refuses(clock: Clock, gate: threading.Event) -> None:
    """As many jobs as threads and places are taken, and not one more."""
    crew = _crew(clock, threads=2, waiting=1)
    for _ in range(3):
        crew.submit(gate.wait)
    with pytest.raises(PoolSaturatedError):
        crew.submit(gate.wait)
    gate.set()
    assert crew.close()


def test_closing_drops_what_waits(clock: Clock, gate: threading.Event) -> None:
    """A closed crew starts nothing any more."""
    crew = _crew(clock, threads=1)
    ran: list[int] = []
    crew.submit(gate.wait)
    crew.submit(lambda: ran.append(1))
    assert not crew.close(timeout=0.01)
    gate.set()
    assert crew.close()
    assert ran == []


def test_a_system_without_threads_loses_no_job(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job stays queued when no thread can be started, and is run later."""
    crew = _crew(clock)
    ran = threading.Event()

    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("ppio_agent._util.threads.start_thread", no_thread)
        crew.submit(ran.set)
    assert crew.waiting == 1
    crew.grow()
    assert not ran.is_set(), "not tried again at once"
    clock.move(1.1)
    crew.grow()
    assert ran.wait(5)
    assert crew.close()
