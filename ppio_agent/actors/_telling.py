"""The parts of an engine that tell what they do, in place of those that do not.

An engine without telemetry has nothing of this module, and so pays nothing for it. With
it the engine's store is a `TellingStore` and its drainer a `TellingDrainer`: the store
knows how each request ended, once, and the drainer begins all turns.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Accepted,
    Cancellation,
    Cancelled,
    CommitOutcome,
    Committed,
    Lease,
    Limits,
    RequestRecord,
    Taken,
    TurnCommit,
)
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_own

from ._cells import Cell
from ._drain import Drainer
from ._turn import Turn, current_turn
from .telemetry import ActorTelemetry, Count

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["TellingDrainer", "TellingStore"]

# A request that ended so without a turn is a dead letter, for this reason.
_DEAD = {RequestStatus.FAILED: "crashed", RequestStatus.REJECTED: "dropped"}
_ERRORS = {RequestStatus.FAILED, RequestStatus.EXPIRED}

_run_by_sender: contextvars.ContextVar[str] = contextvars.ContextVar(
    "ppio_agent_actor_run_by_sender", default=""
)
"""Id of the accepted request that this thread has sent and may run itself."""


@runtime_checkable
class _Batching(Protocol):
    """A store that makes the writes of several threads in one transaction."""

    def on_batch(self, told: Callable[[int], object]) -> None: ...


class TellingStore:
    """A store, and tells of what is done with it.

    What it has nothing to tell of is the store's own method.

    Args:
        store: It.
        telemetry: What is told.
    """

    def __init__(self, store: IActorStore, telemetry: ActorTelemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        if isinstance(store, _Batching):
            store.on_batch(telemetry.batch)

    @classmethod
    def of(cls, store: IActorStore, telemetry: ActorTelemetry) -> IActorStore:
        """Return a store that tells."""
        return cast("IActorStore", cls(store, telemetry))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Accept a request; see `IActorStore.accept`."""
        accepted = self._store.accept(request, limits)
        self._ended(accepted.ended)
        return accepted

    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """Cancel a request; see `IActorStore.cancel`."""
        outcome = self._store.cancel(actor_id, message_id, how)
        if outcome is Cancelled.CANCELLED:
            method = self._method(actor_id, message_id)
            self._end(actor_id, method, RequestStatus.CANCELLED)
        return outcome

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End what is late; see `IActorStore.expire`."""
        records = self._store.expire(now, limit)
        self._ended(records)
        return records

    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn; see `IActorStore.take`."""
        try:
            taken = self._store.take(lease, crash_attempts=crash_attempts)
        except LeaseLostError:
            self._telemetry.count(Count.LEASES_LOST, lease.actor_id)
            raise
        self._ended(taken.ended)
        return taken

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """Commit a turn; see `IActorStore.commit`."""
        actor_id = lease.actor_id
        method = self._method(actor_id, turn.message_id)
        try:
            with self._telemetry.commit(actor_id, turn) as ending:
                committed = self._store.commit(lease, turn)
                ending.conflict = committed.outcome is CommitOutcome.CONFLICT
        except LeaseLostError:
            self._telemetry.count(Count.LEASES_LOST, actor_id)
            raise
        if committed.taken is not None:
            self._ended(committed.taken.ended)
        if committed.outcome is CommitOutcome.CONFLICT:
            return committed
        if committed.outcome is CommitOutcome.COMMITTED:
            self._end(actor_id, method, turn.status)
            if turn.dead is not None:
                self._bury(actor_id, method, turn.dead)
            return committed
        if committed.outcome is CommitOutcome.CANCELLED:
            self._end(actor_id, method, RequestStatus.CANCELLED)
        if turn.status is RequestStatus.COMPLETED:
            self._telemetry.count(Count.DISCARDED, actor_id, method)
        return committed

    def _method(self, actor_id: ActorId, message_id: str) -> str:
        """Return the method of a request; the turn of this thread has it mostly."""
        turn = current_turn.get()
        if turn is not None and turn.record.message_id == message_id:
            return turn.record.method
        record = self._store.get_request(actor_id, message_id)
        return "" if record is None else record.method

    def _ended(self, records: Iterable[RequestRecord]) -> None:
        for record in records:
            self._end(record.actor_id, record.method, record.status)
            reason = _DEAD.get(record.status)
            if reason is not None:
                self._bury(record.actor_id, record.method, reason)

    def _end(self, actor_id: ActorId, method: str, status: RequestStatus) -> None:
        self._telemetry.count(Count.REQUESTS, actor_id, method, why=status.value)

    def _bury(self, actor_id: ActorId, method: str, reason: str) -> None:
        self._telemetry.count(Count.DEAD_LETTERS, actor_id, method, why=reason)


class TellingDrainer(Drainer):
    """A drainer, and tells of the turns that it runs."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._telemetry = cast("ActorTelemetry", engine.telemetry)

    def run(self, turn: Turn) -> None:
        """Run a turn to its commit; see `Drainer.run`."""
        self._tell(turn, super().run)

    def call(self, turn: Turn) -> None:
        """Let the actor handle the message; see `Drainer.call`."""
        if turn.outer is None:
            super().call(turn)
            return
        # It has no commit of its own: this is all of the turn.
        self._tell(turn, super().call)
        status = turn.status or RequestStatus.FAILED
        self._telemetry.count(
            Count.REQUESTS, turn.cell.actor_id, turn.record.method, why=status.value
        )

    def run_first(self, cell: Cell, message_id: str, held: list[object]) -> None:
        """Run a request if it is the next one; see `Drainer.run_first`."""
        outer = _run_by_sender.set(message_id)
        try:
            super().run_first(cell, message_id, held)
        finally:
            _run_by_sender.reset(outer)

    def _tell(self, turn: Turn, run: Callable[[Turn], None]) -> None:
        record, telemetry = turn.record, self._telemetry
        caller_runs = not turn.accepted or _run_by_sender.get() == record.message_id
        with ExitStack() as told:
            endings = []
            if not turn.accepted:  # it is sent by being run
                endings.append(told.enter_context(telemetry.sending(record)))
            endings.append(
                told.enter_context(telemetry.turn(record, caller_runs=caller_runs))
            )
            run(turn)
            for ending in endings:
                ending.status, ending.error = _end_of(turn)


def _end_of(turn: Turn) -> tuple[RequestStatus | None, str | None]:
    """Return how the request of a turn ended, and by which error."""
    if turn.lost:  # another turn will end it
        return RequestStatus.PENDING, None
    if turn.status not in _ERRORS:
        return turn.status, None
    if turn.crash is not None:
        return turn.status, type(turn.crash).__qualname__
    # None, if it had ended long before and is no longer kept.
    data = decode_own(turn.data) if turn.data else None
    code = data.get("code") if isinstance(data, dict) else None
    return turn.status, code if isinstance(code, str) else "failed"
