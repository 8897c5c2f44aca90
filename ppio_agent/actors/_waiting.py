"""How threads wait for the end of requests, here or in another process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ppio_agent.exceptions import (
    PPIOAgentError,
    RuntimeOverloadedError,
    RuntimeStoppedError,
)
from ppio_agent.wire.actors import ActorId

from ._call import Call, wait_on
from ._turn import Turn, current_turn

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["join", "look", "most_threads", "stopped", "wait"]

_FIRST_POLL, _LONGEST_POLL = 0.05, 1.0
_BLOCKED = 4  # times `workers`


def wait(
    engine: Engine,
    call: Call,
    timeout: float | None = None,
    *,
    steps: Callable[[], object] | None = None,
) -> bool:
    """Wait for the end of a request; return whether it has ended.

    A turn waits no longer than till its own end is asked for; what it sent is
    withdrawn then.

    Args:
        engine: Whose it is.
        call: The request.
        timeout: Seconds; None: as long as it takes.
        steps: Whether there is a next step already; waits for one too.

    Raises:
        RuntimeOverloadedError: This is a turn, and too many of them wait.
        ActorDeadlockError: This is a turn, and its actor is waited for.
        InvocationCancelledError: This is a turn, whose end was asked for.
        InvocationTimeoutError: So, since its deadline has passed.
    """
    if call.over:
        return True
    turn = current_turn.get()
    if turn is None or turn.over:  # or a thread that it has left behind
        return _wait(engine, call, timeout, steps)
    with engine.pool.blocking(most_threads(engine)) as granted:
        if not granted:
            raise RuntimeOverloadedError(
                f"{most_threads(engine)} threads of the runtime wait in"
                f" asks: request {call.message_id} to {call.actor_id} is not waited"
                " for",
                actor_id=str(call.actor_id),
                message_id=call.message_id,
            )
        try:
            ended = engine.waits.wait(
                turn,
                call,
                lambda most: _wait(engine, call, most or timeout, steps, turn),
            )
            if not ended and turn.reason is not None:
                turn.context.check()
        except BaseException:
            # One that ends with its process asks for the same again.
            if call.sender is turn and turn.reason != "shutdown":
                engine.cancel(call.actor_id, call.message_id)
            raise
        return ended


def most_threads(engine: Engine) -> int:
    """Return how many threads run turns at most, those that wait in them included."""
    return _BLOCKED * engine.options.workers


def _wait(
    engine: Engine,
    call: Call,
    timeout: float | None,
    steps: Callable[[], object] | None,
    turn: Turn | None = None,
) -> bool:
    until = None if timeout is None else time.monotonic() + timeout
    poll = _FIRST_POLL
    while True:
        lock = engine.calls.enter(call, steps=steps is not None)
        if lock is None:
            return True
        try:
            if steps is not None and steps():
                return call.over
            if turn is not None and turn.reason is not None:
                return call.over
            # Of a store that is not shared another runtime of this process may
            # be a user, too.
            every = poll if engine.store.shared else _LONGEST_POLL
            # Its end may have been told before there was anybody to wake.
            woken = call.doubtful or wait_on(lock, until, every)
        finally:
            engine.calls.leave(call, lock)
        if call.over:
            return True
        if call.doubtful or not woken:
            call.doubtful = False
            look(engine, call)
        elif steps is not None:
            return False
        if until is not None and time.monotonic() >= until:
            return call.over
        poll = min(2.0 * poll, _LONGEST_POLL)


def join(engine: Engine, actor_id: ActorId, message_id: str) -> Call:
    """Return the call of a request that was sent before."""
    runs = _runs_here(engine, actor_id, message_id)
    record = engine.store.get_request(actor_id, message_id)
    if record.status.terminal if record is not None else not runs:
        call = Call(actor_id, message_id)
        engine.calls.conclude_as(call, record)
        return call
    call, _ = engine.calls.listed(actor_id, message_id)
    if not engine.running:
        engine.calls.forget(call)
        call.error = partial(stopped, call)
        return call
    look(engine, call)  # it may have ended just before it was listed
    return call


def look(engine: Engine, call: Call) -> None:
    """Look in the store whether a request has ended."""
    runs = _runs_here(engine, call.actor_id, call.message_id)
    record = engine.store.get_request(call.actor_id, call.message_id)
    if record.status.terminal if record is not None else not runs:
        engine.calls.forget(call)
        engine.calls.conclude_as(call, record)


def _runs_here(engine: Engine, actor_id: ActorId, message_id: str) -> bool:
    """Whether a request runs here that no store knows, and have its end be told.

    To be asked before the store, which knows it when it has ended.
    """
    turn = engine.turn_of(actor_id, message_id)
    if turn is None or turn.accepted or turn.over:
        return False
    turn.awaited = True
    return True


def stopped(call: Call) -> PPIOAgentError:
    """Return the error for those who wait for a request when the runtime stops."""
    return RuntimeStoppedError(
        f"the runtime stopped before request {call.message_id} to {call.actor_id} ended:"
        " it is kept, look it up by this id later",
        actor_id=str(call.actor_id),
        message_id=call.message_id,
    )
