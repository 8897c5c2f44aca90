"""How a request gets into a mailbox, or is refused."""

from __future__ import annotations

import time
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ActorBusyError,
    IdempotencyConflictError,
    InvalidMessageError,
    MailboxFullError,
    PPIOAgentError,
    RequestTooLargeError,
    RuntimeOverloadedError,
    SerializationError,
)
from ppio_agent.storage.actors.records import (
    Acceptance,
    Accepted,
    Cancellation,
    RequestRecord,
)
from ppio_agent.wire.actors import (
    ActorId,
    RequestStatus,
    check_message_id,
    check_method,
)
from ppio_agent.wire.json import decode_json, encode_json

from ._call import Call, wait_on
from ._cells import Cell
from ._checks import check_actor_id, check_seconds
from ._outage import OUTAGES
from ._turn import current_turn
from ._waiting import look, most_threads
from .telemetry import Count

if TYPE_CHECKING:
    from ._engine import Engine
    from .runtime_abstractions import OnBusy, Params

__all__ = ["MAX_PARAMS", "encode_params", "request_of", "send"]

MAX_PARAMS = 1024 * 1024
"""Most bytes of the parameters' JSON."""
_RETRY_AFTER = 1.0
_POLL = 0.2  # seconds between looks at a full mailbox that others may empty

# Members of enums are slow to look up, and these are for each request.
_NEW, _FULL = Acceptance.NEW, Acceptance.FULL

_INTERRUPTS = {
    "interrupt": Cancellation.INTERRUPT,
    "rollback": Cancellation.ROLLBACK,
}


def encode_params(method: str, params: Params) -> bytes:
    """Return the JSON of a request's parameters.

    Raises:
        InvalidMessageError: The method is not 1 to 200 characters that stores can
            keep, or they are no JSON object.
        RequestTooLargeError: They are larger than 1 MiB.
    """
    check_method(method)
    if params is None:
        return b"null"
    try:
        data = encode_json(params)
    except SerializationError as error:
        raise InvalidMessageError(f"the params of {method!r:.120}: {error}") from error
    if data[:1] != b"{":
        raise InvalidMessageError(
            f"the params of {method!r:.120} are a {type(params).__name__}: give a"
            " mapping, or None"
        )
    if len(data) > MAX_PARAMS:
        raise RequestTooLargeError(
            f"the params of {method!r:.120} are {len(data)} bytes of JSON, more than"
            f" {MAX_PARAMS}",
            limit=MAX_PARAMS,
        )
    return data


def request_of(
    actor_id: ActorId, method: str, params: Params, message_id: str | None
) -> RequestRecord:
    """Return a request as the store takes it; without an id it gets one."""
    check_actor_id(actor_id)
    data = encode_params(method, params)
    if message_id is None:
        return RequestRecord(actor_id, new_id(), method, data)
    check_message_id(message_id)
    return RequestRecord(actor_id, message_id, method, data, _digest(method, data))


def _digest(method: str, params: bytes) -> bytes:
    """Return what tells whether two requests of one id ask for the same."""
    value = decode_json(params)
    if type(value) is dict:
        value = _sorted(value)
    return sha256(encode_json([method, value])).digest()


def _sorted(value: object) -> object:
    if type(value) is dict:
        return {key: _sorted(value[key]) for key in sorted(value)}
    if type(value) is list:
        return [_sorted(item) for item in value]
    return value


def send(
    engine: Engine,
    request: RequestRecord,
    *,
    deadline: float | None = None,
    on_busy: OnBusy = "enqueue",
    block: float = 0.0,
    here: bool = False,
) -> Call:
    """Have a request accepted and run; return the call that is told of its end.

    Args:
        engine: Which sends it.
        request: It.
        deadline: Seconds from now after which it ends EXPIRED.
        on_busy: What happens if the actor has another pending request.
        block: Seconds to wait for a place, where the type says so.
        here: Whether its turn may run on this thread.

    Raises:
        PPIOAgentError: It was refused; see `IActorClient.send_request`.
    """
    cell = engine.cell(request.actor_id)

    def deliver() -> Call:
        return _deliver(
            engine,
            cell,
            request,
            deadline=deadline,
            on_busy=on_busy,
            block=block,
            here=here,
        )

    if engine.telemetry is None:
        return deliver()
    with engine.telemetry.sending(request) as ending:
        call = deliver()
        ending.status = call.status or RequestStatus.PENDING
        return call


def _deliver(
    engine: Engine,
    cell: Cell,
    request: RequestRecord,
    *,
    deadline: float | None,
    on_busy: OnBusy,
    block: float,
    here: bool,
) -> Call:
    if engine.supervisor.stopped:
        engine.crashes.check(request.actor_id)
    request.created_at = engine.store.now()
    call, fresh = engine.calls.listed(request.actor_id, request.message_id)
    turn = current_turn.get()
    if fresh and turn is not None and not turn.over:
        call.sender = turn
    until = None
    try:
        if deadline is not None:
            check_seconds("deadline", deadline)
            request.deadline = request.created_at + deadline
            until = time.monotonic() + deadline
        accepted = _accept(
            engine, cell, request, on_busy, _block_of(cell, block, until)
        )
        _check(request, accepted)
        if until is not None and fresh:
            _end_at(engine, call, until)
    except BaseException:
        engine.calls.refused(call)
        raise
    if accepted.record is not None and accepted.record.status.terminal:
        engine.calls.forget(call)
        engine.calls.conclude_as(call, accepted.record)
    _make_way(engine, cell, accepted, on_busy)
    if accepted.outcome is not _NEW:
        _repeated(engine, request)
        return call
    if not engine.running and not engine.store.durable:  # perhaps nobody will run it
        engine.cancel(call.actor_id, call.message_id)
        look(engine, call)
        return call
    if not (here and engine.run_first(cell, request.message_id)):
        engine.wake(cell)
    return call


def _repeated(engine: Engine, request: RequestRecord) -> None:
    if engine.telemetry is not None:
        engine.telemetry.count(Count.DUPLICATES, request.actor_id, request.method)


def _block_of(cell: Cell, block: float, until: float | None) -> float:
    """Return the instant till which a full mailbox is waited for."""
    check_seconds("block", block)
    if cell.type.options.mailbox_policy != "block":
        return 0.0
    end = time.monotonic() + block
    if until is None:
        return end
    return until if block == 0.0 else min(end, until)


def _accept(
    engine: Engine, cell: Cell, request: RequestRecord, on_busy: OnBusy, until: float
) -> Accepted:
    """Ask the store, again and again while the mailbox is full, till an instant."""
    limits = cell.type.limits.get(on_busy)
    if limits is None:
        raise InvalidMessageError(f"on_busy={on_busy!r} is not one of {_known(cell)}")
    turn = cell.turn
    if on_busy == "reject" and turn is not None and not turn.accepted:
        raise _busy(request, turn.record.message_id)
    store = engine.store
    accepted = store.accept(request, limits)
    if accepted.outcome is not _FULL or until <= time.monotonic():
        return accepted
    turn = current_turn.get()
    with engine.pool.blocking(most_threads(engine)) as granted:
        while granted and time.monotonic() < until:
            with engine.in_line(request.actor_id) as place:
                accepted = store.accept(request, limits)
                if accepted.outcome is not _FULL or not engine.running:
                    return accepted
                wait_on(place, until, _POLL)
            if turn is not None and not turn.over and turn.reason is not None:
                turn.context.check()
    return store.accept(request, limits)


def _known(cell: Cell) -> str:
    return ", ".join(cell.type.limits)


def _busy(request: RequestRecord, running: str) -> PPIOAgentError:
    return ActorBusyError(
        f"actor {request.actor_id} has another request, {running}, that has not ended",
        actor_id=str(request.actor_id),
        message_id=running,
    )


def _check(request: RequestRecord, accepted: Accepted) -> None:
    """Raise what a refusal is told as."""
    outcome = accepted.outcome
    if outcome is _NEW or outcome is Acceptance.DUPLICATE:
        return
    actor_id = str(request.actor_id)
    if outcome is Acceptance.CONFLICT:
        raise IdempotencyConflictError(
            f"request {request.message_id} to {actor_id} was sent before with another"
            " method or other params: use a new id"
        )
    if outcome is Acceptance.BUSY:
        running = "" if accepted.record is None else accepted.record.message_id
        raise _busy(request, running)
    if outcome is _FULL:
        raise MailboxFullError(
            f"actor {actor_id} has as many requests as it takes: send"
            f" {request.message_id} again later",
            actor_id=actor_id,
            message_id=request.message_id,
            retry_after=_RETRY_AFTER,
        )
    raise RuntimeOverloadedError(
        f"as many requests wait in the runtime as may: send {request.message_id} to"
        f" {actor_id} again later",
        actor_id=actor_id,
        message_id=request.message_id,
        retry_after=_RETRY_AFTER,
    )


def _make_way(engine: Engine, cell: Cell, accepted: Accepted, on_busy: OnBusy) -> None:
    """End what was ended for a request, and ask what runs for its end."""
    if accepted.ended:
        engine.ended(accepted.ended)
    how = _INTERRUPTS.get(on_busy)
    turn = cell.turn
    if how is None or turn is None or accepted.outcome is not _NEW:
        return
    turn = turn.outermost
    if not turn.accepted or turn.record.message_id == accepted.running:
        engine.interrupt(turn, how)


def _end_at(engine: Engine, call: Call, instant: float) -> None:
    """End an accepted request at its deadline."""
    try:
        timer = engine.timers.at(instant, partial(_expire, engine, call))
    except RuntimeOverloadedError:
        return  # the sweep ends it, a little late
    call.timer = timer
    if call.over:  # before it could be forgotten with the call
        timer.cancel()


def _expire(engine: Engine, call: Call) -> None:
    """End a request at its deadline; the store's clock may be a little behind."""
    try:
        engine.expire()
        if call.over or not call.listed:
            return
        look(engine, call)
    except OUTAGES as error:  # a sweep ends it, a little late
        engine.outage.met(error)
        return
    if not call.over and engine.running:
        call.timer = engine.later(0.01, partial(_expire, engine, call))
