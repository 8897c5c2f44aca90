"""Actors as they are named and spoken to: ids, messages and the states of requests.

An actor has an address (`ActorId`) and is sent requests; each request has an id that is
unique for that actor, and ends in exactly one terminal status.
"""

from __future__ import annotations

import enum
import re
from datetime import datetime
from typing import Any

from attrs import define, field, frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import InvalidActorIdError, InvalidMessageError

__all__ = [
    "MAX_COUNT",
    "MAX_METHOD",
    "MAX_SECONDS",
    "ActorId",
    "ActorMessage",
    "ActorMessageType",
    "ActorRequestMessage",
    "ActorResponseMessage",
    "RequestStatus",
    "check_message_id",
    "check_method",
    "is_storable",
]

MAX_SECONDS = 10 * 365 * 86_400.0
"""Most seconds that anything of actors lasts, or is away: 10 years."""
MAX_COUNT = 2**31 - 1
"""Most of anything that is counted."""
MAX_METHOD = 200
"""Most characters of a method's name."""

_TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._:\-]{0,99}")
_INSTANCE_ID = re.compile(r"[ -~]{1,256}")
_MESSAGE_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@frozen(weakref_slot=False)
class ActorId:
    """The address of an actor.

    Args:
        type_name: Which kind of actor, as registered: a letter or `_`, then up to 99
            of A-Z a-z 0-9 . _ : -.
        instance_id: Which one of that kind: 1 to 256 printable ASCII characters, not
            all of them blank.

    Raises:
        InvalidActorIdError: A part is not of that form.

    Thread safety: immutable.

    Example:
        >>> str(ActorId("echo", "c-1")), ActorId.parse("echo/a/b").instance_id
        ('echo/c-1', 'a/b')
    """

    type_name: str
    instance_id: str

    def __attrs_post_init__(self) -> None:
        name, instance = self.type_name, self.instance_id
        if type(name) is not str or not _TYPE_NAME.fullmatch(name):
            raise InvalidActorIdError(
                f"the actor type {name!r:.120} is not a letter or _, then at most 99 of"
                " A-Z a-z 0-9 . _ : -"
            )
        is_text = type(instance) is str and _INSTANCE_ID.fullmatch(instance)
        if not is_text or instance.isspace():
            raise InvalidActorIdError(
                f"the actor instance id {instance!r:.300} is not 1 to 256 printable"
                " ASCII characters that are not all blank"
            )

    def __hash__(self) -> int:
        # Texts keep theirs: nothing has to be kept of this one for each id.
        return hash(self.type_name) ^ hash(self.instance_id)

    @classmethod
    def parse(cls, text: str) -> ActorId:
        """Return the id that ``str()`` made this text of; split at the first ``/``.

        Raises:
            InvalidActorIdError: It is no such text.
        """
        found = text.partition("/") if isinstance(text, str) else ("", "", "")
        type_name, slash, instance_id = found
        if not slash:
            raise InvalidActorIdError(
                f"{text!r:.300} is no actor id: write type/instance"
            )
        return cls(type_name, instance_id)

    def __str__(self) -> str:
        return f"{self.type_name}/{self.instance_id}"


class ActorMessageType(enum.Enum):
    """Which way a message goes."""

    REQUEST = "request"
    RESPONSE = "response"


class RequestStatus(enum.Enum):
    """Where a request is; all but `PENDING` are final.

    There is no status for one whose turn runs: clients in the field take whatever is
    not `pending` for the end.
    """

    PENDING = "pending"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REJECTED = "rejected"
    NOT_FOUND = "not_found"

    @property
    def terminal(self) -> bool:
        """Whether nothing will follow."""
        return self is not RequestStatus.PENDING


def check_message_id(message_id: str) -> str:
    """Return a message's id if it is one.

    Raises:
        InvalidMessageError: It is not 1 to 128 of A-Z a-z 0-9 . _ -.
    """
    if type(message_id) is not str or not _MESSAGE_ID.fullmatch(message_id):
        raise InvalidMessageError(
            f"the message id {message_id!r:.160} is not 1 to 128 of A-Z a-z 0-9 . _ -"
        )
    return message_id


def is_storable(text: object) -> bool:
    """Return whether something is a text that every store can keep.

    Not one with NUL, which ends a text in some databases, or with a lone surrogate,
    which cannot be encoded.
    """
    if type(text) is not str or "\0" in text:
        return False
    return text.isascii() or not _LONE_SURROGATE.search(text)


def check_method(method: str) -> str:
    """Return the name of a method if it is one.

    Raises:
        InvalidMessageError: It is not 1 to 200 characters that every store can keep.
    """
    if not is_storable(method) or not 0 < len(method) <= MAX_METHOD:
        raise InvalidMessageError(
            f"the method {method!r:.220} is not a text of 1 to {MAX_METHOD} characters"
            " without NUL and lone surrogates"
        )
    return method


@define(eq=False)
class ActorMessage:
    """What is common to messages to and from actors.

    Attributes:
        message_id: Id of the request, unique for its actor.
        message_type: Which way it goes.
        timestamp: When it was made, aware UTC.
    """

    message_id: str = field(factory=new_id)
    message_type: ActorMessageType = ActorMessageType.REQUEST
    timestamp: datetime = field(factory=utc_now)


@define(eq=False)
class ActorRequestMessage(ActorMessage):
    """A request to an actor.

    Attributes:
        method: What is asked for, 1 to 200 characters; the actor's to know.
        params: A JSON object, or None.
        sender_id: The actor that asked, or None.
        deadline: When it has to have ended, aware UTC; None: no limit.
        chain: The actors that wait for it, from the first that was asked on, as texts.
        traceparent: The sender's span, as W3C Trace Context writes it.
    """

    method: str = ""
    params: dict[str, Any] | None = None
    sender_id: ActorId | None = None
    deadline: datetime | None = None
    chain: tuple[str, ...] = ()
    traceparent: str | None = None


@define(eq=False)
class ActorResponseMessage(ActorMessage):
    """What became of a request, or one step on the way.

    Attributes:
        sender_id: The actor that answers.
        status: `PENDING` for a step on the way.
        data: A JSON value: the result; of a failure ``{"error", "code", "retryable"}``;
            of a step ``{"sequence", "progress"}``, ``{"restart"}`` or ``{"gap"}``.
        position: Number of the step in the request's log, from 1; of the final response
            the number of the last step.
    """

    message_type: ActorMessageType = ActorMessageType.RESPONSE
    sender_id: ActorId | None = None
    status: RequestStatus = RequestStatus.PENDING
    data: Any = None
    position: int = 0
