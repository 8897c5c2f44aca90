"""The thread that knows when something is due."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from ppio_agent.actors._timers import Timer, Timers
from ppio_agent.exceptions import RuntimeOverloadedError
from tests.support import SLOW, new_threads, wait_until

_FAR = 1e9


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("ppio-test-timer")
    yield made
    assert made.close()


def soon(seconds: float = 0.0) -> float:
    return time.monotonic() + seconds


def test_what_is_due_is_called_in_the_order_of_the_instants(timers: Timers) -> None:
    """Whatever the order in which it was set; equal ones as they were set."""
    called: list[int] = []
    start = soon(0.05)
    for number, delay in ((3, 0.03), (1, 0.01), (2, 0.01), (0, 0.0)):
        timers.at(start + delay, lambda n=number: called.append(n), blocks=False)
    wait_until(lambda: len(called) == 4)
    assert called == [0, 1, 2, 3]


@pytest.mark.parametrize("blocks", [True, False])
def test_nothing_is_called_early(timers: Timers, *, blocks: bool) -> None:
    """Nor much later, though a later instant was waited for first."""
    timers.at(_FAR, lambda: None)
    instant = soon(0.05)
    called: list[float] = []
    timers.at(instant, lambda: called.append(time.monotonic()), blocks=blocks)
    wait_until(lambda: called)
    assert instant <= called[0] < instant + 1.0 * SLOW


def test_what_blocks_holds_up_no_other(timers: Timers) -> None:
    """It runs beside; the thread of the instants goes on."""
    go_on, done = threading.Event(), threading.Event()
    for _ in range(3):
        timers.at(soon(), lambda: go_on.wait(10.0))
    timers.at(soon(), done.set)
    assert done.wait(5.0 * SLOW)
    go_on.set()


def test_a_cancelled_one_is_never_called(timers: Timers) -> None:
    """And says so once; one that was called says no."""
    called: list[str] = []
    timer = timers.at(soon(0.05), lambda: called.append("cancelled"))
    assert (timer.cancel(), timer.cancel()) == (True, False)
    other = timers.at(soon(0.06), lambda: called.append("other"))
    wait_until(lambda: called)
    assert (called, other.cancel()) == (["other"], False)


def test_cancelled_ones_take_no_room(timers: Timers) -> None:
    """A million requests with a deadline of an hour leave nothing behind."""

    class Callback:
        def __call__(self) -> None: ...

    kept = timers.at(_FAR, Callback())
    callbacks = [Callback() for _ in range(1000)]
    refs = [weakref.ref(callback) for callback in callbacks]
    for callback in callbacks:
        timers.at(_FAR, callback).cancel()
    del callbacks, callback
    gc.collect()
    assert len(timers) == 1
    assert len(timers._heap) < 200
    assert not any(ref() for ref in refs)
    assert kept.cancel()


def test_only_so_many_may_wait() -> None:
    """One more is refused, unless all depend on it; a free place is given again."""
    timers = Timers("ppio-test-timer", most=2)
    waiting = [timers.at(_FAR, lambda: None) for _ in range(2)]
    with pytest.raises(RuntimeOverloadedError, match="2 timers and deadlines wait"):
        timers.at(_FAR, lambda: None)
    assert timers.at(_FAR, lambda: None, always=True).cancel()
    waiting[0].cancel()
    assert isinstance(timers.at(_FAR, lambda: None), Timer)
    assert timers.close()


@pytest.mark.parametrize("blocks", [True, False])
def test_one_that_fails_is_logged_and_ends_nothing(
    timers: Timers, caplog: pytest.LogCaptureFixture, *, blocks: bool
) -> None:
    """The next instant is kept."""

    def broken() -> None:
        raise LookupError("broken")

    done = threading.Event()
    with caplog.at_level(logging.ERROR):
        timers.at(soon(), broken, blocks=blocks)
        timers.at(soon(0.02), done.set, blocks=blocks)
        assert done.wait(5.0 * SLOW)
        wait_until(lambda: "broken" in caplog.text)


def test_close_forgets_what_waits_and_ends_the_threads() -> None:
    """Also twice, and whoever sets an instant afterwards is not called."""
    names = new_threads("ppio-test-timer")
    timers = Timers("ppio-test-timer")
    called = threading.Event()
    timers.at(soon(), called.set)
    timer = timers.at(_FAR, called.clear)
    assert called.wait(5.0 * SLOW)
    assert names()
    assert timers.close()
    assert timers.close()
    assert not names()
    assert not timer.cancel()
    assert not timers.at(soon(), called.clear).cancel()
    assert len(timers) == 0


def test_close_waits_for_what_has_begun() -> None:
    """As long as it may, and says whether that was enough."""
    timers = Timers("ppio-test-timer")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        go_on.wait(10.0)

    timers.at(soon(), slow)
    assert begun.wait(5.0 * SLOW)
    assert not timers.close(0.01)
    go_on.set()
    assert timers.close()


def test_it_may_be_closed_by_what_it_calls() -> None:
    """Which is not waited for."""
    timers = Timers("ppio-test-timer")
    closed: list[bool] = []
    timers.at(soon(), lambda: closed.append(timers.close(1.0)), blocks=False)
    wait_until(lambda: closed)
    assert closed == [True]
    assert timers.close()


def test_a_forked_child_begins_anew(timers: Timers) -> None:
    """What its parent waits for is not the child's; it may set instants of its own."""
    called = threading.Event()
    timers.at(soon(0.15), called.set)
    with timers._changed:
        child = os.fork()
        if child == 0:
            mine = threading.Event()
            empty = len(timers) == 0
            timers.at(soon(), mine.set)
            worked = empty and mine.wait(5.0 * SLOW) and not called.wait(0.2)
            os._exit(0 if worked else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert called.wait(5.0 * SLOW)
