"""What is said to actors over HTTP, and what they answer: the bodies, no I/O."""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs
from attrs import field, frozen

from ppio_agent.exceptions import InvalidMessageError, WireError

from .actors import RequestStatus, check_method
from .json import Json
from .model import WireModel

__all__ = [
    "MAX_MESSAGES",
    "MAX_MESSAGE_ID",
    "ActorBody",
    "ActorCall",
    "AgentEntry",
    "AnswerMessage",
    "CancelBody",
    "DeadLetterBody",
    "FailureBody",
    "HealthBody",
    "OnBusy",
    "PendingBody",
    "RequestBody",
    "Role",
    "RunAnswer",
    "RunMessage",
    "RunRequest",
    "ServiceBody",
    "checked_run",
    "valid_instance_id",
]

_INSTANCE_ID = re.compile(r"[A-Za-z0-9._~\-]{1,200}")
MAX_MESSAGES = 1000
"""Most messages of one run."""
MAX_MESSAGE_ID = 256
"""Most characters of a message's id."""


def valid_instance_id(text: str) -> bool:
    """Whether `text` may name an actor in a URL, and so a conversation."""
    return _INSTANCE_ID.fullmatch(text) is not None


class Role(enum.Enum):
    """Who wrote a message."""

    USER = "user"
    SYSTEM = "system"
    DEVELOPER = "developer"
    ASSISTANT = "assistant"
    TOOL = "tool"


class OnBusy(enum.Enum):
    """What happens to a request when the actor has another one."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


def _instance_id(model: object, member: object, value: str | None) -> None:
    del model, member
    if value is not None and not valid_instance_id(value):
        raise WireError(
            ".conversation_id", "expected 1 to 200 characters of A-Z a-z 0-9 . _ ~ -"
        )


def _messages(model: object, member: object, value: tuple[object, ...]) -> None:
    del model, member
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise WireError(".messages", f"expected 1 to {MAX_MESSAGES} messages")


@frozen(kw_only=True)
class RunMessage(WireModel):
    """One message of a conversation, as it is sent.

    Attributes:
        role: Who wrote it.
        content: Its text; only a message with tool calls may be without.
        text: Another name of `content`.
        message_id: Its id: 1 to 256 characters; one that the conversation has already
            is not added again.
        name: Name of who wrote it.
        tool_calls: What an assistant asked tools for.
        tool_call_id: The call that a tool answers.
    """

    role: Role
    content: str | None = None
    text: str | None = None
    message_id: str | None = None
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.content is None and self.text is None and not self.tool_calls:
            raise WireError(".content", "is missing")
        message_id = self.message_id
        if message_id is not None and not 0 < len(message_id) <= MAX_MESSAGE_ID:
            raise WireError(
                ".message_id", f"expected a text of 1 to {MAX_MESSAGE_ID} characters"
            )


@frozen(kw_only=True)
class RunRequest(WireModel):
    """Body of ``POST /agents/{agent_name}/run``.

    Attributes:
        messages: What is new in the conversation: 1 to 1,000.
        conversation_id: The conversation; without it, a new one is begun.
        agent_name: Name of the agent; that of the path wins.
        on_busy: What happens when the conversation has another pending request.
    """

    messages: tuple[RunMessage, ...] = field(validator=_messages)
    conversation_id: str | None = field(default=None, validator=_instance_id)
    agent_name: str | None = None
    on_busy: OnBusy = OnBusy.ENQUEUE


_ROLES = frozenset(role.value for role in Role)
_USUAL_RUN = {"messages", "conversation_id", "agent_name"}
_USUAL_MESSAGE = {"role", "content", "message_id"}


def checked_run(body: Json) -> dict[str, Any]:
    """Return a body as it is, if it is a `RunRequest`; of most no model is made.

    Raises:
        WireError: As from `RunRequest.from_dict`.
    """
    if not _is_usual_run(body):
        RunRequest.from_dict(body)
    return body  # type: ignore[no-any-return] # it is an object


def _is_usual_run(body: Json) -> bool:
    """Whether this is a `RunRequest` without what few of them have."""
    if type(body) is not dict or not body.keys() <= _USUAL_RUN:
        return False
    messages, instance_id = body.get("messages"), body.get("conversation_id")
    return (
        type(messages) is list
        and 1 <= len(messages) <= MAX_MESSAGES
        and all(map(_is_usual_message, messages))
        and type(instance_id) is str
        and valid_instance_id(instance_id)
        and type(body.get("agent_name", "")) is str
    )


def _is_usual_message(message: Json) -> bool:
    if type(message) is not dict or not message.keys() <= _USUAL_MESSAGE:
        return False
    role, message_id = message.get("role"), message.get("message_id", "-")
    return (
        type(message.get("content")) is str
        and type(role) is str
        and role in _ROLES
        and type(message_id) is str
        and 0 < len(message_id) <= MAX_MESSAGE_ID
    )


@frozen(kw_only=True)
class AnswerMessage(WireModel):
    """One message of an answer.

    Attributes:
        role: Who wrote it, most often the assistant.
        content: Its text.
        message_id: Its id.
    """

    role: Role
    content: str
    message_id: str


@frozen(kw_only=True)
class RunAnswer(WireModel):
    """What an agent answered.

    Attributes:
        messages: The answer.
        status: `completed`.
        conversation_id: The conversation, to go on with.
    """

    messages: tuple[AnswerMessage, ...]
    status: RequestStatus
    conversation_id: str


@frozen(kw_only=True)
class PendingBody(WireModel):
    """A run that was accepted and has not ended; `Location` says where to look.

    Attributes:
        status: `pending`.
        conversation_id: The conversation.
        message_id: Id of the request.
    """

    status: RequestStatus
    conversation_id: str
    message_id: str


def _method(model: object, member: object, value: str) -> None:
    del model, member
    try:
        check_method(value)
    except InvalidMessageError as error:
        raise WireError(".method", error.message) from None


@frozen(kw_only=True)
class ActorCall(WireModel):
    """Body of a request to an actor.

    Attributes:
        method: What is asked for: 1 to 200 characters.
        params: The parameters.
        on_busy: What happens when the actor has another pending request.
    """

    method: str = field(validator=_method)
    params: Mapping[str, Any] | None = None
    on_busy: OnBusy = OnBusy.ENQUEUE


@frozen(kw_only=True)
class _Whole(WireModel):
    """A body whose members are all there, null or not."""

    def to_dict(self) -> dict[str, Json]:
        names = (f.name for f in attrs.fields(type(self)) if f.name != "extra")
        return {**dict.fromkeys(names), **super().to_dict()}


@frozen(kw_only=True)
class FailureBody(WireModel):
    """Why a request has no result.

    Attributes:
        error: A sentence.
        code: A word.
        retryable: Whether another request may succeed.
    """

    error: str
    code: str
    retryable: bool


@frozen(kw_only=True)
class RequestBody(_Whole):
    """Where a request is.

    Attributes:
        actor_id: The actor, as ``type/key``.
        message_id: Id of the request.
        status: All but `pending` are final.
        data: The result; null without one.
        error: Why there is none; null if there is, or the request has not ended.
        attempt: How many turns were begun for it.
        created_at: When it was accepted.
        started_at: When its latest turn began.
        finished_at: When it ended.
    """

    actor_id: str
    message_id: str
    status: RequestStatus
    data: Any = None
    error: FailureBody | None = None
    attempt: int = 0
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@frozen(kw_only=True)
class ActorBody(_Whole):
    """What is known of an actor.

    Attributes:
        actor_id: The actor, as ``type/key``.
        live: Whether it has an instance in this process.
        queued: How many requests wait.
        running: Id of the request whose turn was begun; null: none.
        last_turn: When the latest turn was committed; null: none was.
    """

    actor_id: str
    live: bool
    queued: int
    running: str | None = None
    last_turn: datetime | None = None


@frozen(kw_only=True)
class CancelBody(WireModel):
    """What became of a cancel that was not confirmed.

    Attributes:
        confirmed: Whether the turn has ended for it.
        status: Where the request is.
    """

    confirmed: bool
    status: RequestStatus


@frozen(kw_only=True)
class DeadLetterBody(_Whole):
    """A request that could not be done.

    Attributes:
        id: Its own id.
        actor_id: The actor, as ``type/key``.
        message_id: Id of the request.
        method: What was asked for.
        reason: The code it ended with.
        at: When.
        attempts: How many turns were begun for it.
    """

    id: str
    actor_id: str
    message_id: str
    method: str
    reason: str
    at: datetime
    attempts: int


@frozen(kw_only=True)
class AgentEntry(WireModel):
    """One agent of the registry.

    Attributes:
        name: By which it is reached.
        type: What kind of agent it is.
        description: A sentence.
    """

    name: str
    type: str
    description: str


@frozen(kw_only=True)
class ServiceBody(WireModel):
    """What `GET /` says.

    Attributes:
        message: `Agent Runtime API`.
        version: Version of the package.
        status: `running`.
    """

    message: str
    version: str
    status: str


@frozen(kw_only=True)
class HealthBody(WireModel):
    """How the runtime is.

    Attributes:
        status: `healthy`; `degraded`: actors of some type are stopped again and again,
            or the store cannot be reached; `unhealthy`: it does not run.
        runtime_running: Whether it takes requests.
        degraded: Names of the types that are, if any.
        store: What is wrong with the store, if anything is.
    """

    status: str
    runtime_running: bool
    degraded: tuple[str, ...] | None = None
    store: str | None = None
