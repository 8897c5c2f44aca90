"""What a turn reads and writes of its actor's state."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import InMemoryStateStorage
from ppio_agent.exceptions import (
    ActorError,
    SerializationError,
    StateTooLargeError,
    ValidationError,
)

from .support import actor, running


def _turns(*turns: Any) -> list[Any]:
    """Run each as a turn of one actor; return what they gave."""
    by_number = list(turns)

    def receive(context: Any, message: Any) -> Any:
        return {"value": by_number[message.params["n"]](context)}

    with running(receive) as runtime:
        client = runtime.client()
        answers = [client.ask(actor(), "m", {"n": n}).data for n in range(len(turns))]
    return [answer.get("value", answer) for answer in answers]


def test_a_turn_sees_its_own_writes_and_the_next_one_too() -> None:
    """Of each kind."""

    def first(context: Any) -> Any:
        assert context.write_state("a", {"x": [1]})
        context.write_state("b", 2)
        context.write_state("c", 3)
        return [
            context.read_state("a"),
            context.remove_state("b"),
            context.remove_state("b"),
            context.read_state("b"),
            context.list_keys(),
        ]

    def second(context: Any) -> Any:
        context.write_state("d", 4)
        removed = context.remove_state("c"), context.remove_state("nope")
        context.write_state("ab", 5)
        return [
            removed,
            context.list_keys(),
            context.list_keys("a"),
            context.read_states(["a", "c", "d", "nope"]),
        ]

    assert _turns(first, second) == [
        [{"x": [1]}, True, False, None, ["a", "c"]],
        [[True, False], ["a", "ab", "d"], ["a", "ab"], {"a": {"x": [1]}, "d": 4}],
    ]


def test_what_is_read_is_a_copy() -> None:
    """Changing it changes nothing."""

    def write(context: Any) -> Any:
        value = {"list": [1]}
        context.write_state("a", value)
        value["list"].append(2)
        context.read_state("a")["list"].append(3)
        return context.read_state("a")

    def read(context: Any) -> Any:
        context.read_state("a")["list"].append(4)
        return context.read_state("a")

    assert _turns(write, read) == [{"list": [1]}] * 2


def test_what_cannot_be_kept_is_refused_in_the_actor() -> None:
    """Where it is written."""
    errors: list[type] = []

    def write(context: Any) -> None:
        for key, value in (
            ("a", object()),
            ("a", "x" * 2**20),
            ("", 1),
            ("a\0", 1),
            (7, 1),
        ):
            try:
                context.write_state(key, value)
            except (ValidationError, SerializationError) as error:
                errors.append(type(error))
        context.write_state("fine", 1)

    _turns(write)
    refused = [SerializationError, StateTooLargeError, *[ValidationError] * 3]
    assert errors == refused


def test_the_state_of_an_actor_is_bounded() -> None:
    """What is written over or removed does not count for ever."""
    big = "x" * (2**20 - 100)

    def fill(context: Any) -> None:
        for n in range(8):
            context.write_state(f"k{n}", big)

    def over(context: Any) -> str:
        for _ in range(3):
            fill(context)
        for n in range(8, 15):
            context.write_state(f"k{n}", big)
        context.write_state("k15", big)
        try:
            context.write_state("k16", big)
        except StateTooLargeError as error:
            return error.code
        return "none"

    def remove(context: Any) -> bool:
        context.remove_state("k3")
        return bool(context.write_state("k16", big))

    assert _turns(fill, over, remove) == [None, "state_too_large", True]


def test_outside_of_turns_state_can_be_read_only() -> None:
    """By the context of an actor that anybody may have."""
    store = InMemoryStateStorage()
    store.write_state(actor(), {"a": 1})
    with running(lambda *_: 1, storage=store) as runtime:
        context = runtime.get_or_create_actor(actor())
        assert (context.read_state("a"), context.list_keys()) == (1, ["a"])
        with pytest.raises(ActorError, match="turn"):
            context.write_state("a", 2)
