"""The life of one invocation, apart from the code that it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ppio_agent._util.alarm import Alarms, alarms
from ppio_agent._util.threads import NoThreadError, WorkerPool
from ppio_agent.agent import Invocation, InvocationState, RequestContext
from ppio_agent.agent import lifetime as lifetime_module
from ppio_agent.agent.lifetime import Departure
from ppio_agent.agent.progress import Step
from ppio_agent.exceptions import ServerBusyError, ServiceUnavailableError
from tests.agent.support import make_context, make_invocation, pool_of
from tests.support import SLOW, wait_until


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
        lambda _: leave.wait(10), context=make_context(timeout=0.1 * SLOW)
    )
    invocation.when_over(lambda it: told.append((it.state, it.confirmed)))
    invocation.start(pool)
    invocation.wait(5)
    wait_until(lambda: told)
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


class Stuck:
    """A handler, and functions to be called, that block until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.blocked = threading.Event()

    def __call__(self, request: Any, context: RequestContext) -> None:
        context.on_cancel(self.block)
        self.gate.wait(10)

    def block(self, _: Any = None) -> None:
        self.blocked.set()
        self.gate.wait(10)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.gate.set()


def test_a_function_that_blocks_holds_up_no_other_deadline(
    pool: WorkerPool, stuck: Stuck
) -> None:
    """Whether it wants to know of the cancel or of the end."""
    first = make_invocation(stuck, context=make_context(timeout=0.05))
    first.when_over(stuck.block)
    second = make_invocation(
        lambda _: stuck.gate.wait(10), context=make_context(timeout=0.1)
    )
    first.start(pool)
    second.start(pool)
    assert first.wait(2 * SLOW)
    assert second.wait(2 * SLOW)
    assert second.state is InvocationState.TIMED_OUT
    assert stuck.blocked.wait(5)
    stuck.gate.set()


def test_a_function_that_blocks_does_not_lengthen_the_grace(
    pool: WorkerPool, stuck: Stuck
) -> None:
    """Nor the time that asking for the end takes."""
    invocation = make_invocation(stuck, cancel_grace=0.05)
    invocation.start(pool)
    assert invocation.progress.wait(Step.REACHED, 5)
    wait_until(lambda: invocation.context.cancelled._callbacks)
    assert invocation.cancel()
    assert invocation.wait(2 * SLOW)
    assert invocation.state is InvocationState.CANCELLED
    assert not invocation.confirmed
    stuck.gate.set()


def test_who_waits_is_told_by_who_ended_it(pool: WorkerPool) -> None:
    """Not by user code that ends while others are still told of the end."""
    leave, telling, go_on = (threading.Event() for _ in range(3))

    def tell(_: Invocation) -> None:
        telling.set()
        go_on.wait(10)

    settled = threading.Event()
    invocation = make_invocation(
        lambda _: leave.wait(10), on_settled=lambda _: settled.set()
    )
    invocation.when_over(tell, quick=True)
    invocation.start(pool)
    assert invocation.progress.wait(Step.STARTED, 5)
    invocation.context.deadline = time.monotonic()
    alarm = threading.Thread(target=invocation.on_alarm, daemon=True)
    alarm.start()
    assert telling.wait(5)
    leave.set()
    assert settled.wait(5)
    wait_until(lambda: pool.busy == 0)
    assert invocation.confirmed
    assert not invocation.progress.has(Step.OVER | Step.SETTLED)
    go_on.set()
    alarm.join(5)
    assert invocation.progress.has(Step.OVER)
    assert invocation.progress.has(Step.SETTLED)


def test_one_that_nobody_reads_has_its_grace_all_the_same(
    pool: WorkerPool, stuck: Stuck
) -> None:
    """When it is being cancelled already as the time for readers to come back ends."""
    invocation = make_invocation(
        lambda _: stuck.gate.wait(10),
        departure="detach",
        detach_grace=0.05,
        cancel_grace=0.2,
    )
    invocation.start(pool)
    assert invocation.progress.wait(Step.REACHED, 5)
    invocation.leave()
    invocation.cancel()
    assert invocation.wait(3 * SLOW)
    assert invocation.state is InvocationState.CANCELLED
    stuck.gate.set()


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.fixture
def fresh_alarms(monkeypatch: pytest.MonkeyPatch) -> Alarms:
    """Alarms whose thread is still to be started."""
    fresh = Alarms()
    monkeypatch.setattr(lifetime_module, "alarms", lambda: fresh)
    return fresh


def test_without_a_thread_to_watch_its_time_it_is_refused(
    fresh_alarms: Alarms, monkeypatch: pytest.MonkeyPatch, pool: WorkerPool
) -> None:
    """User code is not run, whoever waits is told; the next one may be luckier."""
    ran: list[Any] = []
    here = make_invocation(ran.append, context=make_context(timeout=5))
    there = make_invocation(ran.append, context=make_context(timeout=5))
    later = make_invocation(ran.append, context=make_context(timeout=9))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        here.run()
        with pytest.raises(NoThreadError, match="ppio-alarm cannot be started"):
            there.start(pool)
    assert here.refused
    with pytest.raises(ServiceUnavailableError, match="no thread can be started"):
        here.result(1)
    assert ran == []
    assert fresh_alarms._due == {}
    later.run()
    assert len(ran) == 1


def test_without_a_thread_to_run_on_its_time_is_not_watched(
    monkeypatch: pytest.MonkeyPatch, pool: WorkerPool
) -> None:
    """Its maker is told, and has it all in hand."""
    make_invocation(lambda _: 1, context=make_context(timeout=60)).run()
    invocation = make_invocation(lambda _: 1, context=make_context(timeout=60))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(NoThreadError, match="ppio-invoke-1 cannot be started"):
            invocation.start(pool)
    assert invocation not in alarms()._due
    assert invocation.state is InvocationState.PENDING
    invocation.start(pool)
    assert invocation.result(5) == 1


def test_a_cancel_is_one_although_nobody_watches_its_grace(
    fresh_alarms: Alarms,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pool: WorkerPool,
) -> None:
    """User code is told, and what is lost is logged."""
    invocation = sleeping(pool, "cancel")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        assert invocation.cancel()
    assert invocation.wait(5)
    assert invocation.state is InvocationState.CANCELLED
    assert f"the time of invocation {invocation.id} is not watched" in caplog.text
    assert fresh_alarms._due == {}
