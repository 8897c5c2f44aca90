"""Which actors live: activated when needed, let go when idle or in the way."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from ppio_agent.actors import (
    ActorOptions,
    IActor,
    InMemoryStateStorage,
    InProcessActorRuntime,
    RuntimeOptions,
)
from tests.support import SLOW, new_threads, wait_until

from .support import Gate, actor, running


class _Counted(IActor):
    made: Counter[str]
    disposed: Counter[str]

    def __init__(self, context: Any) -> None:
        self.key = context.actor_id.instance_id
        self.made[self.key] += 1

    def receive(self, _context: Any, message: Any) -> Any:
        return message.params or 1

    def dispose(self) -> None:
        self.disposed[self.key] += 1


def _counted(
    options: RuntimeOptions, **actor_options: Any
) -> tuple[InProcessActorRuntime, type[_Counted]]:
    class Mine(_Counted):
        made, disposed = Counter[str](), Counter[str]()

    runtime = InProcessActorRuntime(options=options)
    runtime.register_actor_type("t", Mine, options=ActorOptions(**actor_options))
    return runtime, Mine


def test_few_of_many_actors_live_at_once() -> None:
    """The others were disposed of, once each, and no thread is left of them."""
    count, most = 10_000, 100
    threads = new_threads("ppio-actor")
    options = RuntimeOptions(max_live=most, sweep_every=0.1)
    runtime, counted = _counted(options, idle_timeout=0.2)
    with runtime:
        client = runtime.client()
        for n in range(count):
            client.ask(actor(str(n)), "m")
        stats = runtime.stats()
        assert stats["live"] <= most
        assert stats["known"] <= most
        wait_until(lambda: runtime.stats()["live"] == 0, timeout=10.0)
        assert set(counted.disposed.values()) == {1}
        assert len(counted.made) == len(counted.disposed) == count
        assert len(threads()) < 10
        assert runtime.stats()["known"] == 0


def test_the_least_recently_used_goes_first() -> None:
    """One that runs never does."""
    gate = Gate()

    def receive(context: Any, message: Any) -> int:
        if message.method == "slow":
            gate()
        return 1

    options = RuntimeOptions(max_live=3)
    with running(receive, runtime_options=options) as runtime:
        client = runtime.client()
        slow = client.send_request(actor("slow"), "slow")
        gate.wait()
        for key in ("a", "b", "a", "c"):
            client.ask(actor(key), "m")

        def live(key: str) -> bool:
            cell = runtime.engine.cells.find(actor(key))
            return cell is not None and cell.activation is not None

        assert [live(key) for key in ("slow", "a", "b", "c")] == [1, 1, 0, 1]
        gate.opened.set()
        assert slow.result(5 * SLOW) == 1


def test_an_actor_that_was_let_go_begins_anew() -> None:
    """Its state is there; its instance is another."""
    runtime, counted = _counted(RuntimeOptions(sweep_every=0.05), idle_timeout=0.05)
    with runtime:
        client = runtime.client()
        client.ask(actor(), "m")
        wait_until(lambda: counted.disposed["1"] == 1)
        client.ask(actor(), "m")
        assert counted.made["1"] == 2


def test_requests_that_come_while_actors_are_let_go_are_answered() -> None:
    """Which happens all the time here."""
    options = RuntimeOptions(max_live=2, sweep_every=0.02)
    runtime, counted = _counted(options, idle_timeout=0.001)
    with runtime:
        client = runtime.client()
        start = threading.Barrier(3)
        failed: list[Any] = []

        def send(seed: int) -> None:
            start.wait()
            for n in range(400):
                to, params = actor(str(n % 5)), {"n": n}
                if (n + seed) % 2:
                    answer = client.ask(to, "m", params).data
                else:
                    answer = client.send_request(to, "m", params).result(10 * SLOW)
                if answer != params:
                    failed.append(answer)

        senders = [threading.Thread(target=send, args=(n,)) for n in range(3)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(60 * SLOW)
        assert failed == []
    assert counted.made == counted.disposed


def test_an_actor_lives_in_one_of_two_runtimes() -> None:
    """The other one's requests are run there; when it is let go it may move."""
    store = InMemoryStateStorage()
    options = RuntimeOptions(sweep_every=0.05)

    def named(name: str) -> Any:
        return running(
            lambda *_: name,
            storage=store,
            runtime_options=options,
            idle_timeout=30.0,
        )

    with named("second") as second:
        with named("first") as first:
            assert first.client().ask(actor(), "m").data == "first"
            assert second.client().ask(actor(), "m", timeout=10).data == "first"
        wait_until(lambda: second.client().ask(actor(), "m").data == "second")


def test_one_that_hangs_as_it_is_disposed_of_holds_up_no_sweep() -> None:
    """Nor the others that are let go of."""
    entered, opened = threading.Event(), threading.Event()

    class Hangs(IActor):
        def receive(self, _context: Any, _message: Any) -> int:
            return 1

        def dispose(self) -> None:
            entered.set()
            opened.wait(20.0)

    runtime = InProcessActorRuntime(options=RuntimeOptions(sweep_every=60.0))
    runtime.register_actor_type(
        "t", lambda _context: Hangs(), options=ActorOptions(idle_timeout=0.01)
    )
    with runtime:
        try:
            runtime.client().ask(actor(), "x")

            def sweep() -> None:
                while not entered.is_set():  # it has been idle for long enough
                    runtime.sweep()

            swept = threading.Thread(target=sweep)
            swept.start()
            assert entered.wait(5.0)
            swept.join(5.0)
            assert not swept.is_alive()
        finally:
            opened.set()
