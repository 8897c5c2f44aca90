"""Agents as actors: a conversation is an actor, a question is one of its turns.

The agent is called as everywhere else, and on the thread of the turn, whose life is the
call's: its deadline, its cancel, its progress.
What it raises is an answer (FAILED) and no crash of the actor: when a model is down,
conversations go on once it is up again.
"""

from __future__ import annotations

import logging
from typing import Any

from ppio_agent._util.threads import is_ctrl_c
from ppio_agent.agent import Handler, RequestContext, as_handler
from ppio_agent.agent.direct import call_agent
from ppio_agent.agent.failure import Failure
from ppio_agent.exceptions import (
    InvalidMessageError,
    PPIOAgentError,
    StateTooLargeError,
    WireError,
)
from ppio_agent.hooks import Hooks
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.times import format_time

from ._thread import THREAD_STATE_KEY, AgentThread
from .messages import (
    Message,
    answers_of,
    as_answer,
    brings_ids,
    copies_of,
    last_text,
    read_messages,
)
from .runtime_abstractions import (
    ActorRequestMessage,
    ActorResponseMessage,
    IActor,
    IActorRuntimeContext,
    RequestStatus,
)

__all__ = [
    "THREAD_STATE_KEY",
    "AgentActor",
    "AgentThread",
    "EchoAgent",
    "MockAIAgent",
    "agent_handler",
]

_log = logging.getLogger(__name__)

_MAX_TEXT = 1024 * 1024  # characters of a streamed answer: state takes no larger value


def agent_handler(agent: Any, hooks: Hooks | None = None) -> Handler:
    """Return an agent as what can be called, made once for all its conversations.

    Args:
        agent: A function, an object with `run`, whatever `as_handler` takes, or what
            a plug-in knows (`ppio_adapt_agent`).
        hooks: The plug-ins that are asked first; None: none.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(agent, Handler):
        return agent
    adapted = None if hooks is None else hooks.adapt_agent(agent)
    return as_handler(agent if adapted is None else adapted)


class AgentActor(IActor):
    """One conversation with an agent.

    Takes requests of the method `run` with ``{"messages": [{"role", "content",
    "message_id"?}]}``; the result is ``{"messages": [{"role", "content",
    "message_id"}], "status": "completed"}``. Chunks of an agent that streams are the
    progress of the request.

    Args:
        agent: See `agent_handler`. It is called with ``{"messages", "prompt",
            "conversation_id"}``: all messages of the conversation, the last text of
            the user, and the instance id of the actor.
        history: How many messages from before this turn it gets; None: all.
        debug: Whether failures tell type and text of exceptions that are not ours.

    Thread safety: one turn at a time, as every actor.
    """

    def __init__(
        self, agent: Any, *, history: int | None = None, debug: bool = False
    ) -> None:
        if history is not None and history < 0:
            raise ValueError("history is a number of messages from 0 on, or None")
        self._handler = agent_handler(agent)
        self._history = history
        self._debug = debug

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        """Answer one request; see the class."""
        try:
            return self._turn(context, message)
        except BaseException as error:  # all that an agent raises is an answer
            if is_ctrl_c(error):
                raise
            context.check()  # its end was asked for: then it is no failure of its own
            self._fail(context, message, error)
            return None

    def _turn(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> dict[str, Any]:
        incoming = _incoming(message)
        thread = self._read(context, message)
        kept = len(thread.messages)
        known = {old["message_id"] for old in thread.messages}
        # A client may send the whole conversation each time, or a question again.
        fresh: dict[str, Message] = {}
        for one in incoming:
            if one["message_id"] not in known:
                fresh.setdefault(one["message_id"], one)
        thread.add(fresh.values(), at=format_time(message.timestamp))
        heard = _Heard(context)
        request = self._request(context, thread, kept)
        told = RequestContext(
            invocation_id=message.message_id,
            request_id=message.message_id,
            attempt=context.attempt,
            session_id=context.actor_id.instance_id,
            timestamp=message.timestamp,
            deadline=context.deadline,
            cancelled=context.cancelled,
        )
        try:
            value = call_agent(self._handler, request, told, heard.take)
        except BaseException:
            context.keep()
            if told.cancelled.reason == "superseded":
                thread.add(heard.part())
                _write_thread(context, thread, kept)
            raise
        context.keep()
        if told.time_left() == 0.0:
            context.check()  # what comes too late is no answer
        known.update(fresh)
        answers = [  # without what it was told: some agents give that back, too
            answer
            for answer in answers_of(heard.result(value))
            if answer["message_id"] not in known
        ]
        thread.add(answers)
        _write_thread(context, thread, kept)
        return {"messages": answers, "status": "completed"}

    def _read(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> AgentThread:
        """Return the conversation so far, as much of it as this turn needs."""
        head = context.read_state(THREAD_STATE_KEY)
        if head is None:
            return AgentThread(thread_id=context.actor_id.instance_id)
        last = self._history
        if last is not None and brings_ids((message.params or {})["messages"]):
            last = None  # any of them may be known
        return AgentThread.read(head, context.read_states, last=last)

    def _request(
        self, context: IActorRuntimeContext, thread: AgentThread, kept: int
    ) -> dict[str, Any]:
        first = 0 if self._history is None else max(0, kept - self._history)
        return {
            "messages": copies_of(thread.messages[first:]),
            "prompt": last_text(thread.messages),
            "conversation_id": context.actor_id.instance_id,
        }

    def _fail(
        self,
        context: IActorRuntimeContext,
        message: ActorRequestMessage,
        error: BaseException,
    ) -> None:
        failure = Failure.of(error, expose=self._debug)
        text = failure.error
        if self._debug and not isinstance(error, PPIOAgentError):
            text = f"{failure.error_type}: {text}"
        unexpected = failure.http_status >= 500
        _log.log(
            logging.ERROR if unexpected else logging.INFO,
            "request %s of the agent %s failed: %s",
            message.message_id,
            self._handler.name,
            failure.error_type,
            exc_info=error if unexpected else None,
        )
        context.complete_request(
            message.message_id,
            ActorResponseMessage(
                message.message_id,
                sender_id=context.actor_id,
                status=RequestStatus.FAILED,
                data={
                    "error": text,
                    "code": failure.code,
                    "retryable": failure.retryable,
                },
            ),
        )


class _Heard:
    """What an agent gives on the way.

    Each chunk is told as progress, and texts are kept: they are the answer if the agent
    returns no other one, and what there is of it if the turn is interrupted.
    """

    __slots__ = ("_context", "_size", "_texts")

    def __init__(self, context: IActorRuntimeContext) -> None:
        self._context = context
        self._texts: list[str] = []
        self._size = 0

    def take(self, data: Any) -> None:
        """Take one chunk."""
        self._context.progress(data)
        if type(data) is not str:
            return
        self._size += len(data)
        if self._size > _MAX_TEXT:
            raise StateTooLargeError(
                f"the agent's answer has more than {_MAX_TEXT} characters"
            )
        self._texts.append(data)

    def result(self, value: Any) -> Any:
        """Return what an agent gave that returned this, as a JSON value."""
        if type(value) is str:
            return value
        if value is None:
            return "".join(self._texts) if self._texts else None
        # Through its JSON: what an agent holds on to may change, and need not be plain
        # dictionaries.
        return decode_json(encode_json(value))

    def part(self) -> list[Message]:
        """Return what there is of an answer, marked as interrupted."""
        if not self._texts:
            return []
        return [{**as_answer("".join(self._texts)), "interrupted": True}]


def _incoming(message: ActorRequestMessage) -> list[Message]:
    if message.method != "run":
        raise InvalidMessageError(f"Unsupported method: {message.method}")
    try:
        return read_messages((message.params or {}).get("messages"))
    except WireError as error:
        raise InvalidMessageError(f"{error.path}: {error.message}") from error


def _write_thread(
    context: IActorRuntimeContext, thread: AgentThread, kept: int
) -> None:
    """Write what is new of a thread, all of it or nothing."""
    written = []
    try:
        for key, value in thread.to_state(kept).items():
            context.write_state(key, value)
            written.append(key)
    except PPIOAgentError:
        for key in written:
            context.remove_state(key)
        raise


class EchoAgent:
    """Answers each question with `Echo: ` and its text; to try things out.

    Thread safety: thread-safe.
    """

    def run(self, request: dict[str, Any]) -> str:
        """Return the answer."""
        return f"Echo: {last_text(request['messages'])}"


class MockAIAgent:
    """Answers as if it thought: five lines in turn, each after a while.

    Args:
        delay: Seconds of thought.

    Thread safety: thread-safe.
    """

    _LINES = (
        "Hello! How can I help you today?",
        "That is an interesting question. Let me think about it.",
        "I understand. Could you tell me more about that?",
        "Here is how I see it: it depends on what you want to reach.",
        "Is there anything else that I can help you with?",
    )

    def __init__(self, delay: float = 0.1) -> None:
        if delay < 0:
            raise ValueError("delay is a number of seconds from 0 on")
        self._delay = delay

    def run(self, request: dict[str, Any], context: RequestContext) -> str:
        """Return the next line of this conversation."""
        context.sleep(self._delay)
        said = sum(m["role"] == "assistant" for m in request["messages"])
        return self._LINES[said % len(self._LINES)]
