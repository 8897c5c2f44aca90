"""Whether turns that wait for other actors wait for ever."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.actors import InMemoryStateStorage, _waits
from ppio_agent.actors._call import Call
from ppio_agent.actors._waits import deadlock
from ppio_agent.exceptions import ActorDeadlockError
from ppio_agent.wire.actors import RequestStatus
from tests.support import SLOW, wait_until

from .support import Gate, actor, running

A, B, C = actor("a"), actor("b"), actor("c")


def test_the_error_names_the_circle() -> None:
    """From the one that would have closed it, and back to it."""
    error = deadlock([A, B, C], "m")
    assert "t/a -> t/b -> t/c -> t/a" in str(error)
    assert (error.actor_id, error.message_id, error.code) == ("t/a", "m", "deadlock")


def test_three_that_wait_in_a_circle() -> None:
    """One of them is told, and so the other two get answers."""
    all_three = threading.Barrier(3)
    following = {A: B, B: C, C: A}
    errors: list[str] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "end":
            return "end"
        all_three.wait(5.0 * SLOW)
        try:
            return context.ask(following[context.actor_id], "end")
        except ActorDeadlockError as error:
            errors.append(str(error))
            return "told"

    with running(receive) as runtime:
        client = runtime.client()
        for _ in range(10):
            handles = [client.send_request(one, "go") for one in following]
            results = sorted(handle.result(5.0 * SLOW) for handle in handles)
            assert results == ["end", "end", "told"]
        assert all(error.count("t/") == 4 for error in errors)
        assert runtime.store.wait([(A, B)]) == []
        assert not any(one in runtime.engine.waits for one in following)


def test_a_chain_on_one_thread_that_ends_at_a_busy_actor() -> None:
    """Those below it on the thread are in the circle too."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "back":  # C, which runs on its own
            gate()
            try:
                return context.ask(A, "end")
            except ActorDeadlockError as error:
                return str(error)
        if message.method == "end":
            return "end"
        return context.ask(
            B if context.actor_id == A else C, "end" if context.actor_id == B else "go"
        )

    with running(receive) as runtime:
        client = runtime.client()
        back = client.send_request(C, "back")
        gate.wait()
        chain = client.send_request(A, "go")
        wait_until(lambda: A in runtime.engine.waits and B in runtime.engine.waits)
        gate.opened.set()
        assert "t/c -> t/a -> t/b -> t/c" in back.result(5.0 * SLOW)
        assert chain.result(5.0 * SLOW) == "end"


def test_a_circle_of_which_one_has_its_answer_is_none() -> None:
    """Its thread has not woken up yet; whoever asks it meanwhile waits as usual."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
            return "held"
        if message.method == "end":
            return "end"
        return context.ask(A, "end")

    with running(receive) as runtime:
        client, engine = runtime.client(), runtime.engine
        held = client.send_request(A, "hold")
        gate.wait()
        # As A leaves it: it waits for B, and what it waits for has just ended.
        call = Call(B, "done")
        call.status = RequestStatus.COMPLETED
        engine.waits._calls[A] = call
        engine.store.wait([(A, B)])
        asked = client.send_request(B, "go")
        wait_until(lambda: B in engine.waits)
        gate.opened.set()
        assert asked.result(5.0 * SLOW) == "end"
        assert held.result(5.0 * SLOW) == "held"


def test_a_circle_through_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is believed once it has stayed for a while."""
    monkeypatch.setattr(_waits, "_DOUBT", 0.2)
    both = threading.Barrier(2)

    def receive(to: Any, context: Any, message: Any) -> Any:
        if message.method in {"live", "end"}:
            return message.method
        both.wait(5.0 * SLOW)
        try:
            return context.ask(to, "end")
        except ActorDeadlockError:
            return "told"

    url = f"sqlite:///{tmp_path}/actors.db"
    with (
        running(partial(receive, B), storage=url) as first,
        running(partial(receive, A), storage=url) as second,
    ):
        first.client().ask(A, "live")
        second.client().ask(B, "live")
        handles = [
            first.client().send_request(A, "go"),
            second.client().send_request(B, "go"),
        ]
        results = sorted(handle.result(10.0 * SLOW) for handle in handles)
        assert results == ["end", "told"]


def test_a_circle_through_another_process_that_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is noted there may be about to be taken back."""
    monkeypatch.setattr(_waits, "_DOUBT", 20.0 * SLOW)
    monkeypatch.setattr(_waits, "_LOOK_EVERY", 0.05)
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
        return context.ask(B, "end") if message.method == "go" else message.method

    with running(receive, storage=f"sqlite:///{tmp_path}/actors.db") as runtime:
        client = runtime.client()
        held = client.send_request(B, "hold")
        gate.wait()
        runtime.store.wait([(B, A)])  # as another process would
        asked = client.send_request(A, "go")
        wait_until(lambda: A in runtime.engine.waits)
        runtime.store.unwait([B])
        gate.opened.set()
        assert asked.result(5.0 * SLOW) == "end"
        assert held.result(5.0 * SLOW) == "hold"


def test_a_store_that_fails_when_a_wait_is_over_is_told_later() -> None:
    """The answer is there; and nobody is taken to wait for ever."""

    class Flaky(InMemoryStateStorage):
        fails = False

        def unwait(self, actor_ids: Any) -> None:
            if self.fails:
                self.fails = False
                raise OSError("disk")
            super().unwait(actor_ids)

    store, gate = Flaky(), Gate()

    def receive(context: Any, message: Any) -> Any:
        if context.actor_id == B:
            gate()
            return "answer"
        return context.ask(B, "x")

    with running(receive, storage=store) as runtime:
        runtime.client().send_request(B, "x")
        gate.wait()
        handle = runtime.client().send_request(A, "go")
        wait_until(lambda: A in runtime.engine.waits)
        store.fails = True
        gate.opened.set()
        assert handle.result(5.0 * SLOW) == "answer"
        assert A not in runtime.engine.waits
        wait_until(lambda: not store.wait([(B, A)]))
