"""What a handler knows, and how it learns that it should end."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.agent import CancelToken, current_context
from ppio_agent.agent.progress import Step
from ppio_agent.exceptions import InvocationCancelledError, InvocationTimeoutError
from tests.agent.support import make_context, make_invocation, pool_of
from tests.support import SLOW, wait_until


def test_a_token_is_raised_once_and_keeps_its_first_reason() -> None:
    """Whoever asks later changes nothing."""
    token = CancelToken()
    assert not token
    assert not token.is_set()
    assert token.reason is None
    assert token.fire("client")
    assert not token.fire("shutdown")
    assert token
    assert token.is_set()
    assert token.reason == "client"
    assert repr(token) == "CancelToken(client)"


def test_waiting_for_a_token_ends_when_it_is_raised() -> None:
    """Or after the time given."""
    token = CancelToken()
    assert not token.wait(0.01)
    assert not token.wait(-1.0)
    start_thread("t", token.fire, "client")
    assert token.wait(5.0)
    assert token.wait()


def test_subscribers_are_called_once() -> None:
    """Quick ones first, on the asking thread, others aside; at once if it was before."""
    token = CancelToken()
    called: list[str] = []

    def note() -> None:
        called.append(threading.current_thread().name)

    token.subscribe(note)
    token.subscribe(lambda: called.append("taken back"))()
    token.subscribe(note, quick=True)
    thread = threading.Thread(
        target=token.fire, args=("client",), name="canceller", daemon=True
    )
    thread.start()
    thread.join()
    wait_until(lambda: len(called) == 2)
    assert called[0] == "canceller"
    assert called[1].startswith("ppio-aside-")
    token.subscribe(note)()
    assert called[2:] == [threading.current_thread().name]


def test_one_that_blocks_does_not_hold_up_who_asks() -> None:
    """Nor those that sleep until the end is asked for."""
    token, gate = CancelToken(), threading.Event()
    begun = threading.Event()

    def block() -> None:
        begun.set()
        gate.wait(10)

    token.subscribe(block)
    token.fire("client")
    assert not gate.is_set()
    assert token.wait(0)
    assert begun.wait(5)
    gate.set()


def test_what_a_subscriber_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The others are called all the same."""
    token, called = CancelToken(), []

    def broken() -> None:
        raise OSError("no socket")

    token.subscribe(broken)
    token.subscribe(lambda: called.append(1))
    with caplog.at_level(logging.ERROR, "ppio_agent"):
        token.fire("client")
        wait_until(lambda: called == [1] and "no socket" in caplog.text)


def test_check_raises_again_and_again() -> None:
    """A handler that swallows it once meets it at the next call."""
    context = make_context()
    context.check()
    context.cancelled.fire("client")
    for _ in range(2):
        with pytest.raises(InvocationCancelledError, match="client"):
            context.check()


def test_check_knows_the_deadline_by_itself() -> None:
    """Even before anybody raised the token."""
    context = make_context(timeout=-1.0)
    assert context.time_left() == 0.0
    with pytest.raises(InvocationTimeoutError):
        context.check()
    other = make_context()
    other.cancelled.fire("deadline")
    with pytest.raises(InvocationTimeoutError):
        other.check()


def test_time_left_without_a_deadline_is_none() -> None:
    """No limit."""
    assert make_context().time_left() is None


def test_sleep_ends_early_by_a_cancel_and_at_the_deadline() -> None:
    """And is a plain sleep otherwise."""
    make_context().sleep(0.01)
    context = make_context()
    start_thread("t", context.cancelled.fire, "client")
    with pytest.raises(InvocationCancelledError):
        context.sleep(60)
    with pytest.raises(InvocationTimeoutError):
        make_context(timeout=0.02).sleep(60)


def test_asleep_is_the_same_for_async_code() -> None:
    """Other tasks go on meanwhile."""
    context = make_context()

    async def story() -> None:
        await make_context().asleep(0.01)
        with pytest.raises(InvocationTimeoutError):
            await make_context(timeout=0.02).asleep(60)
        sleeper = asyncio.create_task(context.asleep(60))
        await asyncio.sleep(0)
        context.cancelled.fire("client")
        with pytest.raises(InvocationCancelledError):
            await sleeper

    asyncio.run(story())


def test_the_repr_shows_no_credential() -> None:
    """Headers a plug-in did not verify may still hold one."""
    context = make_context(headers={"authorization": "Bearer sk-1", "x-a": "1"})
    assert "sk-1" not in repr(context)
    assert "'x-a': '1'" in repr(context)


variable: contextvars.ContextVar[str] = contextvars.ContextVar("v", default="unset")


def test_wrap_carries_the_context_to_helper_threads() -> None:
    """Two of them at once, which one `contextvars.Context` alone does not allow."""

    def agent(request: object, context: object) -> list[object]:
        variable.set("set")
        both = threading.Barrier(2, timeout=5)
        found: list[object] = []

        def helper() -> None:
            both.wait()
            found.append((current_context() is context, variable.get()))

        wrapped = context.wrap(helper)  # type: ignore[attr-defined]
        threads = [start_thread(f"t{n}", wrapped) for n in range(2)]
        for thread in threads:
            thread.join()
        return found

    invocation = make_invocation(agent)
    invocation.run()
    assert invocation.result() == [(True, "set"), (True, "set")]
    assert current_context() is None


def test_wrap_may_be_called_on_a_helper_thread_itself() -> None:
    """It is bound to the invocation all the same."""
    started, go_on = threading.Event(), threading.Event()

    def agent(request: object) -> None:
        started.set()
        go_on.wait(5)

    with pool_of() as pool:
        context = make_context()
        invocation = make_invocation(agent, context=context)
        invocation.start(pool)
        started.wait(5)
        assert context.wrap(current_context)() is context
        go_on.set()
        assert invocation.progress.wait(Step.SETTLED, 5)


def test_sleep_wakes_quickly() -> None:
    """Within 10 ms of the cancel; twenty times that is allowed to a busy machine."""
    context = make_context()
    woken: list[float] = []

    def sleeper() -> None:
        with pytest.raises(InvocationCancelledError):
            context.sleep(60)
        woken.append(time.monotonic())

    thread = start_thread("sleeper", sleeper)
    context.cancelled.wait(0.02)
    fired = time.monotonic()
    context.cancelled.fire("client")
    thread.join(5)
    assert woken[0] - fired < 0.2 * SLOW
