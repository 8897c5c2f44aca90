"""How a runtime ends, and what becomes of what has not ended."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.actors import RequestStatus
from ppio_agent.exceptions import (
    InvocationCancelledError,
    RuntimeNotRunningError,
    RuntimeStoppedError,
)
from tests.support import SLOW, wait_until

from .support import Gate, actor, running
from .test_progress import DurableMemory


def _waits_to_be_told(_context: Any, message: Any) -> Any:
    return message.method


def test_stop_ends_in_time_beside_an_endless_turn() -> None:
    """In memory, whoever waits is told that the request was cancelled."""
    gate = Gate()
    with running(lambda *_: gate()) as runtime:
        client = runtime.client()
        endless = client.send_request(actor(), "endless")
        gate.wait()
        queued = client.send_request(actor(), "queued")
        begun = time.monotonic()
        busy = runtime.stop(drain=0.3)
        assert time.monotonic() - begun < 0.3 + 1.0 * SLOW
        assert busy == 1
        for handle in (endless, queued):
            response = handle.get_response(1)
            assert response.status is RequestStatus.CANCELLED
            assert response.data["code"] == "runtime_stopped"
        gate.opened.set()
        wait_until(lambda: not _pool_threads())
        assert runtime.store.pending() == 0
        assert runtime.stop() == 0


def _pool_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("ppio-actor-")]


def test_a_durable_store_keeps_what_has_not_ended() -> None:
    """Waiters are told that; the next runtime goes on with it."""
    store, gate = DurableMemory(), Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "patient" and context.attempt == 1:
            gate.reached.set()
            context.cancelled.wait(20 * SLOW)
            context.check()
        return {"attempt": context.attempt}

    with running(receive, storage=store) as runtime:
        client = runtime.client()
        begun = client.send_request(actor(), "patient", None, "m-1")
        gate.wait()
        queued = client.send_request(actor(), "queued", None, "m-2")
        told: list[Any] = []

        def wait() -> None:
            try:
                queued.get_response()
            except RuntimeStoppedError as error:
                told.append(error.message_id)

        waiter = threading.Thread(target=wait)
        waiter.start()
        runtime.stop(drain=0.1)
        waiter.join(5 * SLOW)
        assert told == ["m-2"]
        with pytest.raises(RuntimeStoppedError, match="m-1"):
            begun.get_response()
        assert store.pending() == 2
    with running(receive, storage=store) as runtime:
        client = runtime.client()
        results = [
            client.get_request(actor(), message_id).result(10 * SLOW)
            for message_id in ("m-1", "m-2")
        ]
        assert results == [{"attempt": 2}, {"attempt": 1}]


def test_turns_that_run_may_end() -> None:
    """Nothing new begins meanwhile."""
    gate = Gate()

    def receive(_context: Any, message: Any) -> Any:
        gate()
        return message.method

    with running(receive) as runtime:
        client = runtime.client()
        first = client.send_request(actor(), "first")
        gate.wait()
        second = client.send_request(actor(), "second")
        stopping = threading.Thread(target=runtime.stop)
        stopping.start()
        wait_until(lambda: not runtime.running)
        with pytest.raises(RuntimeNotRunningError):
            client.send_request(actor(), "third")
        gate.opened.set()
        stopping.join(10 * SLOW)
        assert first.result(1) == "first"
        with pytest.raises(InvocationCancelledError):
            second.result(1)


def test_turns_that_wait_for_what_will_not_run_hold_nothing_up() -> None:
    """They are cancelled before the time for the others has passed."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "wait":
            return context.ask(actor("busy"), "never")
        if message.method == "hold":
            gate()
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        hold = client.send_request(actor("busy"), "hold")
        gate.wait()
        waits = client.send_request(actor("waits"), "wait")
        wait_until(lambda: runtime.stats()["pending"] == 3)
        threading.Timer(0.1, gate.opened.set).start()
        begun = time.monotonic()
        runtime.stop(drain=60.0)
        assert time.monotonic() - begun < 20.0 * SLOW
        assert hold.result(1) == 1
        assert waits.get_response(1).status is RequestStatus.CANCELLED


def test_a_runtime_may_be_started_again() -> None:
    """In memory the state is there."""

    def receive(context: Any, _message: Any) -> Any:
        n = (context.read_state("n") or 0) + 1
        context.write_state("n", n)
        return {"n": n}

    with running(receive) as runtime:
        client = runtime.client()
        assert client.ask(actor(), "m").data == {"n": 1}
        runtime.stop()
        runtime.start()
        assert runtime.start().running
        assert client.ask(actor(), "m").data == {"n": 2}


def test_no_thread_is_left() -> None:
    """Once it has stopped."""
    before = threading.active_count()
    with running(_waits_to_be_told) as runtime:
        assert runtime.client().ask(actor(), "m", timeout=5).data == "m"
    assert threading.active_count() == before


def test_a_flag_without_a_turn_holds_nothing_up() -> None:
    """Whoever has it begins no turn any more."""
    with running(lambda _context, _message: 1) as runtime:
        runtime.client().ask(actor(), "x")
        cell = runtime.engine.cells.find(actor())
        assert cell is not None
        assert cell.flag.acquire(blocking=False)
        began = time.monotonic()
        runtime.stop(30.0)
        assert time.monotonic() - began < 10.0


def test_a_runtime_that_is_started_again_and_again_crashes_nothing(
    tmp_path: Any,
) -> None:
    """A request whose turn it ends is kept, however often that is."""
    url, attempts = f"sqlite:///{tmp_path}/actors.db", []

    def receive(context: Any, _message: Any) -> int:
        attempts.append(context.attempt)
        if len(attempts) < 5:
            began.set()
            context.cancelled.wait(10.0 * SLOW)
            context.check()
        return 1

    began = threading.Event()
    with running(receive, storage=url) as runtime:
        handle = runtime.client().send_request(actor(), "x")
        for _ in range(4):
            assert began.wait(10.0 * SLOW)
            began.clear()
            runtime.stop(0.0)
            runtime.start()
        again = runtime.client().get_request(actor(), handle.message_id)
        assert again.result(10.0 * SLOW) == 1
    assert attempts == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("durable", [False, True])
def test_a_turn_on_its_callers_thread_is_busy_and_its_caller_is_told(
    tmp_path: Any, *, durable: bool
) -> None:
    """In memory that it was cancelled, else that it can be asked for again."""
    gate = Gate()
    url = f"sqlite:///{tmp_path}/actors.db" if durable else None

    def receive(context: Any, _message: Any) -> int:
        gate()
        return context.read_state("k") or 1

    with ThreadPoolExecutor(1) as pool, running(receive, storage=url) as runtime:
        asked = pool.submit(runtime.client().ask, actor(), "m")
        gate.wait()
        assert runtime.stop(0.0) == 1
        gate.opened.set()
        if durable:
            with pytest.raises(RuntimeStoppedError, match="ask again"):
                asked.result(10 * SLOW)
        else:
            response = asked.result(10 * SLOW)
            assert response.status is RequestStatus.CANCELLED
            assert response.data["code"] == "runtime_stopped"
