"""Async user code driven from blocking threads."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ppio_agent._util.threads import NoThreadError
from ppio_agent.agent import CancelToken
from ppio_agent.agent.loop import AsyncCall, _SharedLoop, shared_loop
from tests.support import wait_until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("x", default="unset")


def test_the_loop_is_one_for_the_process() -> None:
    """Made at first use."""
    assert shared_loop() is shared_loop()
    assert "ppio-loop" in {thread.name for thread in threading.enumerate()}


def test_async_code_may_have_work_done_on_its_thread() -> None:
    """Context variables go there and back."""

    async def work(call: AsyncCall) -> list[object]:
        variable.set("async")

        def on_thread() -> list[object]:
            seen = variable.get()
            variable.set("thread")
            return [seen, threading.get_ident()]

        return [*await call.on_thread(on_thread), variable.get()]

    def story() -> None:
        call = AsyncCall(CancelToken())
        result = call.result(work(call))
        assert result == ["async", threading.get_ident(), "thread"]
        assert variable.get() == "thread"

    contextvars.copy_context().run(story)


def test_what_that_work_raises_is_raised_in_async_code() -> None:
    """Even `StopIteration`, which a future cannot carry."""

    async def work(call: AsyncCall) -> str:
        def broken() -> None:
            raise LookupError("nothing")

        try:
            await call.on_thread(broken)
        except LookupError as error:
            return str(error)
        return ""

    call = AsyncCall(CancelToken())
    assert call.result(work(call)) == "nothing"
    other = AsyncCall(CancelToken())
    with pytest.raises(RuntimeError, match="StopIteration"):
        other.result(other.on_thread(lambda: next(iter(()))))


def test_only_the_innermost_call_is_cancelled() -> None:
    """The outer task waits for its thread, and learns of the end from that."""
    token = CancelToken()
    seen = []

    async def inner() -> None:
        token.fire("client")
        await asyncio.sleep(60)

    async def outer(call: AsyncCall) -> None:
        try:
            await call.on_thread(lambda: AsyncCall(token).result(inner()))
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    call = AsyncCall(token)
    with pytest.raises(asyncio.CancelledError):
        call.result(outer(call))
    assert seen == ["cancelled"]


def test_a_token_raised_before_the_start_cancels_all_the_same() -> None:
    """The task begins, so that it can say that it ended."""
    token = CancelToken()
    token.fire("client")
    with pytest.raises(asyncio.CancelledError):
        AsyncCall(token).result(asyncio.sleep(60))


def test_closing_the_items_ends_the_task() -> None:
    """Its `finally` has run when `close` returns."""
    closed = []

    async def items() -> AsyncIterator[int]:
        try:
            for n in range(1000):
                yield n
        finally:
            closed.append(True)

    found = AsyncCall(CancelToken()).result(items())
    assert next(found) == 0
    found.close()
    assert closed == [True]


def test_what_fails_while_closing_is_raised() -> None:
    """As `close` of an ordinary generator does."""

    async def items() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise OSError("no socket")

    found = AsyncCall(CancelToken()).result(items())
    next(found)
    with pytest.raises(OSError, match="no socket"):
        found.close()


def test_a_generator_runs_ahead_only_so_far() -> None:
    """An endless one does not fill the memory."""
    made = []

    async def items() -> AsyncIterator[int]:
        while True:
            made.append(1)
            yield 1

    found: Any = AsyncCall(CancelToken()).result(items())
    for _ in range(100):
        next(found)
    found.close()
    assert len(made) <= 100 + 2 * 64


def test_a_forked_child_has_a_loop_of_its_own() -> None:
    """The parent's thread does not exist there."""
    AsyncCall(CancelToken()).result(asyncio.sleep(0))
    pid = os.fork()
    if pid == 0:
        try:
            value = AsyncCall(CancelToken()).result(asyncio.sleep(0, 7))
            os._exit(value)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_a_loop_without_a_thread_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call tries again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    shared = _SharedLoop()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(NoThreadError, match="ppio-loop"):
            shared.get()
    loop = shared.get()
    ran = threading.Event()
    loop.call_soon_threadsafe(ran.set)
    assert ran.wait(5)
    loop.call_soon_threadsafe(loop.stop)
    wait_until(lambda: not loop.is_running())
    loop.close()
