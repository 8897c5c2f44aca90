"""``POST /agents/{agent_name}/run``: a turn of a conversation, answered in some way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ppio_agent.actors._turn import Turn
from ppio_agent.actors._types import ActorType
from ppio_agent.actors.messages import answers_of
from ppio_agent.actors.runtime_abstractions import (
    ActorId,
    ActorResponseHandle,
    ActorResponseMessage,
    OnBusy,
    Params,
    RequestStatus,
)
from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.web import JSON_TYPE, Relayed, Reply, json_reply, problem
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire.actor_bodies import PendingBody, checked_run
from ppio_agent.wire.headers import INVOCATION_ID, RETRY_AFTER

from .api import Api
from .errors import outcome, read_as
from .streams import dialect_of, stream
from .waits import wait_for
from .wishes import (
    Patience,
    deadline_of,
    keyed_conversation,
    message_id_of,
    new_conversation,
    valid_message_id,
)

__all__ = ["location_of", "promise_headers", "run", "run_body"]

# How the result of an agent ends; that of a failure does not.
_COMPLETED = b',"status":"completed"}'


def run(api: Api, exchange: Exchange, agent_name: str) -> Reply:
    """Answer a run: with its outcome, a promise or a stream.

    Raises:
        PPIOAgentError: It cannot be sent, or failed.
    """
    agent = api.type_of(agent_name)
    body = read_as(checked_run, exchange.json(code="invalid_request"))
    named: str | None = body.get("conversation_id")
    actor_id = ActorId(agent_name, named or _conversation(exchange, agent_name))
    message_id = _message_id(api, exchange, body, actor_id)
    # As it was sent, so that a repetition is recognised.
    params = {"messages": body["messages"]}
    result = partial(run_body, agent, actor_id)
    patience = Patience.of(exchange.environ.get("HTTP_PREFER"))
    deadline = deadline_of(exchange.environ.get("HTTP_X_PPIO_TIMEOUT"))
    dialect = dialect_of(exchange)
    on_busy: OnBusy = body.get("on_busy") or "enqueue"
    api.claim(exchange, actor_id, "run", params)
    alone = message_id is None and on_busy == "enqueue"
    if alone and dialect is None and patience.seconds is None and deadline is None:
        # On this thread, if the actor is idle: nobody else knows this request.
        turn = _run_here(api, exchange, actor_id, params)
        if turn is not None:
            if agent.is_agent and turn.data.endswith(_COMPLETED):
                return _answer_of_agent(turn, actor_id)
            return _answer(exchange, turn.response(), result, [])
    headers = api.replayed(actor_id, message_id)
    with api.below(exchange):
        handle = api.client.send_request(
            actor_id, "run", params, message_id, deadline=deadline, on_busy=on_busy
        )
    api.keep(exchange, actor_id)
    if dialect is not None:
        return stream(
            api, exchange, handle, result=result, dialect=dialect, headers=headers
        )
    late = wait_for(api, exchange, handle, patience.seconds)
    if late is None:
        return _promise(exchange, handle, headers)
    return _answer(exchange, late, result, headers)


def _run_here(
    api: Api, exchange: Exchange, actor_id: ActorId, params: Params
) -> Turn | None:
    """Run a turn on this thread; None: the actor is busy, and it was not run.

    Raises:
        Relayed: It has ended after the server dismissed its caller.
    """
    api.held.add(exchange)
    try:
        with api.below(exchange):
            turn = api.client.ask_here(actor_id, "run", params)
    finally:
        if not api.let_go(exchange):
            raise Relayed
    if turn is not None:
        api.keep(exchange, actor_id)
    return turn


def _conversation(exchange: Exchange, agent: str) -> str:
    """Return the id of the conversation that a request without one is part of."""
    key = exchange.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is None:
        return new_conversation()
    message_id_of(key)  # refused here if it is none
    principal = exchange.principal
    return keyed_conversation(key, agent, None if principal is None else principal.id)


def _message_id(
    api: Api, exchange: Exchange, body: Mapping[str, Any], actor_id: ActorId
) -> str | None:
    """Return the id that the request is to have; None: any new one."""
    key = exchange.environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is not None:
        return message_id_of(key)
    message_id: str | None = body["messages"][-1].get("message_id")
    if (
        message_id is None
        or body.get("conversation_id") is None  # nobody has sent it there before
        or not valid_message_id(message_id)
    ):
        return None
    record = api.store.get_request(actor_id, message_id)
    if record is None or record.status in (
        RequestStatus.PENDING,
        RequestStatus.COMPLETED,
    ):
        return message_id
    return None  # it is sent again since it failed


def run_body(agent: ActorType, actor_id: ActorId, result: Any) -> dict[str, Any]:
    """Return the body of an answer.

    Raises:
        ActorFailedError: The actor gave what cannot be messages.
    """
    # An agent's are messages already; other actors give what they like, and so did
    # those of the type that had its name before.
    own = agent.is_agent and isinstance(result, dict)
    messages = result.get("messages") if own else None
    return {
        "messages": messages if isinstance(messages, list) else answers_of(result),
        "status": RequestStatus.COMPLETED.value,
        "conversation_id": actor_id.instance_id,
    }


def _answer(
    exchange: Exchange,
    response: ActorResponseMessage,
    result: Callable[[Any], Any],
    headers: list[tuple[str, str]],
) -> Reply:
    headers = [(INVOCATION_ID, response.message_id), *headers]
    try:
        body = result(outcome(response))
    except PPIOAgentError as error:
        return problem(error, exchange.request_id, headers=headers)
    return json_reply(200, body, headers)


def _answer_of_agent(turn: Turn, actor_id: ActorId) -> Reply:
    """Return the answer of an agent: its result as it is, with the conversation.

    What names one is written the same in JSON; see `valid_instance_id`.
    """
    conversation = actor_id.instance_id.encode()
    body = b'%b,"conversation_id":"%b"}' % (turn.data[:-1], conversation)
    return Reply(200, [JSON_TYPE, (INVOCATION_ID, turn.record.message_id)], body)


def location_of(exchange: Exchange, handle: ActorResponseHandle) -> str:
    """Return where a request is looked up."""
    actor = handle.actor_id
    return exchange.place(
        f"/actors/v1/{actor.type_name}/{actor.instance_id}/{handle.message_id}"
    )


def _promise(
    exchange: Exchange, handle: ActorResponseHandle, headers: list[tuple[str, str]]
) -> Reply:
    body = PendingBody(
        status=RequestStatus.PENDING,
        conversation_id=handle.actor_id.instance_id,
        message_id=handle.message_id,
    )
    return json_reply(
        202, body.to_dict(), [*promise_headers(exchange, handle), *headers]
    )


def promise_headers(
    exchange: Exchange, handle: ActorResponseHandle
) -> list[tuple[str, str]]:
    """Return the headers of an answer that comes before the outcome."""
    return [
        (INVOCATION_ID, handle.message_id),
        ("Location", location_of(exchange, handle)),
        (RETRY_AFTER, "1"),
    ]
