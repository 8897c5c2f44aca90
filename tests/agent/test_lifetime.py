"""The life of one invocation, apart from the code that it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ppio_agent._util.threads import WorkerPool
from ppio_agent.agent import Invocation, InvocationState
from ppio_agent.agent.lifetime import Departure
from ppio_agent.agent.progress import Step
from ppio_agent.exceptions import ServerBusyError
from tests.agent.support import make_context, make_invocation, pool_of
from tests.support import SLOW


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with pool_of() as pool:
        yield pool


def sleeping(pool: WorkerPool, departure: Departure, **options: Any) -> Invocation:
    """Return an invocation whose handler sleeps until it is cancelled."""
    invocation = make_invocation(
        lambda _, context: context.sleep(60), departure=departure, **options
    )
    invocation.start(pool)
    assert invocation.progress.wait(Step.REACHED, 5)
    return invocation


def test_the_last_reader_to_leave_ends_it(pool: WorkerPool) -> None:
    """A reader that joined keeps it alive."""
    invocation = sleeping(pool, "cancel")
    invocation.join()
    assert not invocation.leave()
    assert not invocation.context.cancelled
    assert invocation.leave()
    assert invocation.wait(5)
    assert invocation.cancel_reason == "disconnect"


def test_one_that_was_never_bound_needs_no_reader(pool: WorkerPool) -> None:
    """It ends by itself; a reader that leaves early is told all the same."""
    invocation = sleeping(pool, "async")
    invocation.join()
    assert invocation.leave()
    assert not invocation.context.cancelled
    invocation.cancel()
    assert invocation.wait(5)
    assert invocation.cancel_reason == "client"


def test_a_detached_one_ends_when_nobody_comes_back(pool: WorkerPool) -> None:
    """Not before its grace is over, and for `disconnect`."""
    grace = 0.2
    invocation = sleeping(pool, "detach", detach_grace=grace)
    began = time.monotonic()
    assert invocation.leave("stalled")
    assert not invocation.context.cancelled
    assert invocation.wait(5)
    assert grace <= time.monotonic() - began < grace + 0.5 * SLOW
    assert invocation.cancel_reason == "disconnect"
    assert invocation.state is InvocationState.CANCELLED


def test_who_comes_back_stops_the_clock(pool: WorkerPool) -> None:
    """And it starts anew when that one leaves."""
    invocation = sleeping(pool, "detach", detach_grace=0.1)
    invocation.leave()
    invocation.join()
    assert not invocation.wait(0.3)
    invocation.leave()
    assert invocation.wait(5)
    assert invocation.cancel_reason == "disconnect"


def test_the_deadline_holds_for_a_detached_one(pool: WorkerPool) -> None:
    """Whoever might still come back."""
    context = make_context(timeout=0.1)
    invocation = sleeping(pool, "detach", detach_grace=60.0, context=context)
    invocation.leave()
    assert invocation.wait(5)
    assert invocation.state is InvocationState.TIMED_OUT


def test_a_detached_stream_is_not_held_up(pool: WorkerPool) -> None:
    """Without a reader the oldest chunks make room."""
    invocation = make_invocation(
        lambda _: iter(range(5000)), departure="detach", reserve=True
    )
    invocation.start(pool)
    invocation.take_reader().close()
    invocation.leave()
    assert invocation.wait(10)
    assert invocation.state is InvocationState.SUCCEEDED
    assert invocation.ring.last == 5001
    assert invocation.ring.first > 1


def test_leaving_after_the_end_is_no_loss() -> None:
    """Everybody leaves sometime."""
    invocation = make_invocation(lambda _: 1)
    invocation.run()
    assert not invocation.leave()
    assert invocation.result() == 1


@pytest.mark.parametrize("departure", ["cancel", "detach"])
def test_joining_and_leaving_at_once_loses_nobody(
    departure: Departure, pool: WorkerPool
) -> None:
    """Either the one that came is in time, or the cancel was there before."""
    for _ in range(50):
        invocation = sleeping(pool, departure, detach_grace=0.001)
        both = threading.Barrier(2)

        def join(invocation: Invocation = invocation, both: Any = both) -> None:
            both.wait(5)
            invocation.join()

        thread = threading.Thread(target=join)
        thread.start()
        both.wait(5)
        invocation.leave()
        thread.join(5)
        if invocation.cancel_reason is None:
            assert not invocation.wait(0.003), "the one that came was lost"
            invocation.cancel()
        assert invocation.progress.wait(Step.SETTLED, 5)


def test_whoever_asks_is_told_of_the_end_once(pool: WorkerPool) -> None:
    """Before those who wait; afterwards at once."""
    told: list[tuple[str, InvocationState]] = []
    invocation = make_invocation(lambda _: 1)
    invocation.when_over(lambda it: told.append((it.id, it.state)))
    invocation.start(pool)
    invocation.wait(5)
    assert told == [(invocation.id, InvocationState.SUCCEEDED)]
    invocation.when_over(lambda it: told.append((it.id, it.state)))
    assert told == [(invocation.id, InvocationState.SUCCEEDED)] * 2


def test_the_end_is_told_although_user_code_still_runs(pool: WorkerPool) -> None:
    """At the deadline, and not a second time when user code has ended, too."""
    leave = threading.Event()
    told: list[tuple[InvocationState, bool]] = []
    invocation = make_invocation(
        lambda _: leave.wait(10), context=make_context(timeout=0.05)
    )
    invocation.when_over(lambda it: told.append((it.state, it.confirmed)))
    invocation.start(pool)
    invocation.wait(5)
    assert told == [(InvocationState.TIMED_OUT, False)]
    leave.set()
    assert pool.close(5)
    assert invocation.confirmed
    assert len(told) == 1


def test_what_the_told_raises_is_logged(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """Those who wait get their result."""

    def fail(_: Invocation) -> None:
        raise OSError("full")

    invocation = make_invocation(lambda _: 1)
    invocation.when_over(fail)
    invocation.start(pool)
    assert invocation.result(5) == 1
    assert f"nobody took note of the end of invocation {invocation.id}" in caplog.text


def test_only_one_that_had_no_place_was_refused() -> None:
    """A cancel before it begins is none, and neither is success."""
    refused, cancelled, done = (make_invocation(lambda _: 1) for _ in range(3))
    assert not refused.refused
    assert refused.refuse(ServerBusyError("no place"))
    assert refused.refused
    assert cancelled.cancel()
    assert cancelled.state is InvocationState.CANCELLED
    assert not cancelled.refused
    done.run()
    assert not done.refused
