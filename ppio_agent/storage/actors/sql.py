"""Actors in an SQL database: the port, on whatever runs transactions."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from ppio_agent.wire.actors import ActorId

from . import sql_letters as letters
from . import sql_logs as logs
from . import sql_people as people
from . import sql_requests as requests
from . import sql_state as state
from . import sql_turns as turns
from . import sql_upkeep as upkeep
from . import sql_workers as workers
from .port import IActorStore
from .records import (
    Accepted,
    ActorSummary,
    Cancellation,
    Cancelled,
    Committed,
    DeadLetter,
    Lease,
    Limits,
    Moved,
    ProgressItem,
    RemoveKey,
    RequestRecord,
    Retention,
    SetValue,
    StateRead,
    Taken,
    TurnCommit,
    WriteResult,
)
from .sql_tables import Session
from .waitgraph import cycle_of

__all__ = ["SqlActorStore"]

_T = TypeVar("_T")

_COUNTED_FOR = 1.0
_AT_ONCE = 500


class SqlActorStore(IActorStore):
    """Keeps actors in a database that `_write` and `_read` run transactions on.

    Thread safety: thread-safe, if these two are.
    """

    durable = True
    shared = True

    def __init__(self) -> None:
        # How many requests are pending, as it was counted last, and what this process
        # has accepted since then. Written within transactions that write; what comes
        # to be wrong as two run at once is right at the next count.
        self._pending = 0
        self._counted_at = 0.0

    @abstractmethod
    def _write(self, work: Callable[[Session], _T]) -> _T:
        """Run `work` in a transaction that may write, and return what it returned.

        It may be run again, as another one came between. If it fails nothing is kept.
        """

    @abstractmethod
    def _read(self, work: Callable[[Session], _T]) -> _T:
        """Run `work`, which only reads, on the data of one moment."""

    # State.

    def read(
        self,
        actor_id: ActorId,
        keys: Sequence[str] | None = None,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
    ) -> StateRead:
        """Read a part of the state; see `IActorStore.read`."""
        return self._read(
            lambda session: state.read(
                session, actor_id, keys, prefix=prefix, after=after, limit=limit
            )
        )

    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch from outside a turn; see `IActorStore.write`."""
        now = self.now()
        return self._write(lambda s: state.write(s, now, actor_id, ops, etag))

    # Requests.

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others; see `IActorStore.accept`."""
        now = self.now()
        return self._write(
            lambda s: requests.accept(s, now, request, limits, self._count)
        )

    def _count(self, session: Session, most: int) -> int:
        """Return how many requests are pending, one more of which is about to be.

        They are counted once in a second, and whenever it seems that no more may be.
        """
        now = time.monotonic()
        if self._pending >= most or now - self._counted_at > _COUNTED_FOR:
            self._pending = requests.count_pending(session)
            self._counted_at = now
        self._pending += 1
        return self._pending - 1

    def get_request(self, actor_id: ActorId, message_id: str) -> RequestRecord | None:
        """Return a request, or None; see `IActorStore.get_request`."""
        return self._read(lambda s: requests.find(s, actor_id, message_id))

    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """End a request that waits, or note how; see `IActorStore.cancel`."""
        now = self.now()
        return self._write(lambda s: requests.cancel(s, now, actor_id, message_id, how))

    def read_progress(
        self, actor_id: ActorId, message_id: str, after: int, limit: int
    ) -> list[ProgressItem]:
        """Return steps of a log; see `IActorStore.read_progress`."""
        return self._read(lambda s: logs.read(s, actor_id, message_id, after, limit))

    # Turns.

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        # The time is that at which the others have ended that it waited for.
        return self._write(lambda s: turns.claim(s, self.now(), worker, actor_id))

    def release(self, lease: Lease) -> None:
        """Give a lease back; see `IActorStore.release`."""
        self._write(lambda s: turns.release(s, lease))

    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn of the oldest request; see `IActorStore.take`."""
        now = self.now()
        return self._write(lambda s: turns.take(s, now, lease, crash_attempts))

    def append_progress(
        self, lease: Lease, message_id: str, items: Sequence[ProgressItem]
    ) -> None:
        """Append steps to a log; see `IActorStore.append_progress`."""
        self._write(lambda s: turns.append(s, lease, message_id, items))

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves; see `IActorStore.commit`."""
        now = self.now()
        return self._write(lambda s: turns.commit(s, now, lease, turn))

    def wait(self, edges: Sequence[tuple[ActorId, ActorId]]) -> list[ActorId]:
        """Note who waits for whom; see `IActorStore.wait`."""
        if not edges:
            return []
        self._write(lambda s: workers.wait(s, edges))
        # Only now: of two who close a cycle at once the second one sees both pairs.
        return self._read(
            lambda s: cycle_of(*edges[-1], lambda waiter: workers.waits_for(s, waiter))
        )

    def unwait(self, actor_ids: Sequence[ActorId]) -> None:
        """Forget for whom these wait."""
        self._write(lambda s: workers.unwait(s, actor_ids))

    # Workers and time.

    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker; see `IActorStore.heartbeat`."""
        return self._write(lambda s: workers.heartbeat(s, self.now(), worker, ttl))

    def retire(self, worker: str) -> None:
        """Give back all leases of a worker, and forget it."""
        while self._write(lambda s: workers.retire(s, worker, _AT_ONCE)) == _AT_ONCE:
            pass

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns the worker may run; see `IActorStore.ready`."""
        now = self.now()
        return self._read(lambda s: workers.ready(s, now, worker, limit))

    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted for turns of a worker."""
        return self._read(lambda s: workers.cancellations(s, worker))

    def relay(self, now: float, limit: int) -> Moved:
        """Move outgoing requests into mailboxes; see `IActorStore.relay`."""
        due = self._read(lambda s: upkeep.due_parcels(s, now, limit))
        got = [self._write(partial(upkeep.deliver, now=now, seq=seq)) for seq in due]
        left = self._read(upkeep.count_parcels)
        return Moved([*dict.fromkeys(filter(None, got))], len(due) == limit, left)

    def fire_reminders(self, now: float, limit: int) -> Moved:
        """Make requests of reminders; see `IActorStore.fire_reminders`."""
        due = self._read(lambda s: upkeep.due_reminders(s, now, limit))
        got = [
            actor_id
            for actor_id, name in due
            if self._write(partial(upkeep.fire, now=now, actor_id=actor_id, name=name))
        ]
        return Moved([*dict.fromkeys(got)], len(due) == limit)

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End requests whose deadline has passed; see `IActorStore.expire`."""
        due = self._read(lambda s: upkeep.expired(s, now, limit))
        ended = [
            self._write(
                partial(
                    upkeep.expire, now=now, actor_id=actor_id, message_id=message_id
                )
            )
            for actor_id, message_id in due
        ]
        return [record for record in ended if record is not None]

    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept; see `IActorStore.purge`."""
        # What has to be counted for it is read, which keeps nobody from writing.
        spare = self._read(lambda s: upkeep.spare(s, now, limit, retention))
        count = 0
        pieces: tuple[tuple[Callable[..., object], Sequence[Any]], ...] = (
            (upkeep.forget_requests, spare.requests),
            (upkeep.evict, spare.payloads),
            (upkeep.forget_letters, spare.letters),
            (partial(upkeep.forget_owners, now=now), spare.owners),
        )
        for forget, found in pieces:
            if found:
                self._write(partial(forget, found=found))
                count += len(found)
        for actor in spare.states:
            self._write(partial(upkeep.forget_state, now=now, actor=actor))
            count += 1
        for worker in spare.workers:
            count += self._write(
                partial(workers.forget_gone, now=now, worker=worker, limit=limit)
            )
        return count

    # For people.

    def dead_letters(self, limit: int, after: str | None = None) -> list[DeadLetter]:
        """Return dead letters, the oldest first; see `IActorStore.dead_letters`."""
        return self._read(lambda s: letters.page(s, limit, after))

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return a dead letter, or None."""
        return self._read(lambda s: letters.find(s, id))

    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""
        return self._write(lambda s: letters.discard(s, id))

    def inspect(self, actor_id: ActorId) -> ActorSummary | None:
        """Return what is known of an actor; see `IActorStore.inspect`."""
        now = self.now()
        return self._read(lambda s: people.inspect(s, now, actor_id))

    def own(self, actor_id: ActorId, owner: str) -> str:
        """Make somebody the owner of an actor that has none; see `IActorStore.own`."""
        now = self.now()
        return self._write(lambda s: people.own(s, now, actor_id, owner))

    def owner(self, actor_id: ActorId) -> str | None:
        """Return the owner of an actor; None if it has none."""
        return self._read(lambda s: people.owner(s, actor_id))

    def delete(self, lease: Lease) -> bool:
        """Remove an actor with all it has; see `IActorStore.delete`."""
        now = self.now()
        return self._write(lambda s: people.delete(s, now, lease))

    def pending(self) -> int:
        """Return how many requests wait or run."""
        return self._read(requests.count_pending)
