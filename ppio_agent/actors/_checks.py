"""What may be given as a time, a number, an address or a whole message. Pure.

Whoever lets a value in from a program checks it here, before anything is stored: what
a store or a turn cannot use would fail far from the one who gave it.
"""

from __future__ import annotations

import re
from datetime import datetime

from ppio_agent.exceptions import InvalidActorIdError, InvalidMessageError
from ppio_agent.storage.actors.records import RequestRecord
from ppio_agent.wire.actors import (
    MAX_COUNT,
    MAX_SECONDS,
    ActorId,
    ActorMessageType,
    ActorRequestMessage,
)

__all__ = [
    "MAX_CHAIN",
    "check_actor_id",
    "check_count",
    "check_message",
    "check_seconds",
    "keep_origin",
    "seconds_until",
]

MAX_CHAIN = 32
"""Most actors that wait for each other in a row."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def check_seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Return a number of seconds if it is one that anything of actors may last.

    Args:
        name: What it is called, for the error.
        value: It.
        least: It is not below.

    Raises:
        InvalidMessageError: It is no number, NaN, below `least` or above 10 years.

    Example:
        >>> check_seconds("timeout", 2)
        2
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= MAX_SECONDS:  # type: ignore[operator] # a number
        raise InvalidMessageError(
            f"{name} is {_shown(value)}: give a number of seconds from {least:g} to"
            f" {MAX_SECONDS:.0f}"
        )
    return value  # type: ignore[return-value] # a number


def check_count(name: str, value: object, *, least: int = 0) -> int:
    """Return a whole number if it is one that stores can keep.

    Raises:
        InvalidMessageError: It is none, below `least` or above 2**31 - 1.
    """
    if type(value) is not int or not least <= value <= MAX_COUNT:
        raise InvalidMessageError(
            f"{name} is {_shown(value)}: give a whole number from {least} to {MAX_COUNT}"
        )
    return value


def check_actor_id(actor_id: object) -> ActorId:
    """Return the address of an actor if it is one.

    Raises:
        InvalidActorIdError: It is something else, such as its text.
    """
    if not isinstance(actor_id, ActorId):
        raise InvalidActorIdError(
            f"{_shown(actor_id)} is no ActorId: give ActorId(type, instance), or"
            " ActorId.parse of its text"
        )
    return actor_id


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # the interpreter's limit on the digits of an int
        return f"a huge {type(value).__name__}"


# Whole messages, made by others.


def check_message(message: object) -> ActorRequestMessage:
    """Return a request if it is one.

    Raises:
        InvalidMessageError: It is something else, such as a response.
    """
    if not isinstance(message, ActorRequestMessage):
        raise InvalidMessageError(
            f"a {type(message).__name__} is no request: give an ActorRequestMessage"
        )
    if message.message_type is not ActorMessageType.REQUEST:
        raise _unusable(message, "message_type", "ActorMessageType.REQUEST")
    return message


def seconds_until(deadline: object, now: float) -> float | None:
    """Return the seconds until the deadline of a message; 0 if it has passed.

    Args:
        deadline: An aware datetime, or None for no limit.
        now: The time, in seconds since 1970.

    Raises:
        InvalidMessageError: It is something else, or more than 10 years away.
    """
    if deadline is None:
        return None
    if not isinstance(deadline, datetime) or deadline.utcoffset() is None:
        raise InvalidMessageError(
            f"the deadline {_shown(deadline)} is no aware datetime: give one with a"
            " time zone, or None"
        )
    return check_seconds("deadline", max(0.0, deadline.timestamp() - now))


def keep_origin(request: RequestRecord, message: ActorRequestMessage) -> None:
    """Note in a request where the message came from that it is made of.

    Raises:
        InvalidMessageError: It says so in a way that cannot be kept.
    """
    sender, chain, traceparent = message.sender_id, message.chain, message.traceparent
    if sender is not None and not isinstance(sender, ActorId):
        raise _unusable(message, "sender_id", "an ActorId, or None")
    if not isinstance(chain, (tuple, list)) or len(chain) > MAX_CHAIN:
        raise _unusable(message, "chain", f"at most {MAX_CHAIN} actors as texts")
    try:
        request.chain = tuple([str(ActorId.parse(text)) for text in chain])
    except InvalidActorIdError as error:
        raise _unusable(message, "chain", "actors as texts, type/instance") from error
    if not isinstance(traceparent, (str, type(None))):
        raise _unusable(message, "traceparent", "a text of W3C Trace Context, or None")
    if traceparent is not None and _TRACEPARENT.fullmatch(traceparent):
        request.traceparent = traceparent  # another one begins a trace, as W3C says
    if sender is not None:
        request.sender = str(sender)


def _unusable(
    message: ActorRequestMessage, name: str, expected: str
) -> InvalidMessageError:
    value = getattr(message, name)
    return InvalidMessageError(
        f"the {name} of request {message.message_id} is {_shown(value)}: give"
        f" {expected}"
    )
