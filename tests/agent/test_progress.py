"""How far an invocation has come."""

from __future__ import annotations

import threading

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
    wakes: list[int] = []
    real = progress._changed.wait

    def counted(timeout: float | None = None) -> bool:
        found = real(timeout)
        wakes.append(1)
        return found

    progress._changed.wait = counted  # type: ignore[method-assign]

    def waiter() -> None:
        progress.wait(Step.OVER)
        woken.set()

    start_thread("waiter", waiter)
    wait_until(lambda: progress._waiting)
    for step in (Step.STARTED, Step.REACHED, Step.STREAMS):
        progress.take(step)
    progress.take(Step.OVER)
    assert woken.wait(5)
    assert len(wakes) == 1
