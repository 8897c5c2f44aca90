"""Whose an actor is, whatever fails or interrupts those who run it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ppio_agent.actors import (
    InMemoryStateStorage,
    InProcessActorRuntime,
    RequestStatus,
    RuntimeOptions,
    Supervision,
)
from ppio_agent.actors._engine import Engine
from tests.support import wait_until

from .support import Gate, Made, actor, running


def _is_free(engine: Engine) -> bool:
    cell = engine.cells.find(actor())
    return cell is None or not cell.flag.locked()


def test_a_store_that_fails_as_a_crash_is_settled_costs_no_actor() -> None:
    """The actor is as free as ever."""

    class Flaky(InMemoryStateStorage):
        fails = False

        def take(self, lease: Any, **options: Any) -> Any:
            if self.fails:
                self.fails = False
                raise OSError("disk")
            return super().take(lease, **options)

    store = Flaky()

    def receive(_context: Any, message: Any) -> str:
        if message.method == "crash":
            store.fails = True
            raise ValueError("x")
        return "ok"

    supervision = Supervision(strategy="stop", quarantine=0.01)
    with running(receive, storage=store, supervision=supervision) as runtime:
        client = runtime.client()
        crashed = client.send_request(actor(), "crash").get_response(10)
        assert crashed.status is RequestStatus.FAILED
        wait_until(lambda: not store.fails and _is_free(runtime.engine))
        wait_until(lambda: runtime.engine.supervisor.stopped_for(actor()) == 0.0)
        assert client.send_request(actor(), "x").result(10) == "ok"


class _Once:
    """Raises `KeyboardInterrupt` as a function is called first, or has returned."""

    def __init__(self, fn: Callable[..., Any], *, after: bool) -> None:
        self.fn = fn
        self.after = after
        self.due = True

    def __call__(self, *args: Any, **options: Any) -> Any:
        due, self.due = self.due, False
        if due and not self.after:
            raise KeyboardInterrupt
        value = self.fn(*args, **options)
        if due:
            raise KeyboardInterrupt
        return value


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "name",
    ["_store.claim", "_store.commit", "_lives.activate", "run", "leave"],
)
@pytest.mark.parametrize("message_id", [None, "m-1"])
def test_ctrl_c_at_any_moment_leaves_the_actor_free(
    monkeypatch: pytest.MonkeyPatch, name: str, message_id: str | None, *, after: bool
) -> None:
    """It reaches the program, and the next request is run."""
    with running(lambda _context, message: message.method) as runtime:
        client, target = runtime.client(), runtime.engine.drainer
        *path, attribute = name.split(".")
        for part in path:
            target = getattr(target, part)
        once = _Once(getattr(target, attribute), after=after)
        monkeypatch.setattr(target, attribute, once)
        with pytest.raises(KeyboardInterrupt):
            client.ask(actor(), "x", message_id=message_id)
        assert client.ask(actor(), "y", timeout=10).data == "y"
        wait_until(lambda: _is_free(runtime.engine))


@pytest.mark.parametrize("after", [False, True])
def test_ctrl_c_as_an_actor_is_handed_over_runs_it_once(
    monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """Whether or not the pool has taken it."""
    seen: list[str] = []
    with running(lambda _context, m: seen.append(m.method) or 1) as runtime:
        engine = runtime.engine
        once = _Once(engine.pool.submit, after=after)
        monkeypatch.setattr(engine.pool, "submit", once)
        with pytest.raises(KeyboardInterrupt):
            runtime.client().send_request(actor(), "x", message_id="m")
        handle = runtime.client().get_request(actor(), "m")
        assert handle.result(10) == 1
        wait_until(lambda: _is_free(engine))
    assert seen == ["x"]


def test_ctrl_c_in_run_actor_reaches_the_program() -> None:
    """Not only the request, which has failed."""

    class Nobody:
        def wake(self, actor_id: Any, budget: Any) -> None:
            raise RuntimeError("away")

    def receive(_context: Any, _message: Any) -> None:
        raise KeyboardInterrupt

    runtime = InProcessActorRuntime(
        placement=Nobody(), options=RuntimeOptions(sweep_every=60.0)
    )
    runtime.register_actor_type("t", lambda _context: Made(receive))
    with runtime:
        # It is accepted, whatever becomes of who was to be told of it.
        handle = runtime.client().send_request(actor(), "x")
        with pytest.raises(KeyboardInterrupt):
            runtime.run_actor(actor())
        assert handle.get_response(0).status is RequestStatus.FAILED


def test_while_leases_may_be_lost_no_caller_begins_a_turn() -> None:
    """It waits for them to be sure."""
    began = threading.Event()

    def receive(_context: Any, message: Any) -> int:
        if message.method == "x":
            began.set()
        return 1

    with running(receive) as runtime:
        client, engine = runtime.client(), runtime.engine
        client.ask(actor(), "first")
        engine.stale = True
        asking = threading.Thread(target=client.ask, args=(actor(), "x"))
        asking.start()
        wait_until(lambda: runtime.stats()["pending"] == 1)
        assert not began.wait(0.05)
        engine.stale = False
        runtime.sweep()
        assert began.wait(10.0)
        asking.join(10.0)


def test_an_ask_does_not_overtake_what_was_accepted_before(tmp_path: Any) -> None:
    """By a process that ended before it was run."""
    url = f"sqlite:///{tmp_path}/actors.db"
    seen: list[str] = []

    def runtime_of(receive: Any) -> InProcessActorRuntime:
        runtime = InProcessActorRuntime(url, options=RuntimeOptions(sweep_every=60.0))
        runtime.register_actor_type("t", lambda _context: Made(receive))
        return runtime

    gate = Gate()

    def slow(context: Any, _message: Any) -> None:
        gate.reached.set()
        context.cancelled.wait(10.0)
        context.check()

    first = runtime_of(slow).start()
    for n in range(2):
        first.client().send_request(actor(), f"m{n}")
    gate.wait()
    first.stop(0.0)
    second = runtime_of(lambda _context, m: seen.append(m.method) or 1)
    # Nothing but the ask looks at the actor.
    second.start()
    with second:
        second.client().ask(actor(), "later")
    assert seen == ["m0", "m1", "later"]


def test_a_turn_that_asks_while_the_runtime_stops_is_kept(tmp_path: Any) -> None:
    """It has not failed: it is run again."""
    url, gate, seen = f"sqlite:///{tmp_path}/actors.db", Gate(), []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "b":
            return 1
        seen.append(message.method)
        if len(seen) == 1:
            gate()
        return context.ask(actor("b"), "b")

    with running(receive, storage=url) as runtime:
        handle = runtime.client().send_request(actor("a"), "a")
        gate.wait()
        stopping = threading.Thread(target=runtime.stop, args=(10.0,))
        engine = runtime.engine
        stopping.start()
        assert engine.stopping.wait(10.0)
        gate.opened.set()
        stopping.join(20.0)
    with running(receive, storage=url) as runtime:
        again = runtime.client().get_request(actor("a"), handle.message_id)
        assert again.result(10) == 1
    assert seen == ["a", "a"]


def test_a_thread_that_outlives_its_turn_is_none_of_it() -> None:
    """What it asks for has nothing to do with the actor any more."""
    found: list[Any] = []
    go = threading.Event()
    threads: list[threading.Thread] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "a":

            def later() -> None:
                go.wait(10.0)
                found.append(client.send_request(actor("b"), "b").result(10.0))

            copied = contextvars.copy_context()
            threads.append(threading.Thread(target=copied.run, args=(later,)))
            threads[0].start()
            return 1
        if message.method == "b":
            return context.ask(actor("a"), "hi")
        return "hi"

    with running(receive) as runtime:
        client = runtime.client()
        client.ask(actor("a"), "a")
        go.set()
        threads[0].join(20.0)
    assert found == ["hi"]


def test_a_start_that_fails_leaves_nothing() -> None:
    """No thread, and no worker that keeps its leases."""

    class Deaf(InMemoryStateStorage):
        shared = True
        retired: list[str] = []  # noqa: RUF012 - of this test alone

        def subscribe(self, callback: Any) -> Any:
            raise OSError("nobody listens")

        def retire(self, worker: str) -> None:
            self.retired.append(worker)
            super().retire(worker)

    store = Deaf()
    runtime = InProcessActorRuntime(store, options=RuntimeOptions(lease_ttl=0.3))
    before = threading.active_count()
    with pytest.raises(OSError, match="nobody listens"):
        runtime.start()
    assert not runtime.running
    assert len(store.retired) == 1
    wait_until(lambda: threading.active_count() <= before)
