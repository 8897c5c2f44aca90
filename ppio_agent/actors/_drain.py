"""Turns: who has an actor's flag begins them, one after the other, and commits them."""

from __future__ import annotations

import logging
import time
from itertools import starmap
from types import CoroutineType
from typing import TYPE_CHECKING

from ppio_agent._util.threads import is_ctrl_c
from ppio_agent.agent.failure import Failure
from ppio_agent.exceptions import (
    InvocationCancelledError,
    InvocationTimeoutError,
    LeaseLostError,
    RuntimeStoppedError,
)
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import (
    CommitOutcome,
    Committed,
    RequestRecord,
)
from ppio_agent.wire.actors import RequestStatus

from . import _progress
from ._cells import Activation, Cell
from ._commits import commit_of, supersede
from ._outage import is_outage
from ._retries import Retries
from ._turn import Turn, current_turn, monotonic_of

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["Drainer"]

_log = logging.getLogger(__name__)

_SLICE = 32  # turns after which other actors have their chance
_ONCE = ((),)  # arguments of one call
_RUNS = 3  # of a turn whose state others changed
_MOST_OUTAGES = 10  # after which a turn is begun again

# Members of enums are slow to look up.
_COMMITTED, _CONFLICT = CommitOutcome.COMMITTED, CommitOutcome.CONFLICT
_CODES = {
    "deadline": "invocation_timeout",
    "shutdown": "runtime_stopped",
    "superseded": "superseded",
}
"""What a request ends with whose turn's end was asked for, by the reason."""


class Drainer:
    """Runs the turns of one engine.

    Each method is for the thread that has the flag of the actor.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._lives = engine.lives
        self._retries = Retries(engine)

    # Slices.

    def drain(self, cell: Cell) -> None:
        """Run what waits for an actor, and give its flag up."""
        while True:
            more = False
            try:
                more = self.run_slice(cell, _SLICE)
                if not self._engine.halted and self._engine.crashes.settle(cell):
                    return
            except BaseException as error:  # noqa: BLE001 - the outermost frame of the thread
                self._interrupted(cell, error)
            if self._engine.halted:
                cell.signal = True  # others came first
                cell.flag.release()  # the sweep finds what waits
                return
            if more:
                if self._engine.pool.waiting:  # to the back of the queue
                    self._engine.submit(cell)
                    return
            elif not self._engine.cells.give_up(cell):
                return

    def _interrupted(self, cell: Cell, error: BaseException) -> None:
        """Let go of an actor whose turn has not come to its end; the sweep finds it."""
        if is_outage(error):
            self._engine.outage.met(error)
        else:
            _log.error(
                "the turns of actor %s were interrupted",
                cell.actor_id,
                exc_info=error,
            )
        self._lives.abandon(cell)

    def rescue(self, cell: Cell) -> None:
        """Run what waits for an actor whose turn was interrupted, and give it up."""
        cell.turn = None
        self._lives.abandon(cell)
        cell.signal = True  # what was begun is begun again
        self.drain(cell)

    def run_slice(self, cell: Cell, turns: int) -> bool:
        """Run at most so many turns; return whether another one was taken."""
        activation = cell.activation
        if activation is None:
            cell.signal = False
            activation = self._lives.activate(cell)
            if activation is None:
                return False
        if activation.next is None and not self._take(cell, activation):
            return False
        while (record := activation.next) is not None:
            if turns == 0 or self._engine.halted:
                return True
            turns -= 1
            activation.next = None
            self.run(Turn(cell, activation, record))
            # Its lease was lost, or it crashed.
            if cell.activation is not activation or activation.verdict is not None:
                return False
        return False

    def run_until(self, cell: Cell, end: float) -> bool:
        """Run what waits for an actor till an instant; return whether a turn was run.

        The flag must not be the caller's. An actor that did not live here is let go.
        """
        cell.signal = True  # who has it looks once more
        turn = None
        with self._engine.held(cell) as held:
            if not held[0]:
                cell.signal = True  # who has it looks once more
                return False
            lived = cell.activation is not None
            while time.monotonic() < end:
                latest = self._run_one(cell, end)
                if latest is None:
                    break
                turn = latest
                if cell.activation is None or cell.activation.verdict is not None:
                    break
            if lived:
                self.leave(cell, held)
            else:
                self._let_go(cell, held, end)
        if turn is not None:
            _interrupt_program(turn)
        return turn is not None

    def _let_go(self, cell: Cell, held: list[object], end: float) -> None:
        """Let go of an actor that lived here for a while only."""
        engine = self._engine
        rests = engine.crashes.settle(cell)
        held.append(None)
        if rests:
            return
        self._lives.deactivate(cell)
        late = engine.cells.remove(cell) or time.monotonic() >= end
        if late:  # there may be more to do
            engine.signal(cell.actor_id)

    def _run_one(self, cell: Cell, end: float) -> Turn | None:
        activation = cell.activation or self._lives.activate(cell)
        if activation is None:
            return None
        if activation.next is None and not self._take(cell, activation):
            return None
        record, activation.next = activation.next, None
        if record is None:
            return None
        turn = Turn(cell, activation, record)
        turn.last_at = end
        self.run(turn)
        return turn

    def _take(self, cell: Cell, activation: Activation) -> bool:
        if self._engine.halted:
            return False
        cell.signal = False
        attempts = cell.type.options.supervision.crash_attempts
        try:
            taken = self._store.take(activation.lease, crash_attempts=attempts)
        except LeaseLostError:
            self._lives.lost(cell)
            return False
        if taken.ended:
            self._engine.ended(taken.ended)
        activation.next = taken.record
        return taken.record is not None

    # Turns.

    def run(self, turn: Turn) -> None:
        """Run a turn to its commit; the one that was taken with it is `next`."""
        cell, context = turn.cell, turn.activation.context
        record = turn.record
        if record.deadline is not None:
            turn.deadline = monotonic_of(record.deadline, self._store.now())
        caller = current_turn.get()
        try:
            current_turn.set(turn)
            cell.turn = context._turn = turn  # noqa: SLF001 - a friend: not for actors
            if caller is not None and not caller.over:
                caller.asks(turn)
            if record.attempt > 1:
                _progress.restart(self._engine, turn)
            self.call(turn)
            while not self._commit(turn):
                told = turn.sequence > 0
                turn.begin_again()
                if told:
                    _progress.restart(self._engine, turn)
                self.call(turn)
            if turn.outbox or turn.reminders:
                self._engine.sweep.after(turn)
        except LeaseLostError:  # as what it did before was said to be void
            turn.lost = True
            self._lives.lost(cell)
        finally:
            current_turn.set(caller)  # first: a signal may interrupt the others
            turn.over = True
            if caller is not None and caller.child is turn:
                caller.child = None
            cell.turn = context._turn = None  # noqa: SLF001

    def call(self, turn: Turn) -> None:
        """Let the actor handle the message; whatever escapes it ends in an answer."""
        activation = turn.activation
        context = activation.context
        try:
            actor = activation.actor
            if actor is None:
                actor = self._lives.instance(turn.cell, activation)
            if activation.own_loop:
                actor.run(context)
            else:
                value = actor.receive(context, turn.message)
                if type(value) is CoroutineType:
                    value = context.settle(value)
                turn.returned(value)
        except BaseException as error:  # noqa: BLE001 - also SystemExit is an answer
            self._raised(turn, error)
            return
        if turn.status is None:
            turn.fail(failure("no_response"))

    def _raised(self, turn: Turn, error: BaseException) -> None:
        """Note what escaped an actor: the one place where crashes are handled."""
        reason = turn.reason
        asked = isinstance(error, InvocationCancelledError | InvocationTimeoutError)
        if asked and reason is not None:
            expired = reason == "deadline"
            status = RequestStatus.EXPIRED if expired else RequestStatus.CANCELLED
            # Only of one that another request interrupts something may be kept.
            end = turn.end_early if reason == "superseded" else turn.fail
            end(failure(_CODES.get(reason, "cancelled")), status)
            return
        if turn.outage is not None:  # it is not the actor's fault
            return
        turn.crash = error
        _log.error(
            "actor %s failed in request %s",
            turn.cell.actor_id,
            turn.record.message_id,
            exc_info=error,
        )
        text = "the actor failed"
        if self._engine.options.debug:
            told = Failure.of(error)
            text = f"{told.error_type}: {told.error}"
        turn.fail(failure("actor_failed", text))
        if turn.outer is None:  # of a turn within another one that other goes on
            self._engine.crashes.judge(turn)

    def _commit(self, turn: Turn) -> bool:
        """Commit a turn; return whether it is over: else it has to be run again."""
        activation = turn.activation
        if turn.reason is not None and self._is_given_up(turn):
            return True
        if turn.outage is not None and turn.is_void:
            return self._run_later(turn, turn.outage)
        end = turn.last_at
        take = not (self._engine.halted or activation.verdict) and (
            end is None or time.monotonic() < end
        )
        if take:
            turn.cell.signal = False
        commit = commit_of(turn, take=take)
        try:
            committed = self._store.commit(activation.lease, commit)
        except Exception as error:  # noqa: BLE001 - it is told there, or goes on
            later = self._retries.commit(turn, commit, error)
            if later is None:
                return True
            committed = later
        if committed.outcome is _CONFLICT:
            runs = turn.runs - turn.outages
            return runs >= _RUNS and self._commit_conflict(turn)
        self._committed(turn, committed)
        return True

    def _committed(self, turn: Turn, committed: Committed) -> None:
        activation = turn.activation
        turn.over = True
        if committed.taken is not None:
            activation.next = committed.taken.record
            if committed.taken.ended:
                self._engine.ended(committed.taken.ended)
        if committed.outcome is not _COMMITTED:
            self._discarded(turn, committed.record)
        elif turn.accepted or turn.awaited:
            self._engine.over(turn)

    def _commit_conflict(self, turn: Turn) -> bool:
        turn.fail(failure("state_conflict"))
        return self._commit(turn)

    def _is_given_up(self, turn: Turn) -> bool:
        """See to a turn whose end was asked for; return whether it is not committed.

        So is one that ended because the runtime stops, where it can be run again.
        """
        if turn.how is not None:
            supersede(turn)
        ended = turn.reason == "shutdown" and turn.status is RequestStatus.CANCELLED
        if ended and turn.accepted and self._store.durable:
            turn.over = turn.lost = True
            return True
        return False

    def _run_later(self, turn: Turn, error: BaseException) -> bool:
        """Wait for the store, which failed a turn; return False: it is run again.

        Returns:
            True if it is over: it was begun again so often that others are to see to it.
        """
        if turn.outages >= _MOST_OUTAGES:  # it answers, but not what the turn asks
            turn.outage = None
            self._raised(turn, error)
            return self._commit(turn)
        return not self._retries.wait(turn, error)

    def _discarded(self, turn: Turn, record: RequestRecord | None) -> None:
        """Note that a request ended otherwise than its turn says."""
        _log.debug("the result of request %s was discarded", turn.record.message_id)
        turn.outbox = turn.reminders = None
        if record is not None:
            turn.status, turn.data = record.status, record.data
            self._engine.ended((record,))

    def refuse(self, cell: Cell, activation: Activation) -> None:
        """End all that waits for an actor that is stopped; they become dead letters."""
        while activation.next is not None or self._take(cell, activation):
            record, activation.next = activation.next, None
            if record is None:
                return
            turn = Turn(cell, activation, record)
            turn.fail(failure("actor_stopped"))
            turn.dead = "actor_stopped"
            self._commit(turn)
            if cell.activation is not activation:  # its lease was lost
                return

    # The short way.

    def run_here(
        self, cell: Cell, request: RequestRecord, held: list[object]
    ) -> Turn | None:
        """Run a turn of an idle actor on this thread, and give its flag up.

        The request is not known to the store before the commit of its turn.

        Args:
            cell: The actor.
            request: It.
            held: See `leave`.

        Returns:
            The turn; None if the actor lives elsewhere, was lost, or has others to do
            first.
        """
        turn = None
        activation = cell.activation
        if activation is None:
            activation = self._lives.activate(cell)
            if activation is not None and self._store.durable:
                self._take(cell, activation)  # what was accepted before it lived here
                activation = cell.activation
        if activation is not None and activation.next is None:
            turn = Turn(cell, activation, request, accepted=False)
            self.run(turn)
        self.leave(cell, held)
        if turn is None or turn.lost:
            return None if turn is None else self._stopped(turn)
        _interrupt_program(turn)
        return turn

    def _stopped(self, turn: Turn) -> Turn | None:
        """Return a turn that was lost as the runtime stopped; None: by something else.

        Raises:
            RuntimeStoppedError: It did, and its store outlives it.
        """
        record = turn.record
        if not self._engine.stopping.is_set() or turn.caller is not None:
            return None
        if self._store.durable:
            raise RuntimeStoppedError(
                f"the runtime stopped before request {record.message_id} to"
                f" {record.actor_id} ended: nothing of it is kept, ask again",
                actor_id=str(record.actor_id),
                message_id=record.message_id,
            )
        turn.fail(failure("runtime_stopped"), RequestStatus.CANCELLED)
        return turn

    def run_first(self, cell: Cell, message_id: str, held: list[object]) -> None:
        """Run a request if it is the next one, and give the flag up; see `leave`."""
        turn = None
        activation = cell.activation or self._lives.activate(cell)
        if activation is not None:
            if activation.next is None:
                self._take(cell, activation)
            record = activation.next
            if record is not None and record.message_id == message_id:
                activation.next = None
                turn = Turn(cell, activation, record)
                self.run(turn)
        self.leave(cell, held)
        if turn is not None:
            _interrupt_program(turn)

    def leave(self, cell: Cell, held: list[object]) -> None:
        """Give the flag up, or hand it to the pool with what came meanwhile.

        Args:
            cell: The actor.
            held: Gets an element as soon as the flag is not the caller's any more; see
                `Engine.held`.
        """
        activation, engine = cell.activation, self._engine
        if activation is not None:
            if activation.verdict is not None and engine.crashes.settle(cell):
                held.append(None)
                return
            if activation.next is not None:
                engine.submit(cell, held)
                return
        cell.last_use = time.monotonic()
        held.extend(starmap(cell.flag.release, _ONCE))
        if cell.signal:
            engine.wake(cell, here=True)


def _interrupt_program(turn: Turn) -> None:
    """Raise what was meant for the program, not for the actor whose turn it hit."""
    if turn.crash is not None and is_ctrl_c(turn.crash):
        raise turn.crash
