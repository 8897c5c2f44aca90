"""What a turn asks of other actors, and tells them.

The id of what it sends is made of the turn's own request and what is sent, so that a
turn that is run again sends the same: it is taken once, and an answer that is there is
the answer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ppio_agent.exceptions import CallChainTooDeepError, RuntimeOverloadedError
from ppio_agent.storage.actors.records import Outgoing, RequestRecord
from ppio_agent.wire.actors import ActorId, ActorResponseMessage, RequestStatus

from ._answers import result_of
from ._checks import MAX_CHAIN, check_actor_id, check_seconds
from ._outage import OUTAGES
from ._send import encode_params, send
from ._turn import Turn, current_turn
from ._waiting import wait
from ._waits import deadlock
from .telemetry import Count

if TYPE_CHECKING:
    from ._engine import Engine
    from .runtime_abstractions import Params

__all__ = ["ask", "tell"]

_NO_LIMIT = 100  # of the mailbox of a type that only others know


def ask(
    engine: Engine,
    turn: Turn,
    actor_id: ActorId,
    method: str,
    params: Params,
    *,
    timeout: float | None = None,
) -> Any:
    """Ask an actor within a turn, and wait; see `IActorRuntimeContext.ask`."""
    if timeout is not None:
        check_seconds("timeout", timeout)
    context = turn.context
    context.check()
    request = _request(turn, actor_id, method, encode_params(method, params))
    request.chain = (*turn.record.chain, str(turn.cell.actor_id))
    if len(request.chain) > MAX_CHAIN:
        raise CallChainTooDeepError(
            f"{len(request.chain)} actors wait for each other in a row, up to"
            f" {actor_id}: use tell where no answer is needed",
            actor_id=str(actor_id),
        )
    with _asking(turn, request):
        circle = _waiting_for(engine, actor_id, turn)
        try:
            response = _called_again(engine, circle, request) if circle else None
            if response is None:
                response = _answer(engine, turn, request, timeout)
        except OUTAGES as error:
            turn.failed_by(error)
            raise
        return result_of(response)


def _request(
    turn: Turn, actor_id: ActorId, method: str, params: bytes
) -> RequestRecord:
    """Return a request of a turn; the same one if the turn is run again."""
    check_actor_id(actor_id)
    record = turn.record
    turn.nested += 1
    sender = str(turn.cell.actor_id)
    head = f"{sender}\n{record.message_id}\n{turn.nested}\n{actor_id}\n{method}\n"
    return RequestRecord(
        actor_id,
        f"d-{sha256(head.encode() + params).hexdigest()[:32]}",
        method,
        params,
        sender=sender,
        traceparent=record.traceparent,
    )


@contextmanager
def _asking(turn: Turn, request: RequestRecord) -> Iterator[None]:
    turn.asking = (request.actor_id, request.message_id)
    try:
        yield
    finally:
        turn.asking = None


def _answer(
    engine: Engine, turn: Turn, request: RequestRecord, timeout: float | None
) -> ActorResponseMessage:
    """Return the response to a request of a turn, wherever it is run."""
    context = turn.context
    deadline = context.time_left()
    if timeout is not None:
        deadline = timeout if deadline is None else min(deadline, timeout)
    if turn.record.attempt > 1 or turn.runs > 1:
        known = engine.store.get_request(request.actor_id, request.message_id)
    else:
        known = None
    if known is None and timeout is None:
        if deadline is not None:
            request.deadline = engine.store.now() + deadline
        here = engine.ask_here(request)
        if here is not None:
            context.check()
            return here.response()
    turn.within = threading.Lock()
    try:
        call = send(engine, request, deadline=deadline)
        try:
            wait(engine, call)
        except RuntimeOverloadedError:
            engine.cancel(call.actor_id, call.message_id)
            raise
    finally:
        # It may go on before those that it waited for: a turn within it ends first.
        with turn.within:
            turn.asking = turn.within = None
    return call.response()


# Actors that wait for the one that asks them.


def _waiting_for(engine: Engine, actor_id: ActorId, turn: Turn) -> list[Turn]:
    """Return the turns from one of an actor on to `turn`, each waiting for the next.

    Empty if the actor has none here that waits for it. Those found wait as long as
    `turn` runs, but for one that gives up.
    """
    cell = engine.cells.find(actor_id)
    here = None if cell is None else cell.turn
    found: list[Turn] = []
    while here is not None and len(found) <= MAX_CHAIN:
        found.append(here)
        if here is turn:
            return found
        here = _asked_by(engine, here)
    return []


def _asked_by(engine: Engine, turn: Turn) -> Turn | None:
    """Return the turn that a turn waits for, if it runs here."""
    if turn.asking is None:
        return None
    actor_id, message_id = turn.asking
    cell = engine.cells.find(actor_id)
    asked = None if cell is None else cell.turn
    while asked is not None and asked.record.message_id != message_id:
        asked = asked.outer
    return asked


def _called_again(
    engine: Engine, circle: list[Turn], request: RequestRecord
) -> ActorResponseMessage | None:
    """Run a turn within another turn of its actor, which waits for it.

    Returns:
        The response; None if the other one has given up waiting just now.

    Raises:
        ActorDeadlockError: The type does not allow that.
    """
    outer = circle[0]
    if outer.cell.type.options.reentrancy != "allow":
        actors = [turn.cell.actor_id for turn in circle]
        if engine.telemetry is not None:
            engine.telemetry.count(Count.DEADLOCKS, actors[0], request.method)
        raise deadlock([actors[-1], *actors[:-1]], request.message_id)
    if outer.within is None:  # it is on this thread's stack, and cannot go on
        return _run_within(engine, outer, circle[-1], request)
    with outer.within:
        if len(circle) > 1 and _asked_by(engine, outer) is not circle[1]:
            return None
        return _run_within(engine, outer, circle[-1], request)


def _run_within(
    engine: Engine, outer: Turn, asker: Turn, request: RequestRecord
) -> ActorResponseMessage:
    turn = Turn(outer.cell, outer.activation, request, accepted=False)
    turn.deadline = asker.deadline
    turn.enter(outer)
    asker.asks(turn)
    context = outer.context
    before = current_turn.set(turn)
    context._turn = turn  # noqa: SLF001 - a friend: not for actors
    try:
        engine.drainer.call(turn)
    finally:
        context._turn = outer  # noqa: SLF001
        current_turn.reset(before)
        asker.child = None
        turn.leave(outer)
    if turn.outage is not None and turn.is_void:
        raise turn.outage
    return turn.response()


# Requests that leave with the commit.


def tell(
    engine: Engine,
    turn: Turn,
    actor_id: ActorId,
    method: str,
    params: Params,
    *,
    delay: float = 0.0,
) -> str:
    """Send a request with the commit of a turn; see `IActorRuntimeContext.tell`."""
    check_seconds("delay", delay)
    request = _request(turn, actor_id, method, encode_params(method, params))
    mailbox = _NO_LIMIT
    if actor_id.type_name in engine.types or not engine.store.shared:
        mailbox = engine.types.find(actor_id.type_name).options.mailbox_limit
    outbox = turn.outbox = turn.outbox or []
    most = engine.options.max_pending
    if len(outbox) + engine.sweep.outgoing >= most:
        raise RuntimeOverloadedError(
            f"request {turn.record.message_id} to {turn.cell.actor_id} tells others"
            f" {len(outbox)} times in one turn, {engine.sweep.outgoing} are on their"
            f" way, and {most} may be: tell later, or less",
            actor_id=str(turn.cell.actor_id),
        )
    if engine.telemetry is not None:
        with engine.telemetry.sending(request) as ending:
            ending.status = RequestStatus.PENDING
    not_before = engine.store.now() + delay if delay else 0.0
    outbox.append(Outgoing(request, not_before, mailbox))
    return request.message_id
