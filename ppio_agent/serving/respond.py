"""From a started invocation to its answer: waited for, streamed, or promised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

from ppio_agent.agent import Invocation
from ppio_agent.agent.progress import Step
from ppio_agent.agent.registry import Admission
from ppio_agent.agent.ring import RingReader
from ppio_agent.exceptions import InvocationCancelledError, ValidationError
from ppio_agent.web import Reply, json_reply, sse_body
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire.headers import LAST_EVENT_ID, RETRY_AFTER, Accept

from .answers import answer, id_headers, stream_head
from .call import Call
from .engine import Engine
from .watch import run_watched

__all__ = ["events", "respond"]

# How often a waiting server thread looks whether its client has left, in seconds.
_LOOK_EVERY = 0.25


def respond(
    engine: Engine, exchange: Exchange, admission: Admission, call: Call
) -> Reply:
    """Start what is new and return the answer of ``POST /invocations``.

    Blocking: until the outcome, or until it is known that there is a stream.

    Raises:
        ServiceUnavailableError: There is no slot.
    """
    invocation = admission.invocation
    accept = Accept.parse(exchange.environ.get("HTTP_ACCEPT"))
    # Without a JSON envelope to fall back on, whatever the handler gives is streamed.
    always = accept.names_sse and not accept.envelope
    finish = partial(
        _finish,
        engine,
        exchange,
        invocation,
        is_new=admission.is_new,
        accept=accept,
        always=always,
    )
    if not admission.is_new:
        if call.respond_async:
            # It never leaves as a reader: what it joined goes on without connections.
            return _promise(exchange, invocation, replayed=True)
        return finish()
    if call.respond_async:
        engine.start(invocation, patient=True)
        return _promise(exchange, invocation, replayed=False)
    streams = always or invocation.handler.is_stream is not None
    may_run_here = engine.quick and not streams
    if may_run_here and run_watched(engine, exchange, invocation, finish):
        return finish()
    return finish(partial(engine.start, invocation, patient=exchange.has_lanes))


def _finish(
    engine: Engine,
    exchange: Exchange,
    invocation: Invocation,
    start: Callable[[], None] | None = None,
    *,
    is_new: bool,
    accept: Accept,
    always: bool,
) -> Reply:
    """Wait for an invocation, which `start` starts, and return its answer."""
    config = engine.config
    gone = exchange.client_gone if config.detect_disconnect else None
    opening = Step.OVER | (Step.REACHED if always else Step.STREAMS)
    if not _wait(invocation, opening, gone, start):
        if is_new:
            invocation.take_reader().close()
        engine.leave(invocation)
        raise InvocationCancelledError("the client has closed the connection")
    if invocation.streams or (always and invocation.progress.has(Step.REACHED)):
        return _stream(
            engine,
            exchange,
            invocation,
            dialect="full" if accept.names_sse else "bare",
            is_new=is_new,
        )
    _raise_refusal(invocation)
    chain: Any = invocation.around
    return answer(
        invocation,
        request_id=exchange.request_id,
        status=200 if chain is None else chain.status_code,
        extra=[] if chain is None else list(chain.headers.items()),
        replayed=not is_new,
        debug=config.debug,
    )


def _promise(exchange: Exchange, invocation: Invocation, *, replayed: bool) -> Reply:
    """Return the answer that comes before the outcome."""
    headers = [
        *id_headers(invocation, replayed=replayed),
        ("Location", exchange.place(f"/invocations/{invocation.id}")),
        ("Preference-Applied", "respond-async"),
        (RETRY_AFTER, "1"),
    ]
    return json_reply(202, invocation.record().to_dict(), headers)


def events(engine: Engine, exchange: Exchange, invocation: Invocation) -> Reply:
    """Return the answer of ``GET /invocations/{id}/events``.

    Raises:
        ValidationError: The number to go on after is none, or above the last.
        ReplayGoneError: The events after it are no longer kept.
    """
    _after(exchange, invocation)  # one that is refused must not count as a reader
    invocation.join()
    return _stream(engine, exchange, invocation, dialect="full", is_new=False)


def _wait(
    invocation: Invocation,
    opening: int,
    gone: Callable[[], bool] | None,
    start: Callable[[], None] | None,
) -> bool:
    """Wait for an outcome or an opening; return False if the client has left."""
    if start is None and invocation.progress.has(opening):
        return True
    tick = None if gone is None else _LOOK_EVERY
    while not invocation.progress.wait(opening, tick, first=start):
        start = None
        if gone is not None and gone():
            return False
    return True


def _raise_refusal(invocation: Invocation) -> None:
    """Raise why an invocation never began: no invocation, so a problem."""
    if invocation.refused and invocation.error is not None:
        raise invocation.error


def _stream(
    engine: Engine,
    exchange: Exchange,
    invocation: Invocation,
    *,
    dialect: Literal["full", "bare"],
    is_new: bool,
) -> Reply:
    try:
        after = 0 if is_new else _after(exchange, invocation)
        reader = invocation.take_reader() if is_new else invocation.ring.attach(after)
    except BaseException:
        engine.leave(invocation)
        raise
    reader.on_stalled = exchange.environ.get("ppio.abort")
    chain: Any = invocation.around
    if chain is not None:
        chain.opened = True
    config = engine.config
    pieces = sse_body(
        reader,
        dialect=dialect,
        heartbeat=config.heartbeat,
        after=after,
        client_gone=exchange.client_gone if config.detect_disconnect else None,
    )
    head = stream_head(
        invocation,
        replayed=not is_new and exchange.method == "POST",
        extra=[] if chain is None else list(chain.headers.items()),
    )
    return Reply(
        200, head, _StreamBody(pieces, partial(_end, engine, invocation, reader))
    )


def _end(engine: Engine, invocation: Invocation, reader: RingReader) -> None:
    reader.close()
    engine.leave(invocation, "stalled" if reader.stalled else "disconnect")


def _after(exchange: Exchange, invocation: Invocation) -> int:
    """Return the number of the event that the client wants to go on after."""
    text = exchange.environ.get("HTTP_LAST_EVENT_ID") or exchange.query("after") or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ValidationError(
            f"{LAST_EVENT_ID} (or after) has to be the number of an event"
        )
    after = int(text)
    if after > invocation.ring.last:
        raise ValidationError(
            f"invocation {invocation.id} has no event {after} yet;"
            f" the last is {invocation.ring.last}"
        )
    return after


class _StreamBody:
    """The pieces of a stream; `close` also works before the first of them."""

    __slots__ = ("_end", "_pieces")

    def __init__(self, pieces: Iterator[bytes], end: Callable[[], None]) -> None:
        self._pieces = pieces
        self._end: Callable[[], None] | None = end

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """End the stream for this client. Idempotent."""
        end, self._end = self._end, None
        if end is not None:
            end()
