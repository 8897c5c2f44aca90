"""Turns: who has an actor's flag begins them, one after the other, and commits them."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from ppio_agent.exceptions import (
    InvocationCancelledError,
    InvocationTimeoutError,
    LeaseLostError,
)
from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import (
    Cancellation,
    CommitOutcome,
    Committed,
    RequestRecord,
    TurnCommit,
)
from ppio_agent.wire.actors import ActorResponseMessage, RequestStatus

from . import _progress
from ._cells import Activation, Cell
from ._context import InProcessActorContext
from ._outage import OUTAGES
from ._reminders import end_timers
from ._turn import Turn, current_turn, monotonic_of
from .runtime_abstractions import IActor

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["Drainer"]

_log = logging.getLogger(__name__)

_SLICE = 32  # turns after which other actors have their chance
_RUNS = 3  # of a turn whose state others changed
_RETRIES = (0.05, 0.2, 1.0)  # seconds between commits that a store could not answer

_COMPLETED, _FAILED = RequestStatus.COMPLETED, RequestStatus.FAILED


class Drainer:
    """Runs the turns of one engine.

    Each method is for the thread that has the flag of the actor.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Begin no further turn."""
        self._stopping.set()

    @property
    def halted(self) -> bool:
        """Whether no turn may begin."""
        return self._stopping.is_set() or self._engine.stale

    # Slices.

    def drain(self, cell: Cell) -> None:
        """Run what waits for an actor, and give its flag up."""
        while True:
            try:
                more = self.run_slice(cell, _SLICE)
            except Exception:  # noqa: BLE001 - the outermost frame of the thread
                _log.exception("the turns of actor %s were interrupted", cell.actor_id)
                self.deactivate(cell)
                more = False
            if self.halted:
                cell.flag.release()  # the sweep finds what waits
                return
            if more:
                if self._engine.pool.waiting:  # to the back of the queue
                    self._engine.submit(cell)
                    return
            elif not self._engine.cells.give_up(cell):
                return

    def run_slice(self, cell: Cell, turns: int) -> bool:
        """Run at most so many turns; return whether another one was taken."""
        activation = cell.activation
        if activation is None:
            cell.signal = False
            activation = self.activate(cell)
            if activation is None:
                return False
        if activation.next is None and not self._take(cell, activation):
            return False
        while (record := activation.next) is not None:
            if turns == 0 or self.halted:
                return True
            turns -= 1
            activation.next = None
            self.run(Turn(cell, activation, record))
            if cell.activation is not activation:  # its lease was lost
                return False
        return False

    def run_until(self, cell: Cell, end: float) -> bool:
        """Run what waits for an actor till an instant; return whether a turn was run.

        The flag must not be the caller's. An actor that did not live here is let go.
        """
        if not cell.flag.acquire(blocking=False):
            cell.signal = True  # who has it looks once more
            return False
        lived = cell.activation is not None
        ran = False
        try:
            while time.monotonic() < end and self._run_one(cell):
                ran = True
        finally:
            if lived:
                self._leave(cell)
            else:
                self.retire(cell)
        return ran

    def _run_one(self, cell: Cell) -> bool:
        activation = cell.activation or self.activate(cell)
        if activation is None:
            return False
        if activation.next is None and not self._take(cell, activation):
            return False
        record, activation.next = activation.next, None
        if record is None:
            return False
        self.run(Turn(cell, activation, record))
        return True

    def _take(self, cell: Cell, activation: Activation) -> bool:
        if self.halted:
            return False
        cell.signal = False
        attempts = cell.type.options.supervision.crash_attempts
        try:
            taken = self._store.take(activation.lease, crash_attempts=attempts)
        except LeaseLostError:
            self.lost(cell)
            return False
        if taken.ended:
            self._engine.ended(taken.ended)
        activation.next = taken.record
        return taken.record is not None

    # The life of an instance.

    def activate(self, cell: Cell) -> Activation | None:
        """Claim an actor; return None if it lives elsewhere."""
        engine = self._engine
        if self.halted:
            return None
        lease = self._store.claim(engine.worker, cell.actor_id)
        if lease is None:
            return None
        context = InProcessActorContext(cell.actor_id, self._store, engine.runtime)
        activation = Activation(lease, context)
        engine.cells.activated(cell, activation)
        self.make_room()
        return activation

    def make_room(self) -> None:
        """Let the least recently used go while too many live."""
        cells, most = self._engine.cells, self._engine.options.max_live
        for _ in range(8):  # those that are in use are passed over
            cell = cells.oldest() if cells.live > most else None
            if cell is None:
                return
            if cell.flag.acquire(blocking=False):
                self.retire(cell)
            else:
                cells.touch(cell)

    def retire_idle(self) -> None:
        """Let go of the actors that nobody has used for long enough."""
        now = time.monotonic()
        cells = self._engine.cells
        every = cells.living() if len(cells) <= 2 * cells.live else cells.listed()
        for cell in every:
            live = cell.activation is not None
            idle = cell.type.options.idle_timeout if live else 1.0
            if now - cell.last_use >= idle and cell.flag.acquire(blocking=False):
                self.retire(cell)

    def doubt(self) -> None:
        """Let go of the idle actors: others may have them by now."""
        for cell in self._engine.cells.living():
            if cell.flag.acquire(blocking=False):
                self.retire(cell)

    def retire(self, cell: Cell) -> None:
        """Let an idle actor go, give its lease back, and forget it; ends the flag.

        One for which something waits is drained instead.
        """
        activation = cell.activation
        if cell.signal or (activation is not None and activation.next is not None):
            self._engine.submit(cell)
            return
        self.deactivate(cell)
        if self._engine.cells.remove(cell):
            self._engine.signal(cell.actor_id)

    def deactivate(self, cell: Cell) -> None:
        """Let an actor go, and give its lease back."""
        activation = cell.activation
        if activation is None:
            return
        end_timers(activation)
        self.dispose(activation)
        self._engine.cells.deactivated(cell)
        try:
            self._store.release(activation.lease)
        except OUTAGES:  # it ends by itself when this worker does
            _log.warning("the lease of actor %s was not given back", cell.actor_id)

    def lost(self, cell: Cell) -> None:
        """Let go of an actor that another worker has taken over."""
        activation = cell.activation
        _log.warning("another worker has taken over actor %s", cell.actor_id)
        self._engine.cells.deactivated(cell)
        if activation is not None:
            end_timers(activation)
            self.dispose(activation)

    def dispose(self, activation: Activation) -> None:
        """Let the instance go, once; what it raises is logged."""
        actor, activation.actor = activation.actor, None
        if actor is None:
            return
        try:
            actor.dispose()
        except BaseException:  # noqa: BLE001 - user code, and the actor goes anyway
            _log.exception("actor %s failed to dispose", activation.lease.actor_id)

    def _instance(self, cell: Cell, activation: Activation) -> IActor:
        actor = cell.type.factory(activation.context)
        if not isinstance(actor, IActor):
            raise TypeError(
                f"the factory of actor type {cell.type.name} gave a"
                f" {type(actor).__name__}, which is no IActor"
            )
        activation.own_loop = type(actor).run is not IActor.run
        activation.actor = actor
        return actor

    # Turns.

    def run(self, turn: Turn) -> None:
        """Run a turn to its commit; the one that was taken with it is `next`."""
        cell, context = turn.cell, turn.activation.context
        record = turn.record
        if record.deadline is not None:
            turn.deadline = monotonic_of(record.deadline, self._store.now())
        if record.attempt > 1:
            _progress.restart(self._engine, turn)
        cell.turn = context._turn = turn  # noqa: SLF001 - a friend: not for actors
        turn.caller = current_turn.get()
        outer = current_turn.set(turn)
        try:
            self._call(turn)
            while not self._commit(turn):
                told = turn.sequence > 0
                turn.begin()
                if told:
                    _progress.restart(self._engine, turn)
                self._call(turn)
        finally:
            current_turn.reset(outer)
            cell.turn = context._turn = None  # noqa: SLF001

    def _call(self, turn: Turn) -> None:
        """Let the actor handle the message; whatever escapes it ends in an answer."""
        activation = turn.activation
        context = activation.context
        try:
            actor = activation.actor
            if actor is None:
                actor = self._instance(turn.cell, activation)
            if activation.own_loop:
                actor.run(context)
            else:
                value = actor.receive(context, turn.message)
                turn.returned(context.settle(value))
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
            code = {"deadline": "invocation_timeout", "superseded": "superseded"}.get(
                reason, "cancelled"
            )
            expired = reason == "deadline"
            status = RequestStatus.EXPIRED if expired else RequestStatus.CANCELLED
            turn.end_early(failure(code), status)
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
            text = f"{type(error).__name__}: {error}"
        turn.fail(failure("actor_failed", text))
        self.dispose(turn.activation)

    def _commit(self, turn: Turn) -> bool:
        """Commit a turn; return whether it is over: else it has to be run again."""
        cell, activation = turn.cell, turn.activation
        if turn.how is not None:
            _supersede(turn)
        commit = self._commit_of(turn)
        if commit.take:
            cell.signal = False
        try:
            committed = self._committed(turn, commit)
        except LeaseLostError:
            turn.over = turn.lost = True
            self.lost(cell)
            return True
        outcome = committed.outcome
        if outcome is CommitOutcome.CONFLICT:
            if turn.runs < _RUNS:
                return False
            turn.fail(failure("state_conflict"))
            return self._commit(turn)
        turn.over = True
        taken = committed.taken
        if taken is not None:
            activation.next = taken.record
            if taken.ended:
                self._engine.ended(taken.ended)
        record = turn.record
        if outcome is CommitOutcome.COMMITTED:
            if turn.accepted:
                self._engine.over(turn)
            if turn.outbox:
                self._engine.relay()
        elif committed.record is not None:
            ended = committed.record
            turn.status, turn.data = ended.status, ended.data
            self._engine.ended((ended,))
        elif turn.accepted:
            _log.debug("the result of request %s was discarded", record.message_id)
        return True

    def _commit_of(self, turn: Turn) -> TurnCommit:
        record, options = turn.record, turn.cell.type.options
        commit = TurnCommit(
            message_id=record.message_id,
            status=turn.status or _FAILED,
            data=turn.data,
            take=not self.halted,
        )
        if not turn.accepted:
            commit.request = record
        if turn.etag is not None or turn.writes is not None:
            commit.etag = turn.etag
            commit.state = turn.state_ops()
            commit.keep = turn.keep
        if turn.outbox is not None:
            commit.outbox = turn.outbox
        if turn.reminders is not None:
            commit.reminders = turn.reminders
        if turn.steps:
            commit.progress = _progress.rest(turn)
        if turn.dead is not None:
            commit.dead = turn.dead
        if options.state_ttl is not None:
            commit.state_ttl = options.state_ttl
        commit.crash_attempts = options.supervision.crash_attempts
        return commit

    def _committed(self, turn: Turn, commit: TurnCommit) -> Committed:
        """Commit, also if the store does not answer for a moment."""
        lease = turn.activation.lease
        for seconds in _RETRIES:
            try:
                return self._store.commit(lease, commit)
            except OUTAGES as error:
                _log.warning(
                    "the turn of request %s is committed again: %s",
                    commit.message_id,
                    error,
                )
                self._stopping.wait(seconds)
        return self._store.commit(lease, commit)

    # The short way.

    def run_here(
        self, cell: Cell, request: RequestRecord
    ) -> ActorResponseMessage | None:
        """Run a turn of an idle actor on this thread, and give its flag up.

        The request is not known to the store before the commit of its turn.

        Returns:
            The response; None if the actor lives elsewhere, or was lost.
        """
        try:
            activation = cell.activation or self.activate(cell)
            if activation is None:
                return None
            turn = Turn(cell, activation, request, accepted=False)
            self.run(turn)
        finally:
            self._leave(cell)
        if isinstance(turn.crash, KeyboardInterrupt):
            raise turn.crash  # meant for the program, not for the actor
        if turn.lost:
            return None
        return turn.response()

    def _leave(self, cell: Cell) -> None:
        """Give the flag up, or hand it to the pool with what came meanwhile."""
        activation = cell.activation
        engine = self._engine
        if (
            activation is not None and activation.next is not None
        ) or engine.cells.give_up(cell):
            engine.submit(cell)


def _supersede(turn: Turn) -> None:
    """End a turn that another request has interrupted, and the store knew nothing of."""
    if turn.how is Cancellation.CANCEL:
        turn.fail(failure("cancelled"), RequestStatus.CANCELLED)
        return
    keep = turn.how is Cancellation.INTERRUPT and turn.keep
    writes, etag = turn.writes, turn.etag
    turn.fail(failure("superseded"), RequestStatus.CANCELLED)
    if keep:
        turn.writes, turn.etag = writes, etag
