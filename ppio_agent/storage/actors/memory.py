"""Actors in memory: the whole port, gone with the process, and very quick."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from attrs import evolve

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import LeaseLostError
from ppio_agent.wire.actors import ActorId, RequestStatus

from ._agenda import Agenda
from ._mailboxes import Mailboxes
from ._postings import Postings
from ._shelf import Shelf, changed, part_of
from .admission import code_of
from .port import IActorStore
from .records import (
    Accepted,
    ActorSummary,
    Cancellation,
    Cancelled,
    CommitOutcome,
    Committed,
    DeadLetter,
    Hint,
    Lease,
    Limits,
    Moved,
    ProgressItem,
    RemoveKey,
    RequestRecord,
    Retention,
    SetValue,
    StateRead,
    Subscription,
    Taken,
    TurnCommit,
    WriteResult,
)
from .waitgraph import cycle_of

__all__ = ["STATE_AGAIN", "InMemoryStateStorage"]

# Members of enums are slow to look up, and these are for each turn.
_PENDING = RequestStatus.PENDING
_COMMITTED = CommitOutcome.COMMITTED
STATE_AGAIN = 60.0  # seconds until one that cannot be deleted now is looked at again

_T = TypeVar("_T")


class _Silence:
    """The subscription to a store of which nobody else knows."""

    def close(self) -> None:
        """Do nothing."""


class InMemoryStateStorage(IActorStore):
    """Keeps everything in this process; `durable` and `shared` are False.

    Ended requests and dead letters are kept within the bounds of the `Retention` of the
    latest `purge` (its defaults before), but for the latest few. Senders who race may
    pass `Limits.pending` by one each; `Limits.mailbox` is exact. Others who use the same
    object are not told of changes: they poll.

    A forked child begins with nothing: what its parent accepted is the parent's.

    Thread safety: thread-safe.
    """

    durable = False
    shared = False

    def __init__(self) -> None:
        self._begin()
        renew_in_child(self, InMemoryStateStorage._begin)

    def _begin(self) -> None:
        self._boxes = Mailboxes()  # Has a lock for each actor.
        self._postings = Postings(self._boxes)
        self._state_ends: Agenda[ActorId] = Agenda()
        self._numbers = itertools.count(1)  # Tokens and etags: never the same again.
        self._lock = threading.Lock()  # Guards all below; taken under no other.
        self._owners: dict[ActorId, tuple[str, float]] = {}
        self._workers: dict[str, float] = {}
        self._waits: dict[ActorId, ActorId] = {}

    def now(self) -> float:
        """Return the time by the clock of this machine."""
        return time.time()

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
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelves.get(actor_id)
            if shelf is None or shelf.state is None:
                return StateRead("0" if shelf is None else shelf.etag, {})
            state = shelf.state
            if keys is None:
                state = state.copy()
            else:  # a turn reads some of a conversation, however long that is
                state = {key: state[key] for key in keys if key in state}
            whole = StateRead(shelf.etag, state)
        if len(state) < 2 and not prefix and after is None and limit:
            return whole
        return part_of(whole, None, prefix, after, limit)

    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch from outside a turn; see `IActorStore.write`."""
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelf(actor_id)
            success = etag is None or etag == shelf.etag
            if success and ops:
                self._change(shelf, ops)
            forgotten = self._boxes.tidy(shelf)
            return WriteResult("0" if forgotten else shelf.etag, success)

    # Requests.

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others; see `IActorStore.accept`."""
        with self._boxes.lock_of(request.actor_id):
            try:
                answer = self._boxes.accept(request, limits)
            except BaseException:
                self._boxes.mend(request.actor_id)
                raise
        return self._settled(answer)

    def get_request(self, actor_id: ActorId, message_id: str) -> RequestRecord | None:
        """Return a request, or None; see `IActorStore.get_request`."""
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelves.get(actor_id)
            record = None if shelf is None else shelf.find(message_id)
            return None if record is None else self._boxes.seen(record)

    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """End a request that waits, or note how; see `IActorStore.cancel`."""
        with self._boxes.lock_of(actor_id):
            answer = self._boxes.cancel(actor_id, message_id, how)
        return self._settled(answer)

    def read_progress(
        self, actor_id: ActorId, message_id: str, after: int, limit: int
    ) -> list[ProgressItem]:
        """Return steps of a log; see `IActorStore.read_progress`."""
        with self._boxes.lock_of(actor_id):
            log = self._boxes.archive.logs.get((actor_id, message_id))
            return [] if log is None else log.after(after, limit)

    # Turns.

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelf(actor_id)
            if not self._is_free(shelf, worker, time.time()):
                return None
            shelf.worker, shelf.token = worker, next(self._numbers)
            return Lease(actor_id, worker, shelf.token)

    def release(self, lease: Lease) -> None:
        """Give a lease back; see `IActorStore.release`."""
        with self._boxes.lock_of(lease.actor_id), suppress(LeaseLostError):
            self._boxes.hand_back(self._leased(lease))

    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn of the oldest request; see `IActorStore.take`."""
        with self._boxes.lock_of(lease.actor_id):
            shelf = self._leased(lease)
            try:
                taken = self._boxes.take(shelf, time.time(), crash_attempts)
            except BaseException:
                self._boxes.mend(lease.actor_id)
                raise
        return self._settled(taken)

    def append_progress(
        self, lease: Lease, message_id: str, items: Sequence[ProgressItem]
    ) -> None:
        """Append steps to a log; see `IActorStore.append_progress`."""
        with self._boxes.lock_of(lease.actor_id):
            record = self._leased(lease).find(message_id)
            if record is not None and record.status is _PENDING:
                self._boxes.log(record).append(items)

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves; see `IActorStore.commit`."""
        with self._boxes.lock_of(lease.actor_id):
            shelf, boxes = self._leased(lease), self._boxes
            try:
                now = time.time()
                record = shelf.find(turn.message_id)
                queued = record is not None
                if record is None:
                    record = turn.request
                if record is None or record.status is not _PENDING:
                    done = Committed(CommitOutcome.ENDED, shelf.etag, record)
                elif record.cancel is not None:
                    done = self._commit_cancelled(
                        shelf, record, record.cancel, turn, now
                    )
                elif turn.etag is not None and turn.etag != shelf.etag:
                    return Committed(CommitOutcome.CONFLICT, shelf.etag)
                else:
                    self._keep_turn(shelf, record, turn, now)
                    if queued:
                        boxes.end(shelf, record, turn.status, turn.data, now)
                    else:
                        boxes.finish(shelf, record, turn.status, turn.data, now)
                    done = Committed(_COMMITTED, shelf.etag)
                if turn.take:
                    done.taken = boxes.take(shelf, now, turn.crash_attempts)
            except BaseException:
                boxes.mend(lease.actor_id)
                raise
        return self._settled(done)

    def _commit_cancelled(
        self,
        shelf: Shelf,
        record: RequestRecord,
        how: Cancellation,
        turn: TurnCommit,
        now: float,
    ) -> Committed:
        kept = turn.keep and how is Cancellation.INTERRUPT
        if kept and turn.state and turn.etag in (None, shelf.etag):
            self._change(shelf, turn.state)
        shelf.last_turn = now
        ended = self._boxes.end_as(
            shelf, record, RequestStatus.CANCELLED, code_of(how), now
        )
        return Committed(CommitOutcome.CANCELLED, shelf.etag, ended)

    def _keep_turn(
        self, shelf: Shelf, record: RequestRecord, turn: TurnCommit, now: float
    ) -> None:
        shelf.last_turn = now
        if turn.state:
            self._change(shelf, turn.state)
        if turn.state_ttl is not None and self._has_state(shelf):
            self._state_ends.set(shelf.actor_id, now + turn.state_ttl)
        elif self._state_ends:
            self._state_ends.drop(shelf.actor_id)
        for out in turn.outbox:
            self._postings.send(out, now)
        for change in turn.reminders:
            self._postings.change(shelf, change)
        if turn.progress:
            self._boxes.log(record).append(turn.progress)
        if turn.dead is not None:
            dead = evolve(record, status=turn.status, data=turn.data, finished_at=now)
            self._boxes.bury(dead, turn.dead, now)

    def wait(self, edges: Sequence[tuple[ActorId, ActorId]]) -> list[ActorId]:
        """Note who waits for whom; see `IActorStore.wait`."""
        with self._lock:
            self._waits.update(edges)
            return cycle_of(*edges[-1], self._waits.get) if edges else []

    def unwait(self, actor_ids: Sequence[ActorId]) -> None:
        """Forget for whom these wait."""
        with self._lock:
            for actor_id in actor_ids:
                self._waits.pop(actor_id, None)

    # Workers and time.

    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker; see `IActorStore.heartbeat`."""
        with self._lock:
            now = time.time()
            alive = self._workers.get(worker, math.inf) > now
            self._workers[worker] = now + ttl
            return alive

    def retire(self, worker: str) -> None:
        """Give back all leases of a worker, and forget it."""
        with self._lock:
            self._workers.pop(worker, None)
        for shelf in list(self._boxes.shelves.values()):
            with self._boxes.lock_of(shelf.actor_id):
                if shelf.worker == worker:
                    self._boxes.hand_back(shelf)

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns the worker may run; see `IActorStore.ready`."""
        now = time.time()
        found: dict[ActorId, None] = {}
        for record in list(self._boxes.pending):
            shelf = self._boxes.shelves.get(record.actor_id)
            if shelf is not None and self._is_free(shelf, worker, now):
                found[record.actor_id] = None
                if len(found) >= limit:
                    break
        return list(found)

    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted for turns of a worker."""
        found = []
        for record in list(self._boxes.pending):
            if record.cancel is not None:
                shelf = self._boxes.shelves.get(record.actor_id)
                if shelf is not None and shelf.worker == worker:
                    found.append((record.actor_id, record.message_id, record.cancel))
        return found

    def relay(self, now: float, limit: int) -> Moved:
        """Move outgoing requests into mailboxes; see `IActorStore.relay`."""
        return self._postings.relay(now, limit)

    def fire_reminders(self, now: float, limit: int) -> Moved:
        """Make requests of reminders; see `IActorStore.fire_reminders`."""
        return self._postings.fire(now, limit)

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End requests whose deadline has passed; see `IActorStore.expire`."""
        return self._settled(self._boxes.expire(now, limit))

    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept, from now on too; see `IActorStore.purge`."""
        self._boxes.archive.retention = retention
        count = self._boxes.archive.purge(now, limit)
        before = now - retention.dead_seconds
        count += self._boxes.dead.shorten(limit, before, retention.dead_letters)
        count += self._purge_states(now, limit)
        return count + self._purge_owners(now, limit, retention)

    def _purge_states(self, now: float, limit: int) -> int:
        for count in range(limit):
            actor_id = self._state_ends.first(now)
            if actor_id is None:
                return count
            self._end_state(actor_id, now)
        return limit

    def _end_state(self, actor_id: ActorId, now: float) -> None:
        """Delete a state whose time has come, unless a turn was committed meanwhile."""
        with self._boxes.lock_of(actor_id):
            if self._is_spent(actor_id, now):
                shelf = self._boxes.shelf(actor_id)
                if shelf.state is not None:
                    self._change(shelf, [RemoveKey(key) for key in shelf.state])
                self._boxes.tidy(shelf)

    def _is_spent(self, actor_id: ActorId, now: float) -> bool:
        """Forget when a state ends; return whether that is now."""
        if not self._state_ends.take(actor_id, now):
            return False
        shelf = self._boxes.shelves.get(actor_id)
        if shelf is None or shelf.queue is None:
            return True
        self._state_ends.set(actor_id, now + STATE_AGAIN)
        return False

    def _purge_owners(self, now: float, limit: int, retention: Retention) -> int:
        with self._lock:
            # In the order of the latest look, so that each gets its turn.
            page = list(itertools.islice(self._owners.items(), limit))
            for looked, (actor_id, (owner, at)) in enumerate(page):
                if at >= now - retention.seconds:
                    return looked
                del self._owners[actor_id]
                if actor_id in self._boxes.shelves:
                    self._owners[actor_id] = owner, now
        return len(page)

    # For people.

    def dead_letters(self, limit: int, after: str | None = None) -> list[DeadLetter]:
        """Return dead letters, the oldest first; see `IActorStore.dead_letters`."""
        return self._boxes.dead.listed(limit, after)

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return a dead letter, or None."""
        return self._boxes.dead.get(id)

    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""
        return self._boxes.dead.discard(id)

    def inspect(self, actor_id: ActorId) -> ActorSummary | None:
        """Return what is known of an actor; see `IActorStore.inspect`."""
        owner = self.owner(actor_id)
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelves.get(actor_id)
            if shelf is None:
                if owner is None:
                    return None
                shelf = Shelf(actor_id)
            running = shelf.running()
            return ActorSummary(
                actor_id,
                shelf.etag,
                shelf.worker,
                shelf.token,
                owner,
                queued=shelf.queued(),
                running=None if running is None else running.message_id,
                last_turn=shelf.last_turn,
                reminders=tuple(shelf.reminders or ()),
            )

    def own(self, actor_id: ActorId, owner: str) -> str:
        """Make somebody the owner of an actor that has none; see `IActorStore.own`."""
        with self._lock:
            return self._owners.setdefault(actor_id, (owner, time.time()))[0]

    def owner(self, actor_id: ActorId) -> str | None:
        """Return the owner of an actor; None if it has none."""
        with self._lock:
            return self._owners.get(actor_id, (None,))[0]

    def delete(self, lease: Lease) -> bool:
        """Remove an actor with all it has; see `IActorStore.delete`."""
        actor_id = lease.actor_id
        with self._boxes.lock_of(actor_id):
            shelf = self._leased(lease)
            found = not shelf.is_bare()
            self._boxes.delete(shelf, time.time())
            self._postings.forget(shelf)
        self._state_ends.drop(actor_id)
        with self._lock:
            found |= self._owners.pop(actor_id, None) is not None
        return self._settled(self._boxes.dead.discard_of(actor_id) or found)

    def pending(self) -> int:
        """Return how many requests wait or run."""
        return len(self._boxes.pending)

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:  # noqa: ARG002 - nobody else is there to be told of
        """Return a subscription that tells nothing: no other process is here."""
        return _Silence()

    def close(self) -> None:
        """Do nothing: what it keeps goes with the object."""

    def _settled(self, answer: _T) -> _T:
        """Return this, after a look at what has ended; under no lock."""
        if self._boxes.archive.urgent:
            self._boxes.archive.settle()
        return answer

    # Steps of the above, under the lock of the actor.

    def _has_state(self, shelf: Shelf) -> bool:
        return shelf.state is not None

    def _is_free(self, shelf: Shelf, worker: str, now: float) -> bool:
        owner = shelf.worker
        if owner is None or owner == worker:
            return True
        return self._workers.get(owner, 0.0) <= now

    def _leased(self, lease: Lease) -> Shelf:
        shelf = self._boxes.shelves.get(lease.actor_id)
        if shelf is None or shelf.token != lease.token or shelf.worker != lease.worker:
            raise LeaseLostError(
                f"worker {lease.worker} has no lease of actor {lease.actor_id} any more:"
                " claim it again",
                actor_id=str(lease.actor_id),
            )
        return shelf

    def _change(self, shelf: Shelf, ops: Sequence[SetValue | RemoveKey]) -> None:
        shelf.state = changed(shelf.state or {}, ops) or None
        shelf.etag = str(next(self._numbers))
