"""What a conversation is as state: a head, and each message under a key of its own.

A turn writes its new messages and the head only, so that its cost does not grow with
the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field

from ppio_agent._util.clock import utc_now
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.times import format_time

from .messages import Message, read_message

__all__ = ["THREAD_STATE_KEY", "AgentThread"]

THREAD_STATE_KEY = "agent_thread"
"""Key of the head; that of message n is ``agent_thread/<n, 8 digits>``, from 0."""

_VERSION = 1
_TEXTS = ("thread_id", "created_at", "last_updated")


@define(eq=False, kw_only=True)
class AgentThread:
    """The messages of one conversation, the oldest first.

    Attributes:
        thread_id: Id of the thread.
        created_at: When its first message came, RFC 3339; "" before.
        last_updated: When its latest message came.
        messages: ``{"role", "content", "message_id", "timestamp"}``, perhaps with
            `name`, `tool_calls`, `tool_call_id`, `interrupted`.
        before: How many earlier ones it has, which were not read.

    Thread safety: one thread at a time.
    """

    thread_id: str = field(factory=new_id)
    created_at: str = ""
    last_updated: str = ""
    messages: list[Message] = field(factory=list, repr=False)
    before: int = 0

    def add(self, messages: Iterable[Message], *, at: str | None = None) -> None:
        """Append messages, each with its time.

        Args:
            messages: Each has `role`, `content` and `message_id`.
            at: The time of those that have none, RFC 3339; None: now.
        """
        at = at or format_time(utc_now())
        for message in messages:
            self.messages.append({**message, "timestamp": at})
        self.created_at = self.created_at or at
        self.last_updated = at

    # As one value: export and import.

    def to_dict(self) -> dict[str, Any]:
        """Return it as one JSON object, for `from_dict`."""
        return {
            "version": _VERSION,
            "thread_id": self.thread_id,
            "created_at": self.created_at,
            "last_updated": self.last_updated,
            "messages": [dict(message) for message in self.messages],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AgentThread:
        """Return the thread that `to_dict` made this of.

        Raises:
            ValidationError: It is no such object, or of a later version.
        """
        thread = cls._of_head(data)
        messages = data.get("messages")
        if not isinstance(messages, list):
            raise ValidationError("messages of a thread has to be a list")
        thread.messages = [
            _stored_message(item, number) for number, item in enumerate(messages)
        ]
        return thread

    # As the state of an actor.

    def to_state(self, kept: int = 0) -> dict[str, Any]:
        """Return the values that keep it, by key.

        Args:
            kept: So many of `messages` are kept already.
        """
        state: dict[str, Any] = {
            _key(number): message
            for number, message in enumerate(self.messages[kept:], self.before + kept)
        }
        state[THREAD_STATE_KEY] = {
            "version": _VERSION,
            "thread_id": self.thread_id,
            "created_at": self.created_at,
            "last_updated": self.last_updated,
            "count": self.before + len(self.messages),
        }
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AgentThread:
        """Return the thread that an actor's state keeps; a new one if there is none.

        Raises:
            ValidationError: It is of a later version, or damaged.
        """
        head = state.get(THREAD_STATE_KEY)
        if head is None:
            return cls()
        return cls.read(head, lambda keys: {key: state.get(key) for key in keys})

    @classmethod
    def read(
        cls,
        head: Any,
        values: Callable[[list[str]], Mapping[str, Any]],
        *,
        last: int | None = None,
    ) -> AgentThread:
        """Return a thread, or its latest messages only.

        Args:
            head: The value under `THREAD_STATE_KEY`.
            values: Gives those under some keys; called once.
            last: How many messages are read; None: all.

        Raises:
            ValidationError: It is of a later version, or damaged.
        """
        thread = cls._of_head(head)
        count = head.get("count")
        if type(count) is not int or count < 0:
            raise ValidationError("count of a thread has to be a number of messages")
        thread.before = 0 if last is None else max(0, count - last)
        keys = [_key(number) for number in range(thread.before, count)]
        found = values(keys) if keys else {}
        for key in keys:
            message = found.get(key)
            if message is None:
                raise ValidationError(f"the thread lacks a message: {key}")
            thread.messages.append(message)
        return thread

    @classmethod
    def _of_head(cls, head: Any) -> AgentThread:
        version = head.get("version") if isinstance(head, Mapping) else None
        if version != _VERSION:
            raise ValidationError(
                f"the thread has version {version!r:.20}, and {_VERSION} is understood:"
                " it was written by a later release, or is no thread"
            )
        for key in _TEXTS:
            if type(head.get(key)) is not str:
                raise ValidationError(f"{key} of a thread has to be a text")
        return cls(
            thread_id=head["thread_id"],
            created_at=head["created_at"],
            last_updated=head["last_updated"],
        )


def _key(number: int) -> str:
    return f"{THREAD_STATE_KEY}/{number:08}"


def _stored_message(item: Any, number: int) -> Message:
    try:
        message = read_message(item, f"messages[{number}]", role=None)
    except WireError as error:
        raise ValidationError(f"{error.path}: {error.message}") from error
    message["timestamp"] = str(item.get("timestamp") or "")
    if item.get("interrupted"):
        message["interrupted"] = True
    return message
