"""What is done once, by whoever asks first."""

from __future__ import annotations

import os
import threading
import traceback

import pytest

from ppio_agent._util.once import Once
from ppio_agent._util.threads import start_thread


def test_all_get_the_outcome_of_the_first() -> None:
    """However many ask at once; the others wait for it."""
    once: Once[int] = Once()
    begun, go_on = threading.Event(), threading.Event()
    calls: list[int] = []
    found: list[int | None] = []

    def work() -> int:
        begun.set()
        go_on.wait(10)
        calls.append(1)
        return 7

    assert not once.begun
    callers = [
        start_thread("caller", lambda: found.append(once.run(work))) for _ in range(5)
    ]
    assert begun.wait(10)
    assert once.begun
    assert found == []
    go_on.set()
    for caller in callers:
        caller.join(10)
    assert (found, calls) == ([7] * 5, [1])


def test_a_failure_is_told_to_everybody() -> None:
    """As it was, and with no longer a trace each time."""
    once: Once[None] = Once()
    lengths = []
    for _ in range(3):
        with pytest.raises(LookupError, match="lost") as caught:
            once.run(_lose)
        lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(lengths)) == 1


def _lose() -> None:
    raise LookupError("lost")


def test_its_own_thread_may_come_again() -> None:
    """It is told nothing, and does not wait for itself."""
    once: Once[object] = Once()

    def work() -> object:
        once.wait()
        return [once.run(work)]

    assert once.run(work) == [None]


def test_nobody_waits_for_what_nobody_has_begun() -> None:
    """It may never begin."""
    once: Once[None] = Once()
    once.wait()
    assert not once.begun


@pytest.mark.parametrize("over", [True, False], ids=["done", "half done"])
def test_a_forked_child_waits_for_nobody(over: bool) -> None:
    """What another thread was doing is done anew; what was done stays done."""
    once: Once[str] = Once()
    begun, go_on = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        go_on.wait(10)
        return "parent"

    thread = start_thread("runner", once.run, work)
    assert begun.wait(10)
    if over:
        go_on.set()
        thread.join(10)
    child = os.fork()
    if child == 0:
        found = once.run(lambda: "child")
        os._exit(0 if found == ("parent" if over else "child") else 1)
    go_on.set()
    thread.join(10)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
