"""What a runtime looks after all the time."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ppio_agent.actors import InProcessActorRuntime, RuntimeOptions
from ppio_agent.actors._sweep import Instants
from ppio_agent.actors._timers import Timers
from ppio_agent.exceptions import ServiceUnavailableError
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from ppio_agent.storage.actors.records import Limits, RequestRecord, Retention
from tests.support import SLOW, wait_until

from .support import Gate, Made, actor, running


class Shaky(InMemoryStateStorage):
    """A store that fails while it is told to, and notes how often it was asked."""

    down = False

    def __init__(self) -> None:
        super().__init__()
        self.beats: list[bool] = []
        self.kept = True

    def heartbeat(self, worker: str, ttl: float) -> bool:
        self.beats.append(self.down)
        if self.down:
            raise ServiceUnavailableError("the store is down")
        return super().heartbeat(worker, ttl) and self.kept

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        if self.down:
            raise OSError("the store is down")
        return super().expire(now, limit)


def echo(context: Any, message: Any) -> Any:
    return message.params or "ok"


# Instants.


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers("ppio-test-instants")
    yield made
    assert made.close()


def test_instants_that_are_close_are_one(timers: Timers) -> None:
    """A thousand reminders of one moment are looked for once."""
    called: list[float] = []
    instants = Instants(timers, lambda: called.append(time.monotonic()))
    began = time.monotonic()
    for _ in range(1000):
        instants.set(0.05)
    assert len(timers) <= 30
    wait_until(lambda: called and len(timers) == 0)
    assert len(called) <= 30
    assert called[0] >= began + 0.05


def test_what_is_far_off_or_too_much_is_left_to_the_sweep() -> None:
    """It takes no place that a deadline needs."""
    timers = Timers("ppio-test-instants", most=1)
    called = threading.Event()
    instants = Instants(timers, called.set)
    instants.set(1000.0)
    assert len(timers) == 0
    filler = timers.at(time.monotonic() + 1000.0, called.clear)
    instants.set(0.01)
    assert len(timers) == 1
    filler.cancel()
    instants.set(-1.0)
    assert called.wait(5.0 * SLOW)
    assert timers.close()


def test_what_comes_while_it_runs_is_looked_for_again(timers: Timers) -> None:
    """It may have come too late to be seen."""
    gate, calls = Gate(), []

    def fn() -> None:
        calls.append(1)
        if len(calls) == 1:
            gate()

    instants = Instants(timers, fn)
    instants.set(0.0)
    gate.wait()
    instants.set(0.0)
    gate.opened.set()
    wait_until(lambda: len(calls) == 2)


def test_instants_begin_anew_in_a_forked_child(timers: Timers) -> None:
    """The parent's are not the child's."""
    instants = Instants(timers, lambda: None)
    instants.set(50.0)
    with instants._lock:
        child = os.fork()
        if child == 0:
            called = threading.Event()
            mine = Instants(timers, called.set)
            mine.set(0.0)
            os._exit(0 if called.wait(5.0 * SLOW) and not instants._steps else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# The sweep.


def test_every_request_ends_though_nobody_was_woken() -> None:
    """Also what others put into the store."""
    options = RuntimeOptions(sweep_every=0.05)
    with running(echo, runtime_options=options) as runtime:
        request = RequestRecord(actor(), "m", "go", created_at=runtime.store.now())
        runtime.store.accept(request, Limits())
        handle = runtime.client().get_request(actor(), "m")
        assert handle.result(5.0 * SLOW) == "ok"


def test_a_sweep_finds_more_than_a_page_of_actors() -> None:
    """Those that live here do not hide the others."""
    options = RuntimeOptions(sweep_every=60.0)
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
        return 1

    with running(receive, runtime_options=options) as runtime:
        client = runtime.client()
        for number in range(20):
            client.ask(actor(f"live{number}"), "go")
        held = client.send_request(actor(), "hold")
        gate.wait()
        store = runtime.store
        for number in range(300):
            request = RequestRecord(actor(f"new{number}"), "m", "go")
            store.accept(request, Limits())
        runtime.sweep()
        wait_until(lambda: runtime.stats()["pending"] == 1)
        gate.opened.set()
        assert held.result(5.0 * SLOW) == 1


def test_an_outage_of_the_store_is_told_once_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Sweeps and heartbeats go on."""
    store = Shaky()
    options = RuntimeOptions(sweep_every=0.02, lease_ttl=0.15)
    with running(echo, storage=store, runtime_options=options) as runtime:
        with caplog.at_level(logging.INFO):
            store.down = True
            wait_until(lambda: store.beats.count(True) >= 3)
            wait_until(lambda: runtime.engine.halted)
            store.down = False
            wait_until(lambda: not runtime.engine.halted)
            wait_until(lambda: "answers again" in caplog.text)
        assert caplog.text.count("the store of actors fails") == 1
        assert runtime.client().ask(actor(), "go").data == "ok"


def test_no_turn_begins_while_the_leases_may_be_lost() -> None:
    """After two thirds of their time without a renewal; it begins when that is back."""
    store = Shaky()
    options = RuntimeOptions(sweep_every=0.05, lease_ttl=0.15)
    turns: list[bool] = []

    def receive(context: Any, message: Any) -> Any:
        turns.append(store.down)
        return 1

    with running(receive, storage=store, runtime_options=options) as runtime:
        store.down = True
        wait_until(lambda: runtime.engine.halted)
        handle = runtime.client().send_request(actor(), "go")
        wait_until(lambda: store.beats.count(True) > 4)
        assert not turns
        store.down = False
        assert handle.result(5.0 * SLOW) == 1
        assert turns == [False]


def test_idle_actors_are_let_go_if_others_may_have_them() -> None:
    """A worker that was silent for too long begins with new leases."""
    store = Shaky()
    disposed = threading.Event()

    class Watched(Made):
        def dispose(self) -> None:
            disposed.set()

    options = RuntimeOptions(sweep_every=60.0, lease_ttl=0.2)
    runtime = InProcessActorRuntime(store, options=options)
    runtime.register_actor_type("t", lambda _: Watched(echo))
    with runtime:
        runtime.client().ask(actor(), "go")
        token = store.inspect(actor())
        store.kept = False
        assert disposed.wait(5.0 * SLOW)
        store.kept = True
        assert runtime.client().ask(actor(), "go").data == "ok"
        after = store.inspect(actor())
        assert token is not None
        assert after is not None
        assert after.token > token.token


def test_what_need_not_be_kept_is_purged_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the retention of the runtime."""
    from ppio_agent.actors import _sweep

    monkeypatch.setattr(_sweep, "_PURGE_EVERY", 0.0)
    options = RuntimeOptions(retention=Retention(seconds=0.0), sweep_every=60.0)
    with running(echo, runtime_options=options) as runtime:
        client = runtime.client()
        client.send_request(actor(), "go", message_id="m").result(5.0 * SLOW)
        wait_until(
            lambda: (
                runtime.sweep() == 0 and runtime.store.get_request(actor(), "m") is None
            )
        )


def test_purging_goes_on_until_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though not for long at a time: the next sweep goes on where that one stopped."""
    from ppio_agent.actors import _sweep

    class Full(InMemoryStateStorage):
        left = 0
        calls = 0

        def purge(self, now: float, limit: int, retention: Retention) -> int:
            self.calls += 1
            count = min(self.left, limit)
            self.left -= count
            return count

    store = Full()
    engine: Any = SimpleNamespace(timers=None, store=store, options=RuntimeOptions())
    engine.calls = SimpleNamespace(prune=lambda: None)
    sweep = _sweep.Sweep(engine)
    store.left = 50_000
    sweep._next_purge = 0.0
    sweep._purge()
    assert store.left == 0
    sweep._purge()  # not again for a while
    calls = store.calls
    store.left = 50_000
    monkeypatch.setattr(_sweep, "_PURGE_SECONDS", 0.0)
    sweep._next_purge = 0.0
    for _ in range(3):
        sweep._purge()
    assert store.calls == calls + 3
