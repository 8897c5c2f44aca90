"""What a run asks for besides its messages."""

from __future__ import annotations

import pytest

from ppio_agent.actors.http.wishes import (
    Patience,
    deadline_of,
    keyed_conversation,
    message_id_of,
    new_conversation,
    valid_message_id,
)
from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.actor_bodies import valid_instance_id

KEY = "0123456789abcdef"


@pytest.mark.parametrize("text", ["0", "-1", "x", "1e3", "nan", "315360001", "9" * 15])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    """Also one that nobody will see the end of."""
    assert deadline_of("315360000") == 315360000.0
    with pytest.raises(ValidationError, match="X-PPIO-Timeout"):
        deadline_of(text)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("return=minimal", None),
        ("respond-async", 0.0),
        ("Respond-Async; x=1, return=minimal", 0.0),
        ("wait=10", 10.0),
        ("respond-async, wait=10", 10.0),
        ("wait=10, wait=20", 10.0),
        ("wait = 0", 0.0),
        ("wait=99999", 300.0),
        ("wait=x", None),
        ('foo="respond-async, wait=1"', None),
    ],
)
def test_a_preference_is_understood(prefer: str | None, seconds: float | None) -> None:
    """As RFC 7240 writes it; what is none is passed over."""
    assert Patience.of(prefer).seconds == seconds


@pytest.mark.parametrize("key", ["order-17", "a/b", "x" * 200, "a:b", "{}"])
def test_a_key_stands_for_one_request(key: str) -> None:
    """Always the same, and one that has a valid id."""
    assert message_id_of(key) == message_id_of(key)
    assert valid_message_id(message_id_of(key))
    assert (message_id_of(key) == key) is valid_message_id(key)


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 256])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        message_id_of(key)


def test_a_key_begins_one_conversation() -> None:
    """For each caller and agent another one."""
    made = {
        keyed_conversation(KEY, "echo", None),
        keyed_conversation(KEY, "echo", ""),
        keyed_conversation(KEY, "echo", "ann"),
        keyed_conversation(KEY, "echoann", None),
        keyed_conversation(f"{KEY}x", "echo", "ann"),
        keyed_conversation("short", "echo", "ann"),
    }
    assert len(made) == 5  # no name is no principal
    assert all(map(valid_instance_id, made))
    with pytest.raises(ValidationError) as caught:
        keyed_conversation("short", "echo", None)
    assert caught.value.code == "idempotency_key_too_short"


def test_a_conversation_without_a_name_cannot_be_guessed() -> None:
    """Its id opens it."""
    made = {new_conversation() for _ in range(100)}
    assert len(made) == 100
    assert all(map(valid_instance_id, made))
