"""The messages of a conversation: as callers send them, and as agents answer. Pure.

A message is a dictionary with `role`, `content` and `message_id`; perhaps `name`,
`tool_calls`, `tool_call_id`; in a thread also `timestamp` and perhaps `interrupted`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ActorFailedError, WireError
from ppio_agent.wire.actor_bodies import MAX_MESSAGE_ID, MAX_MESSAGES, Role

__all__ = [
    "ROLES",
    "Message",
    "answers_of",
    "as_answer",
    "brings_ids",
    "copies_of",
    "last_text",
    "read_message",
    "read_messages",
]

Message = dict[str, Any]

ROLES = tuple(role.value for role in Role)

_TEXTS = ("name", "tool_call_id")


def read_messages(value: Any, path: str = "$.messages") -> list[Message]:
    """Return what a caller sent, each with an id of its own or a new one.

    Args:
        value: A list of ``{"role", "content" or "text", "message_id"?}``.
        path: Where it stands, for what is told of a mistake.

    Raises:
        WireError: It is something else; the path says where.
    """
    if not isinstance(value, list):
        raise WireError(path, "expected a list of messages")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise WireError(path, f"expected 1 to {MAX_MESSAGES} messages")
    return [
        read_message(item, f"{path}[{number}]", role=None)
        for number, item in enumerate(value)
    ]


def read_message(item: Any, path: str, *, role: str | None) -> Message:
    """Return one message with the members that are known, and an id.

    Args:
        item: ``{"role", "content" or "text", "message_id"?}``.
        path: Where it stands.
        role: Its role if it names none; None: it has to.

    Raises:
        WireError: It has another shape.
    """
    if not isinstance(item, Mapping):
        raise WireError(path, "expected a message, which is an object")
    role = item.get("role", role)
    if type(role) is not str or role not in ROLES:
        raise WireError(f"{path}.role", f"expected one of {', '.join(ROLES)}")
    calls = item.get("tool_calls")
    content = item.get("content")
    if content is None:
        content = item.get("text")
    if content is None and calls:
        content = ""
    if type(content) is not str:
        raise WireError(f"{path}.content", "expected a text")
    message_id = item.get("message_id")
    if message_id is None:
        message_id = new_id()
    elif type(message_id) is not str or not 0 < len(message_id) <= MAX_MESSAGE_ID:
        raise WireError(
            f"{path}.message_id", f"expected a text of 1 to {MAX_MESSAGE_ID} characters"
        )
    message: Message = {"role": role, "content": content, "message_id": message_id}
    if calls or len(item) > 2:
        _read_optional(item, message, path)
    return message


def _read_optional(item: Mapping[str, Any], message: Message, path: str) -> None:
    for key in _TEXTS:
        text = item.get(key)
        if text is None:
            continue
        if type(text) is not str:
            raise WireError(f"{path}.{key}", "expected a text")
        message[key] = text
    calls = item.get("tool_calls")
    if calls:
        if type(calls) is not list or not all(isinstance(c, Mapping) for c in calls):
            raise WireError(f"{path}.tool_calls", "expected a list of objects")
        message["tool_calls"] = calls


def brings_ids(messages: list[Any]) -> bool:
    """Whether any of the messages that a caller sent has an id of its own."""
    return any(item.get("message_id") is not None for item in messages)


def answers_of(result: Any) -> list[Message]:
    """Return what an agent gave, a JSON value, as messages.

    Args:
        result: A text; a message, by an assistant if it names no role; a list of
            these; or an object with such a list, `messages`. None is no message.

    Raises:
        ActorFailedError: It is something else (`invalid_result`).
    """
    if type(result) is str:
        return [as_answer(result)]
    if result is None:
        return []
    if isinstance(result, Mapping):
        result = result.get("messages", [result])
    if not isinstance(result, list):
        raise _no_answer(f"a {type(result).__name__}")
    try:
        return [
            as_answer(item)
            if type(item) is str
            else read_message(item, f"item {number}", role="assistant")
            for number, item in enumerate(result, 1)
        ]
    except WireError as error:
        raise _no_answer(f"something else ({error.path}: {error.message})") from error


def as_answer(text: str) -> Message:
    """Return a text as an assistant's message."""
    return {"role": "assistant", "content": text, "message_id": new_id()}


def _no_answer(what: str) -> ActorFailedError:
    return ActorFailedError(
        "the agent has to give a text, a message, a list of messages or an object with"
        f" messages; it gave {what}",
        code="invalid_result",
    )


def last_text(messages: list[Message]) -> str:
    """Return the text of the last message by a user; "" if there is none."""
    for message in reversed(messages):
        if message["role"] == "user":
            text: str = message["content"]
            return text
    return ""


def copies_of(messages: list[Message]) -> list[Message]:
    """Return copies that share nothing that can be changed."""
    return [
        deepcopy(message) if "tool_calls" in message else message.copy()
        for message in messages
    ]
