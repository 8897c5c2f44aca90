"""``/actors/v1/…``: actors by their addresses, and requests by their ids."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

import attrs

from ppio_agent.actors._answers import EVICTED
from ppio_agent.actors.runtime_abstractions import (
    ActorId,
    ActorResponseHandle,
    ActorResponseMessage,
)
from ppio_agent.exceptions import ConflictError, NotFoundError, PPIOAgentError
from ppio_agent.storage.actors.records import RequestRecord
from ppio_agent.web import Relayed, Reply, json_reply
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire.actor_bodies import (
    ActorBody,
    ActorCall,
    CancelBody,
    FailureBody,
    RequestBody,
)
from ppio_agent.wire.headers import INVOCATION_ID
from ppio_agent.wire.json import decode_json

from .api import Api
from .errors import invalid, outcome, read_as
from .runs import promise_headers, run_body
from .streams import after_of, dialect_of, stream
from .waits import wait_for
from .wishes import LONGEST_WAIT, Patience, deadline_of, valid_message_id

__all__ = ["cancel", "delete", "inspect", "instant", "send", "status"]

# How long a cancel waits for the turn to end, in seconds.
_CANCEL_WAIT = 1.0
_SHOWN = ("actor_id", "live", "queued", "running", "last_turn")


def instant(seconds: float) -> datetime:
    """Return an instant of a store, seconds since 1970, as a time."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def inspect(api: Api, exchange: Exchange, type: str, key: str) -> Reply:
    """Answer what is known of an actor.

    Raises:
        NotFoundError: Nothing is.
    """
    actor_id = api.actor(exchange, type, key)
    found = api.runtime.inspect(actor_id)
    shown = {name: found[name] for name in _SHOWN}
    return json_reply(200, ActorBody.from_dict(shown).to_dict())


def delete(api: Api, exchange: Exchange, type: str, key: str) -> Reply:
    """Delete an actor with all it has.

    Raises:
        NotFoundError: There is nothing to delete.
        ActorBusyError: A turn of it runs.
    """
    actor_id = api.actor(exchange, type, key)
    if not api.runtime.delete_actor(actor_id):
        raise NotFoundError(f"nothing is known of actor {actor_id}")
    return Reply(204)


def send(api: Api, exchange: Exchange, type: str, key: str, message_id: str) -> Reply:
    """Send a request to an actor, and answer where it is, or with its stream."""
    actor_id = api.actor(exchange, type, key)
    _check_id(message_id)
    call = read_as(ActorCall.from_dict, exchange.json(code="invalid_request"))
    deadline = deadline_of(exchange.environ.get("HTTP_X_PPIO_TIMEOUT"))
    api.claim(exchange, actor_id, call.method, call.params)
    headers = api.replayed(actor_id, message_id)
    with api.below(exchange):
        handle = api.client.send_request(
            actor_id,
            call.method,
            call.params,
            message_id,
            deadline=deadline,
            on_busy=call.on_busy.value,
        )
    api.keep(exchange, actor_id)
    dialect = dialect_of(exchange)
    if dialect is not None:
        result = _result_of(api, actor_id, call.method)
        return stream(
            api, exchange, handle, result=result, dialect=dialect, headers=headers
        )
    seconds = Patience.of(exchange.environ.get("HTTP_PREFER")).seconds
    response = wait_for(api, exchange, handle, seconds or 0.0)
    record = api.store.get_request(actor_id, message_id)
    if record is not None:
        body = _body_of(record)
    else:  # it was deleted meanwhile
        body = _told(actor_id, response or ActorResponseMessage(message_id))
    if body.status.terminal:
        headers.append((INVOCATION_ID, message_id))
        return json_reply(200, body.to_dict(), headers)
    headers += promise_headers(exchange, handle)
    return json_reply(202, body.to_dict(), headers)


def status(api: Api, exchange: Exchange, type: str, key: str, message_id: str) -> Reply:
    """Answer where a request is: at once, at its end, or with its stream.

    Raises:
        NotFoundError: It is not known, or no longer.
    """
    actor_id = api.actor(exchange, type, key)
    record = _record(api, actor_id, message_id)
    handle = api.client.get_request(actor_id, message_id)
    if exchange.query("streaming") == "true" or dialect_of(exchange) == "full":
        # With ids in any case: this is where a stream is gone on with.
        result = _result_of(api, actor_id, record.method)
        after = after_of(exchange, handle)
        return _patiently(
            exchange, partial(stream, api, exchange, handle, result=result, after=after)
        )
    if exchange.query("blocking") == "true" and not record.status.terminal:
        timeout = _timeout(exchange)
        return _patiently(exchange, partial(_ended, api, exchange, handle, timeout))
    return json_reply(200, _body_of(record).to_dict())


def _ended(
    api: Api, exchange: Exchange, handle: ActorResponseHandle, timeout: float
) -> Reply:
    """Answer where a request is when it has ended, or was waited for long enough."""
    wait_for(api, exchange, handle, timeout)
    record = _record(api, handle.actor_id, handle.message_id)
    return json_reply(200, _body_of(record).to_dict())


def _patiently(exchange: Exchange, answer: Callable[[], Reply]) -> Reply:
    """Answer on a thread of its own, where there is one, for that may take long.

    Else those who wait would take all threads that look, and that cancel what these
    wait for.

    Raises:
        Relayed: So it is done.
    """
    # Of the answer to a HEAD the front has yet to take the body.
    is_get = exchange.method == "GET"
    relay = exchange.environ.get("ppio.relay") if is_get else None
    if relay is not None and relay(exchange.environ, answer):
        raise Relayed
    return answer()


def cancel(api: Api, exchange: Exchange, type: str, key: str, message_id: str) -> Reply:
    """Ask for the end of a request.

    Raises:
        ConflictError: It had ended before.
        NotFoundError: It is not known.
    """
    actor_id = api.actor(exchange, type, key)
    _record(api, actor_id, message_id)
    handle = api.client.get_request(actor_id, message_id)
    became = handle.cancel(wait=_CANCEL_WAIT)
    if became == "cancelled":
        return Reply(204)
    record = _record(api, actor_id, message_id)
    if became == "terminal":
        raise ConflictError(
            f"request {message_id} had ended before: it is {record.status.value}",
            code="request_ended",
        )
    return json_reply(202, CancelBody(confirmed=False, status=record.status).to_dict())


def _check_id(message_id: str) -> None:
    if not valid_message_id(message_id):
        raise invalid(
            ["path", "message_id"], "expected 1 to 128 characters of A-Z a-z 0-9 . _ -"
        )


def _record(api: Api, actor_id: ActorId, message_id: str) -> RequestRecord:
    _check_id(message_id)
    record = api.store.get_request(actor_id, message_id)
    if record is None:
        raise NotFoundError(
            f"actor {actor_id} has no request {message_id}, or no longer",
            code="request_not_found",
        )
    return record


def _timeout(exchange: Exchange) -> float:
    text = exchange.query("timeout")
    if text is None:
        return LONGEST_WAIT
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise invalid(["query", "timeout"], "expected a number of seconds from 0 on")
    return min(seconds, LONGEST_WAIT)


def _result_of(api: Api, actor_id: ActorId, method: str) -> Callable[[Any], Any]:
    """Return what makes of a result what its stream ends with.

    Of a run that is the body of its answer, for one that was cut off is gone on with
    here.
    """
    agent = api.type_of(actor_id.type_name)
    is_run = method == "run" and agent.is_agent
    return partial(run_body, agent, actor_id) if is_run else _unchanged


def _unchanged(result: Any) -> Any:
    return result


def _body_of(record: RequestRecord) -> RequestBody:
    ended = record.status.terminal
    data = decode_json(record.data) if ended and record.data else None
    if record.evicted:
        data = decode_json(EVICTED)
    response = ActorResponseMessage(
        record.message_id, sender_id=record.actor_id, status=record.status, data=data
    )
    return attrs.evolve(
        _told(record.actor_id, response),
        attempt=record.attempt,
        created_at=instant(record.created_at),
        started_at=None if record.started_at is None else instant(record.started_at),
        finished_at=None if record.finished_at is None else instant(record.finished_at),
    )


def _told(actor_id: ActorId, response: ActorResponseMessage) -> RequestBody:
    """Return what a response alone tells of where a request is."""
    data: Any = None
    failure: FailureBody | None = None
    if response.status.terminal:
        try:
            data = outcome(response)
        except PPIOAgentError as error:
            failure = FailureBody(
                error=error.message, code=error.code, retryable=error.retryable
            )
    return RequestBody(
        actor_id=str(actor_id),
        message_id=response.message_id,
        status=response.status,
        data=data,
        error=failure,
    )
