"""How far an invocation has come."""

from __future__ import annotations

import threading

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.agent.progress import Progress, Step
from tests.support import wait_until


def test_a_step_that_was_taken_needs_no_waiting() -> None:
    """And is never taken back."""
    progress = Progress()
    assert not progress.wait(Step.STARTED, 0)
    progress.take(Step.STARTED)
    progress.take(Step.OVER)
    assert progress.wait(Step.STARTED)
    assert progress.has(Step.STARTED)
    assert not progress.has(Step.SETTLED)


def test_waiting_ends_with_any_of_the_steps() -> None:
    """Whichever comes first."""
    progress = Progress()
    start_thread("t", progress.take, Step.STREAMS)
    assert progress.wait(Step.OVER | Step.STREAMS, 5)


def test_a_waiter_is_woken_by_its_own_steps_only() -> None:
    """A waiter for the end sleeps through all that comes before it."""
    progress, woken = Progress(), threading.Event()

    def waiter() -> None:
        progress.wait(Step.OVER)
        woken.set()

    start_thread("waiter", waiter)
    wait_until(lambda: progress._waiting)
    (asleep,) = progress._waiting
    for step in (Step.STARTED, Step.REACHED, Step.STREAMS):
        progress.take(step)
    assert asleep.latch.locked()
    progress.take(Step.OVER)
    assert woken.wait(5)


def test_waiting_begins_before_the_other_thread_is_started() -> None:
    """What that does at once is not missed; if it cannot be started, nobody waits."""
    progress = Progress()
    assert progress.wait(Step.OVER, 5, first=lambda: progress.take(Step.OVER))
    assert progress.wait(Step.OVER, 0, first=lambda: None)

    def refuse() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        progress.wait(Step.SETTLED, first=refuse)
    assert progress._waiting == []
