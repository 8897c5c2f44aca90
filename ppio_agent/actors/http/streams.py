"""The steps of a request, and its end, as an event stream that can be gone on with.

Event n is the n-th step of the request's log; the two after the last step are the
outcome and `end`. So a client that was cut off goes on by the number of the last event
that it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from attrs import frozen

from ppio_agent.actors._outage import OUTAGES
from ppio_agent.actors.client import InProcessResponseHandle
from ppio_agent.actors.runtime_abstractions import (
    ActorResponseMessage,
    RequestStatus,
)
from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.web import SSE_HEADERS, Reply, sse_body
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire.headers import INVOCATION_ID, LAST_EVENT_ID, Accept
from ppio_agent.wire.json import encode_json
from ppio_agent.wire.problem import problem_body

from .api import Api
from .errors import invalid, outcome
from .outages import told
from .waits import dismissal

__all__ = ["Dialect", "after_of", "dialect_of", "stream"]

Dialect = Literal["full", "bare"]

_HEARTBEAT = 15.0


@frozen
class _Event:
    """One event; see `ppio_agent.web.sse.Entry`."""

    seq: int
    data: bytes
    kind: Literal["chunk", "error", "end"] = "chunk"
    event: str | None = None
    retry_ms: int | None = None


class _Updates:
    """What a stream is written from; see `ppio_agent.web.sse.Source`."""

    def __init__(
        self,
        api: Api,
        handle: InProcessResponseHandle,
        result: Callable[[Any], Any],
        request_id: str,
    ) -> None:
        self._api = api
        self._handle = handle
        self._result = result
        self._request_id = request_id
        self.closed = False

    def read(self, after: int, timeout: float | None) -> Sequence[_Event]:
        """Return the events after number `after`, waiting up to `timeout` for one."""
        try:
            found = self._handle.read_updates(after, timeout)
            if not found and self._api.dismissed:
                raise dismissal(self._handle.message_id)
        except (PPIOAgentError, *OUTAGES) as error:  # the runtime was stopped, say
            # Under the number of the last step: from there it can be gone on with.
            cause = told(self._api.runtime, error)
            return self._end(after, after, cause, "stopped")
        events: list[_Event] = []
        for update in found:
            if update.status is RequestStatus.PENDING:
                events.append(_Event(update.position, encode_json(_step(update))))
            else:
                events += self._outcome(update, after)
        return [event for event in events if event.seq > after]

    def _outcome(self, response: ActorResponseMessage, after: int) -> list[_Event]:
        word, last = response.status.value, response.position
        if after > last + 2:  # of steps that no store got before a process died
            last = after
        try:
            data = self._result(outcome(response))
        except PPIOAgentError as error:
            return self._end(last + 1, last + 2, error, word)
        self.closed = True
        body = encode_json({"status": word, "data": data})
        return [_Event(last + 1, body), _end_of(last + 2, word)]

    def _end(
        self, number: int, last: int, error: PPIOAgentError, word: str
    ) -> list[_Event]:
        self.closed = True
        body = problem_body(error, request_id=self._request_id)
        return [_Event(number, body, "error"), _end_of(last, word)]


def _end_of(number: int, word: str) -> _Event:
    return _Event(number, encode_json({"status": word}), "end")


def _step(update: ActorResponseMessage) -> dict[str, Any]:
    """Return what is told of a step: its progress, or that steps are void or gone."""
    data: dict[str, Any] = update.data
    if "sequence" in data:
        return {"status": "pending", "data": data["progress"]}
    return {"status": "pending", **data}


def dialect_of(exchange: Exchange) -> Dialect | None:
    """Return how a request wants its answer streamed; None: not at all."""
    accept = Accept.parse(exchange.environ.get("HTTP_ACCEPT"))
    if not accept.envelope:
        return "full"
    if exchange.query("stream") == "true":
        return "full" if accept.names_sse else "bare"
    return None


def stream(
    api: Api,
    exchange: Exchange,
    handle: InProcessResponseHandle,
    *,
    result: Callable[[Any], Any],
    dialect: Dialect = "full",
    after: int = 0,
    headers: Sequence[tuple[str, str]] = (),
) -> Reply:
    """Return the answer that is the stream of a request.

    Args:
        api: The application.
        exchange: The HTTP request.
        handle: The request to the actor.
        result: Makes what callers see of a result, or raises an error of ours.
        dialect: See `ppio_agent.web.sse_body`.
        after: Number of the last event that the client has.
        headers: Further headers.
    """
    body = sse_body(
        _Updates(api, handle, result, exchange.request_id),
        dialect=dialect,
        heartbeat=_HEARTBEAT,
        after=after,
        client_gone=exchange.client_gone,
    )
    head = [*SSE_HEADERS, (INVOCATION_ID, handle.message_id), *headers]
    return Reply(200, head, body)


def after_of(exchange: Exchange, handle: InProcessResponseHandle) -> int:
    """Return the number of the event that a stream is to go on after.

    Raises:
        InvalidMessageError: It is none, or was not sent yet.
    """
    text = exchange.environ.get("HTTP_LAST_EVENT_ID")
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _not_sent(text[:40])
    after = int(text)
    if after == 0:
        return 0
    known = handle.read_updates(after - 1, 0.0)
    sent = bool(known) and after <= _last_event(known[-1])
    if not sent and after > handle.last_seen():
        raise _not_sent(text)
    return after


def _last_event(update: ActorResponseMessage) -> int:
    """Return the number of the last event that is made of an update."""
    pending = update.status is RequestStatus.PENDING
    return update.position if pending else update.position + 2


def _not_sent(text: str) -> PPIOAgentError:
    error = invalid(
        ["header", LAST_EVENT_ID], f"the request has no event {text!r} (yet)"
    )
    error.http_status = 400
    return error
