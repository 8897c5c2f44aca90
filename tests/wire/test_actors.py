"""Tests of what actors are named by."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import InvalidActorIdError, InvalidMessageError
from ppio_agent.wire.actors import (
    ActorId,
    RequestStatus,
    check_message_id,
    check_method,
    is_storable,
)


@pytest.mark.parametrize(
    ("type_name", "instance_id"),
    [("echo", "c-1"), ("_a.b:c-9", "with / and space"), ("a" * 100, "~" * 256)],
)
def test_an_id_is_read_as_it_is_written(type_name: str, instance_id: str) -> None:
    """At its first slash, for types have none."""
    actor_id = ActorId(type_name, instance_id)
    assert ActorId.parse(str(actor_id)) == actor_id


@pytest.mark.parametrize(
    ("type_name", "instance_id"),
    [
        ("", "a"), ("1a", "a"), ("a b", "a"), ("a/b", "a"), ("a" * 101, "a"),
        ("a\n", "a"), (None, "a"), ("a", ""), ("a", "  "), ("a", "\t"),
        ("a", "\u00e9"), ("a", "a\n"), ("a", "a" * 257), ("a", 1),
    ],
)  # fmt: skip
def test_what_is_no_id(type_name: object, instance_id: object) -> None:
    """The error says what one is."""
    with pytest.raises(InvalidActorIdError, match="is not"):
        ActorId(type_name, instance_id)  # type: ignore[arg-type]


def test_text_without_a_slash_is_no_id() -> None:
    """The error says how one is written."""
    with pytest.raises(InvalidActorIdError, match="type/instance"):
        ActorId.parse("echo")


def test_what_is_no_text_is_no_id() -> None:
    """So."""
    with pytest.raises(InvalidActorIdError, match="type/instance"):
        ActorId.parse(5)  # type: ignore[arg-type] # refused


@pytest.mark.parametrize("name", ["", "a" * 201, "a\0b", "\ud800", None, 5])
def test_what_is_no_method(name: object) -> None:
    """The error says what one is."""
    assert check_method("\u00e9" * 200) == "\u00e9" * 200
    with pytest.raises(InvalidMessageError, match="of 1 to 200 characters"):
        check_method(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "a b", "a/b", "a" * 129, "\u00e9", "a\n", None])
def test_what_is_no_message_id(text: object) -> None:
    """The error says what one is."""
    with pytest.raises(InvalidMessageError, match="is not 1 to 128"):
        check_message_id(text)  # type: ignore[arg-type]


def test_all_but_pending_is_final() -> None:
    """Clients go on asking while it is pending, and only then."""
    going_on = [status for status in RequestStatus if not status.terminal]
    assert going_on == [RequestStatus.PENDING]


@pytest.mark.parametrize("text", ["", "run", "caf\u00e9", "\U0001f600", "\x01\n"])
def test_texts_that_stores_can_keep(text: str) -> None:
    """Also such that nobody can read."""
    assert is_storable(text)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "a\udfff", b"run", None, 1])
def test_what_not_every_store_can_keep(text: object) -> None:
    """What is no text, ends early in a database, or cannot be encoded."""
    assert not is_storable(text)
