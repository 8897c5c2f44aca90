"""What people ask of a runtime: that an actor goes, whoever sends to it meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import (
    InMemoryStateStorage,
    InProcessActorRuntime,
    RequestStatus,
    RuntimeOptions,
    Supervision,
)
from ppio_agent.exceptions import ActorBusyError, ActorStoppedError
from tests.support import wait_until

from .support import Gate, Made, actor, running


def test_a_request_that_comes_as_its_actor_is_deleted_is_run() -> None:
    """It is none of those that go, and nobody has to find it later."""
    found: list[Any] = []

    class Racing(InMemoryStateStorage):
        def delete(self, lease: Any) -> bool:
            deleted = super().delete(lease)
            found.append(client.send_request(actor(), "after", message_id="after"))
            return deleted

    options = RuntimeOptions(sweep_every=60.0)
    with running(
        lambda _context, message: message.method,
        storage=Racing(),
        runtime_options=options,
    ) as runtime:
        client = runtime.client()
        client.ask(actor(), "before")
        assert runtime.delete_actor(actor())
        assert found[0].result(10.0) == "after"


def test_a_stopped_actor_can_be_deleted() -> None:
    """Nothing of it runs, and what it has may be why it fails."""

    def receive(context: Any, message: Any) -> int:
        if message.method == "keep":
            context.state["k"] = 1
            return 1
        raise ValueError("x")

    with running(receive, supervision=Supervision(strategy="stop")) as runtime:
        client = runtime.client()
        client.ask(actor(), "crash")
        with pytest.raises(ActorStoppedError):
            client.ask(actor(), "x")
        wait_until(lambda: runtime.stats()["live"] == 0)
        runtime.store.own(actor(), "somebody")
        assert runtime.delete_actor(actor())
        assert runtime.store.owner(actor()) is None


def test_who_deletes_is_told_what_an_actor_does(tmp_path: Any) -> None:
    """Not of a turn that nobody runs."""
    url, gate = f"sqlite:///{tmp_path}/actors.db", Gate()

    def receive(_context: Any, message: Any) -> int:
        if message.method == "slow":
            gate()
        return 1

    with running(receive, storage=url) as runtime:
        other = InProcessActorRuntime(url)
        other.register_actor_type("t", lambda _context: Made(receive))
        with other:
            runtime.client().ask(actor(), "x")
            with pytest.raises(ActorBusyError, match="lives in another process"):
                other.delete_actor(actor())
            slow = runtime.client().send_request(actor(), "slow")
            gate.wait()
            with pytest.raises(ActorBusyError, match="runs a turn in another") as told:
                other.delete_actor(actor())
            assert told.value.message_id == slow.message_id
            with pytest.raises(ActorBusyError, match="runs a turn: delete"):
                runtime.delete_actor(actor())
            gate.opened.set()
            assert slow.get_response(10.0).status is RequestStatus.COMPLETED


def test_calls_of_requests_that_end_elsewhere_are_not_kept(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that were promised somebody is told all the same."""
    monkeypatch.setattr("ppio_agent.actors._sweep._AWAITED", 0.0)
    url, gate = f"sqlite:///{tmp_path}/actors.db", Gate()

    def receive(_context: Any, _message: Any) -> int:
        gate()
        return 1

    with running(receive, storage=url) as runtime:
        other = InProcessActorRuntime(url, options=RuntimeOptions(sweep_every=60.0))
        other.register_actor_type("t", lambda _context: Made(receive))
        with other:
            runtime.client().send_request(actor(), "x", message_id="m-0")
            gate.wait()
            handles = [
                other.client().send_request(actor(), "x", message_id=f"m-{n}")
                for n in range(1, 4)
            ]
            future = other.client().get_request(actor(), "m-1").future()
            other.sweep()
            assert other.stats()["awaited"] == 1
            gate.opened.set()
            assert handles[2].result(10.0) == 1
            wait_until(lambda: other.sweep() == 0 and future.done())
            assert future.result(0) == 1
            other.sweep()
            assert other.stats()["awaited"] == 0
