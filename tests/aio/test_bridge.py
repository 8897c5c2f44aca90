"""Threads for coroutines: their number, their end, and what becomes of a result."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.aio.bridge import Bridge
from ppio_agent.exceptions import InvocationCancelledError
from ppio_agent.transport import pause, shielded
from tests.aio.support import until
from tests.support import SLOW, new_threads, wait_until


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    bridge = Bridge()
    yield bridge
    asyncio.run(bridge.close(lambda: None))


class Gate:
    """A function that says when it runs and returns when it is told."""

    def __init__(self, result: object = None) -> None:
        self.running = threading.Event()
        self.open = threading.Event()
        self.result = result

    def __call__(self) -> object:
        self.running.set()
        assert self.open.wait(30 * SLOW)
        return self.result


class TestCall:
    def test_runs_in_a_named_thread_with_the_callers_context(
        self, bridge: Bridge
    ) -> None:
        """The loop's thread is not blocked, and context variables are seen."""
        colour = contextvars.ContextVar("colour", default="none")

        async def main() -> tuple[str, str]:
            colour.set("green")
            return await bridge.call(
                lambda: (threading.current_thread().name, colour.get())
            )

        assert asyncio.run(main()) == ("ppio-aio-1", "green")

    def test_errors_come_through_and_leave_no_circle(self, bridge: Bridge) -> None:
        """An error is raised where it is awaited, and gone when it is handled."""

        class Mine(Exception):
            pass

        def fail() -> None:
            raise Mine("no")

        async def main() -> weakref.ref[Mine]:
            try:
                await bridge.call(fail)
            except Mine as error:
                return weakref.ref(error)
            raise AssertionError

        gc.disable()
        try:
            gone = asyncio.run(main())
            wait_until(lambda: gone() is None)
        finally:
            gc.enable()

    def test_serves_loop_after_loop_and_loops_in_threads(self, bridge: Bridge) -> None:
        """No loop is kept: every call answers the one it came from."""

        async def main(number: int) -> list[int]:
            calls = [bridge.call(partial(pow, number, 2)) for _ in range(20)]
            return await asyncio.gather(*calls)

        assert asyncio.run(main(2)) == [4] * 20
        results: dict[int, list[int]] = {}

        def run(number: int) -> None:
            results[number] = asyncio.run(main(number))

        threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: [n * n] * 20 for n in range(8)}

    def test_the_65th_waits_for_its_turn(self, bridge: Bridge) -> None:
        """At most 64 run at a time; one more is neither refused nor forgotten."""
        named = new_threads("ppio-aio-")

        async def main() -> None:
            gates = [Gate() for _ in range(64)]
            tasks = [asyncio.create_task(bridge.call(gate)) for gate in gates]
            await until(lambda: all(gate.running.is_set() for gate in gates))
            late = asyncio.create_task(bridge.call(lambda: "served"))
            assert len(named()) == 64
            gates[0].open.set()
            assert await late == "served"
            # What ends something does not wait for any of them.
            assert await bridge.finish(lambda: "closed") == "closed"
            for gate in gates:
                gate.open.set()
            await asyncio.gather(*tasks)

        asyncio.run(main())


class TestCancellation:
    def test_aborts_what_runs(self, bridge: Bridge) -> None:
        """The thread ends with the call, and then the cancellation goes on."""
        ended = []

        def call() -> None:
            try:
                pause(Deadline.after(30))
            except InvocationCancelledError as error:
                ended.append(str(error))
                raise

        async def main() -> None:
            task = asyncio.create_task(bridge.call(call))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert ended == ["the task that waited for this was cancelled"]

        asyncio.run(main())

    def test_waits_a_second_for_a_deaf_thread(self, bridge: Bridge) -> None:
        """Not longer; what the thread gives in the end is put away."""
        gate = Gate("a sandbox")
        discarded: list[object] = []

        async def main() -> float:
            task = asyncio.create_task(bridge.call(gate, discard=discarded.append))
            await until(gate.running.is_set)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return time.monotonic() - began

        assert 0.9 < asyncio.run(main()) < 1.0 + 1.0 * SLOW
        assert discarded == []
        gate.open.set()
        wait_until(lambda: discarded == ["a sandbox"])

    def test_a_result_that_came_too_late_is_put_away(self, bridge: Bridge) -> None:
        """Also if it was there already when the task was cancelled."""
        discarded: list[object] = []
        made = threading.Event()

        def make() -> str:
            made.set()
            return "a sandbox"

        async def main() -> None:
            task = asyncio.create_task(bridge.call(make, discard=discarded.append))
            await asyncio.sleep(0)
            made.wait()
            threading.Event().wait(0.05)  # the loop does not see the result yet
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        wait_until(lambda: discarded == ["a sandbox"])

    def test_one_that_waits_for_a_thread_never_begins(self, bridge: Bridge) -> None:
        """It is taken out of the line at once."""
        begun = []

        async def main() -> None:
            gates = [Gate() for _ in range(64)]
            tasks = [asyncio.create_task(bridge.call(gate)) for gate in gates]
            await until(lambda: all(gate.running.is_set() for gate in gates))
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(bridge.call(lambda: begun.append(1)), 0.02)
            for gate in gates:
                gate.open.set()
            await asyncio.gather(*tasks)

        asyncio.run(main())
        assert begun == []

    def test_leaves_no_complaint(
        self, bridge: Bridge, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An error that nobody awaits any more is not "never retrieved"."""
        complaints: list[dict[str, Any]] = []

        def fail() -> None:
            try:
                pause(Deadline.after(30))
            finally:
                raise ValueError("late")

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            task = asyncio.create_task(bridge.call(fail))
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.wait([task])
            del task
            gc.collect()
            await asyncio.sleep(0)

        asyncio.run(main())
        assert complaints == []
        assert caplog.records == []

    def test_of_an_end_lets_it_go_on(
        self, bridge: Bridge, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Ending a sandbox is not aborted; its failure is logged, at least."""
        gate = Gate()

        def end() -> None:
            gate()
            pause(Deadline.after(0.01))
            raise OSError("unreachable")

        async def main() -> None:
            task = asyncio.create_task(bridge.finish(end))
            await until(gate.running.is_set)
            task.cancel()
            await asyncio.sleep(0)
            gate.open.set()
            with pytest.raises(asyncio.CancelledError):
                await task

        with caplog.at_level(logging.WARNING):
            asyncio.run(main())
        assert "unreachable" in caplog.text

    def test_a_result_for_a_closed_loop_is_put_away(self, bridge: Bridge) -> None:
        """A program that leaves its loop alone leaks nothing."""
        gate = Gate("a sandbox")
        discarded: list[object] = []
        loop = asyncio.new_event_loop()
        call = bridge.call(gate, discard=discarded.append)
        task = loop.create_task(call)
        loop.run_until_complete(asyncio.sleep(0))
        gate.running.wait()
        loop.close()
        gate.open.set()
        wait_until(lambda: discarded == ["a sandbox"])
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        call.close()


def test_closing_ends_the_threads_and_what_comes_later_is_answered() -> None:
    """A call of a closed client fails by itself; it neither hangs nor blocks."""
    named = new_threads("ppio-aio")
    bridge = Bridge()

    def refuse() -> None:
        with shielded():
            raise ValueError("closed")

    async def main() -> None:
        await bridge.call(lambda: None)
        await bridge.close(lambda: None)
        with pytest.raises(ValueError, match="closed"):
            await bridge.call(refuse)
        await bridge.close(lambda: None)

    asyncio.run(main())
    wait_until(lambda: named() == [])


def test_one_that_is_forgotten_leaves_no_thread() -> None:
    """As with a client that is made for one request and never closed."""
    named = new_threads("ppio-aio")

    async def main() -> None:
        bridge = Bridge()
        await asyncio.gather(*(bridge.call(lambda: None) for _ in range(5)))
        await bridge.finish(lambda: None)
        assert named()

    asyncio.run(main())
    gc.collect()
    wait_until(lambda: named() == [])
