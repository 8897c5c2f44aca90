"""The life of one invocation, apart from the code that it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ppio_agent._util.threads import WorkerPool
from ppio_agent.agent import Invocation, InvocationState
from tests.agent.support import make_context, make_invocation, pool_of

S = InvocationState


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with pool_of() as pool:
        yield pool


def test_whoever_asks_is_told_of_the_end_once(pool: WorkerPool) -> None:
    """Before those who wait; afterwards at once."""
    told: list[tuple[str, S]] = []
    invocation = make_invocation(lambda _: 1)
    invocation.when_over(lambda it: told.append((it.id, it.state)))
    invocation.start(pool)
    invocation.wait(5)
    assert told == [(invocation.id, S.SUCCEEDED)]
    invocation.when_over(lambda it: told.append((it.id, it.state)))
    assert told == [(invocation.id, S.SUCCEEDED)] * 2


def test_the_end_is_told_although_user_code_still_runs(pool: WorkerPool) -> None:
    """At the deadline, and not a second time when user code has ended, too."""
    leave = threading.Event()
    told: list[tuple[S, bool]] = []
    invocation = make_invocation(
        lambda _: leave.wait(10), context=make_context(timeout=0.05)
    )
    invocation.when_over(lambda it: told.append((it.state, it.confirmed)))
    invocation.start(pool)
    invocation.wait(5)
    assert told == [(S.TIMED_OUT, False)]
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
