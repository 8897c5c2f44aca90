"""Turns whose store cannot be reached for a while."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ppio_agent.actors import InProcessActorRuntime, RequestStatus, RuntimeOptions
from ppio_agent.exceptions import ServiceUnavailableError
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from tests.support import SLOW, wait_until

from .support import actor, running

_QUICK = RuntimeOptions(sweep_every=0.05)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppio_agent.actors._retries._PAUSES", (0.0, 0.01, 0.02))


class Failing(InMemoryStateStorage):
    """Fails some of its calls, each a number of times."""

    def __init__(self, **failures: int) -> None:
        super().__init__()
        self.failures = failures

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _FAILING or self.failures.get(name, 0) <= 0:
            return found

        def fail(*args: Any, **named: Any) -> Any:
            self.failures[name] -= 1
            raise OSError("the store at 10.0.0.7:5432 is away")

        return fail


_FAILING = {"claim", "commit", "expire", "inspect", "read", "take"}


def _calls(context: Any) -> dict[str, Any]:
    """Return the ways in which a turn asks the store."""
    return {
        "read": lambda: context.read_state("k"),
        "reads": lambda: context.read_states(["k"]),
        "keys": context.list_keys,
        "remove": lambda: context.remove_state("k"),
        "write": lambda: context.write_state("k", 1),
        "remind": lambda: context.set_reminder("r", 60.0, "m"),
        "ask": lambda: context.ask(actor("other"), "plain"),
    }


@pytest.mark.parametrize(
    ("method", "fails"),
    [
        ("read", "read"),
        ("reads", "read"),
        ("keys", "read"),
        ("remove", "read"),
        ("write", "read"),
        ("remind", "inspect"),
        ("ask", "commit"),
        ("ask", "claim"),
        ("read", "commit"),
        ("read", "take"),
    ],
)
def test_a_turn_that_the_store_fails_is_run_again(method: str, fails: str) -> None:
    """It is neither a crash nor another attempt."""
    store = Failing()
    seen: list[int] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method != "plain":
            seen.append(context.attempt)
            _calls(context)[message.method]()
        return "done"

    with running(receive, storage=store, runtime_options=_QUICK) as runtime:
        runtime.client().ask(actor(), "plain")
        store.failures[fails] = 3 if fails == "read" else 1
        handle = runtime.client().send_request(actor(), method)
        assert handle.result(10.0 * SLOW) == "done"
        assert set(seen) == {1}
        assert not runtime.engine.supervisor.stopped
        wait_until(lambda: not runtime.engine.outage.lasts)


def test_what_an_actor_makes_of_an_outage_is_void_unless_it_is_a_result() -> None:
    """Its failure would be that of the store, as an agent's is; a result is its own."""
    store = Failing()
    runs: list[str] = []

    def receive(context: Any, message: Any) -> Any:
        runs.append(message.method)
        try:
            return context.read_state("k") or "read"
        except OSError:
            if message.method == "go on":
                return "without"
            raise KeyError("k") from None

    with running(receive, storage=store, runtime_options=_QUICK) as runtime:
        client = runtime.client()
        store.failures["read"] = 1
        assert client.send_request(actor(), "go on").result(10.0 * SLOW) == "without"
        store.failures["read"] = 1
        assert client.send_request(actor(), "stop").result(10.0 * SLOW) == "read"
        assert runs == ["go on", "stop", "stop"]


def test_an_agent_answers_when_its_store_is_back() -> None:
    """Its failures are answers, but not those of the store."""
    store = Failing()
    runtime = InProcessActorRuntime(store, options=_QUICK)
    runtime.register_agent("t", lambda request: "hello")
    with runtime:
        store.failures["read"] = 2
        handle = runtime.client().send_request(
            actor(), "run", {"messages": [{"role": "user", "content": "hi"}]}
        )
        response = handle.get_response(10.0 * SLOW)
        assert response.status is RequestStatus.COMPLETED


def test_an_actors_own_outage_stays_its_failure() -> None:
    """Of a service that it uses."""

    def receive(context: Any, message: Any) -> Any:
        raise ServiceUnavailableError("the model is away")

    with running(receive, runtime_options=_QUICK) as runtime:
        response = runtime.client().ask(actor(), "go")
        assert response.status is RequestStatus.FAILED


def test_a_store_that_never_gives_what_a_turn_reads_fails_it() -> None:
    """While it answers all else: every request ends."""
    store = Failing(inspect=1000)

    def receive(context: Any, message: Any) -> Any:
        context.set_reminder("r", 60.0, "m")

    with running(receive, storage=store, runtime_options=_QUICK) as runtime:
        response = runtime.client().send_request(actor(), "m").get_response(10 * SLOW)
        assert response.data["code"] == "actor_failed"


def test_a_caller_is_told_of_an_outage_after_a_moment() -> None:
    """If nobody else knows of its request."""
    store = Failing()

    def receive(context: Any, message: Any) -> Any:
        return context.read_state("k") or 1

    with running(receive, storage=store, runtime_options=_QUICK) as runtime:
        client = runtime.client()
        client.ask(actor(), "go")
        store.failures["read"] = 1000
        with pytest.raises(OSError, match="away"):
            client.ask(actor(), "go")
        store.failures["read"] = 0
        wait_until(lambda: not runtime.engine.cells.find(actor()).flag.locked())
        assert client.ask(actor(), "go").data == 1


def test_an_outage_is_told_once_whoever_meets_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a traceback for each actor."""
    store = Failing()

    def receive(context: Any, message: Any) -> Any:
        return context.read_state("k") or 1

    options = RuntimeOptions(sweep_every=60.0)
    with running(receive, storage=store, runtime_options=options) as runtime:
        client = runtime.client()
        runtime.sweep()
        with caplog.at_level(logging.WARNING):
            store.failures.update(claim=8, expire=1000)
            handles = [client.send_request(actor(str(n)), "go") for n in range(8)]
            wait_until(lambda: store.failures["claim"] == 0)
        store.failures.clear()
        runtime.sweep()
        assert [handle.result(5.0 * SLOW) for handle in handles] == [1] * 8
    assert len(caplog.records) == 1
    assert not caplog.records[0].exc_info
