"""What an actor sees of its runtime: time, and state in one go."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import (
    ActorId,
    ActorRequestMessage,
    IActor,
    IActorRuntimeContext,
    InProcessActorRuntime,
    RequestStatus,
)
from ppio_agent.exceptions import ActorError, InvocationTimeoutError, ValidationError

HERE = ActorId("actor", "a")


class _Watching(IActor):
    """Looks at the time without a pause."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        while True:
            try:
                context.check()
            except InvocationTimeoutError:
                assert context.cancelled.reason == "deadline"
                raise


def test_who_sees_the_deadline_first_has_not_crashed() -> None:
    """The request is EXPIRED, whether the turn sees it or the timer."""
    with InProcessActorRuntime() as runtime:
        runtime.register_actor_type("actor", lambda _: _Watching())
        for _ in range(5):
            response = runtime.client().ask(HERE, "watch", deadline=0.02)
            assert response.status is RequestStatus.EXPIRED
            assert response.data["code"] == "invocation_timeout"


class _Reading(IActor):
    """Writes, and reads what it has."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        params = message.params or {}
        for key, value in params.get("write", {}).items():
            context.write_state(key, value)
        for key in params.get("remove", ()):
            context.remove_state(key)
        return context.read_states(params["read"])


def test_states_are_read_in_one_go() -> None:
    """Those that there are, as the turn left them; however many."""
    with InProcessActorRuntime() as runtime:
        runtime.register_actor_type("actor", lambda _: _Reading())

        def read(*keys: str, **more: Any) -> Any:
            response = runtime.client().ask(HERE, "go", {"read": keys, **more})
            assert response.status is RequestStatus.COMPLETED, response.data
            return response.data

        many = {f"k{n:04}": n for n in range(1500)}
        assert read("k0001", "none", write=many) == {"k0001": 1}
        assert read(*many) == many
        changed = read("k0000", "k0001", write={"k0000": "new"}, remove=["k0001"])
        assert changed == {"k0000": "new"}
        assert read() == {}


def test_outside_of_a_turn_state_is_only_read() -> None:
    """What belongs to a turn says so."""
    with InProcessActorRuntime() as runtime:
        runtime.register_actor_type("actor", lambda _: _Reading())
        runtime.client().ask(HERE, "go", {"read": [], "write": {"a": [1]}})
        context = runtime.get_or_create_actor(HERE)
        assert context.read_states(["a", "b"]) == {"a": [1]}
        with pytest.raises(ValidationError):
            context.read_states([""])
        with pytest.raises(ActorError, match="in a turn only"):
            context.check()
