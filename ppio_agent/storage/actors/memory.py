"""Actors in memory: the whole port, gone with the process, and very quick."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from attrs import evolve

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import LeaseLostError
from ppio_agent.wire.actors import ActorId, RequestStatus

from ._agenda import Agenda
from ._archive import Archive, DeadLetters
from ._shelf import Log, Shelf
from .admission import admit, code_of, end_unbegun
from .ends import failure
from .port import IActorStore
from .records import (
    Acceptance,
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
    Outgoing,
    ProgressItem,
    Reminder,
    RemoveKey,
    RequestRecord,
    Retention,
    SetReminder,
    SetValue,
    StateRead,
    Subscription,
    Taken,
    TurnCommit,
    WriteResult,
)
from .schedule import GIVE_UP_AFTER, retry_delay, tick_of, tick_request
from .waitgraph import cycle_of

__all__ = ["InMemoryStateStorage"]

# Members of enums are slow to look up, and these are for each turn.
_PENDING = RequestStatus.PENDING
_COMMITTED = CommitOutcome.COMMITTED
_NEW = Accepted(Acceptance.NEW)
_NOTHING = Taken()
_DUE_STATE_AGAIN = 60.0


class _Parcel:
    """An outgoing request on its way."""

    __slots__ = ("mailbox", "request", "since", "tries")

    def __init__(self, out: Outgoing, since: float) -> None:
        self.request, self.mailbox = out.request, out.mailbox
        self.since, self.tries = since, 0


class _Silence:
    """The subscription to a store of which nobody else knows."""

    def close(self) -> None:
        """Do nothing."""


class InMemoryStateStorage(IActorStore):
    """Keeps everything in this process; `durable` and `shared` are False.

    Ended requests and dead letters are kept within the bounds of the `Retention` of the
    latest `purge` (its defaults before), at every moment. Others who use the same
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
        # Guards all below. One for all actors: a step takes a microsecond, and many
        # touch what belongs to all, such as the count of what is pending.
        self._lock = threading.Lock()
        self._shelves: dict[ActorId, Shelf] = {}
        self._busy: dict[Shelf, None] = {}  # Those with pending requests.
        self._pending = 0
        self._noted: dict[RequestRecord, Cancellation] = {}
        self._deadlines: Agenda[RequestRecord] = Agenda()
        self._outbox: Agenda[_Parcel] = Agenda()
        self._alarms: Agenda[tuple[Shelf, str]] = Agenda()
        self._state_ends: Agenda[Shelf] = Agenda()
        self._archive = Archive(self._replace_known)
        self._dead = DeadLetters()
        self._owners: dict[ActorId, tuple[str, float]] = {}
        self._workers: dict[str, float] = {}
        self._waits: dict[ActorId, ActorId] = {}
        self._numbers = itertools.count(1)  # Tokens and etags: never the same again.

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
        with self._lock:
            shelf = self._shelves.get(actor_id)
            if shelf is None or shelf.state is None:
                return StateRead("0" if shelf is None else shelf.etag, {})
            etag, state = shelf.etag, shelf.state
            wanted = state.keys() if keys is None else state.keys() & set(keys)
            found = [key for key in wanted if key.startswith(prefix)]
            values = {key: state[key] for key in found}
        order = sorted(key for key in found if after is None or key > after)
        page = order[:limit]
        more = page[-1] if page and len(order) > limit else None
        return StateRead(etag, {key: values[key] for key in page}, more)

    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch from outside a turn; see `IActorStore.write`."""
        with self._lock:
            shelf = self._shelf(actor_id)
            success = etag is None or etag == shelf.etag
            if success and ops:
                self._change(shelf, ops)
            result = WriteResult(shelf.etag, success)
            self._tidy(shelf)
            return result

    # Requests.

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others; see `IActorStore.accept`."""
        with self._lock:
            shelf = self._shelf(request.actor_id)
            if shelf.known is not None:
                known = shelf.find(request.message_id)
                if known is not None:
                    return self._known(known, request)
            if shelf.queue is None and self._pending < limits.pending:
                self._enqueue(shelf, request)
                return _NEW
            return self._accept_behind(shelf, request, limits)

    def _known(self, known: RequestRecord, request: RequestRecord) -> Accepted:
        told = known.digest and request.digest
        same = not told or known.digest == request.digest
        outcome = Acceptance.DUPLICATE if same else Acceptance.CONFLICT
        return Accepted(outcome, self._seen(known))

    def _accept_behind(
        self, shelf: Shelf, request: RequestRecord, limits: Limits
    ) -> Accepted:
        waiting, running = shelf.waiting(), shelf.running()
        outcome, leave = admit(
            len(waiting), int(running is not None), self._pending, limits
        )
        if outcome is not Acceptance.NEW:
            self._tidy(shelf)
            busy = outcome is Acceptance.BUSY and shelf.queue
            return Accepted(outcome, self._seen(shelf.queue[0]) if busy else None)
        now = time.time()
        instead = limits.on_busy in {"interrupt", "rollback"}
        end = self._supersede if instead else self._drop
        ended = [end(shelf, record, now) for record in waiting[:leave]]
        self._enqueue(shelf, request)
        if not instead or running is None:
            return Accepted(outcome, ended=ended)
        self._note(running, Cancellation(limits.on_busy))
        return Accepted(outcome, ended=ended, running=running.message_id)

    def get_request(self, actor_id: ActorId, message_id: str) -> RequestRecord | None:
        """Return a request, or None; see `IActorStore.get_request`."""
        with self._lock:
            shelf = self._shelves.get(actor_id)
            record = None if shelf is None else shelf.find(message_id)
            return None if record is None else self._seen(record)

    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """End a request that waits, or note how; see `IActorStore.cancel`."""
        with self._lock:
            shelf = self._shelves.get(actor_id)
            record = None if shelf is None else shelf.find(message_id)
            if shelf is None or record is None:
                return Cancelled.NOT_FOUND
            if record.status is not _PENDING:
                return Cancelled.TERMINAL
            if record.attempt:
                self._note(record, how)
                return Cancelled.REQUESTED
            self._end_as(
                shelf, record, RequestStatus.CANCELLED, "cancelled", time.time()
            )
            return Cancelled.CANCELLED

    def read_progress(
        self, actor_id: ActorId, message_id: str, after: int, limit: int
    ) -> list[ProgressItem]:
        """Return steps of a log; see `IActorStore.read_progress`."""
        with self._lock:
            log = self._archive.logs.get((actor_id, message_id))
            return [] if log is None else log.after(after, limit)

    # Turns.

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        with self._lock:
            shelf = self._shelf(actor_id)
            if not self._is_free(shelf, worker, time.time()):
                return None
            shelf.worker, shelf.token = worker, next(self._numbers)
            return Lease(actor_id, worker, shelf.token)

    def release(self, lease: Lease) -> None:
        """Give a lease back; see `IActorStore.release`."""
        with self._lock:
            shelf = self._shelves.get(lease.actor_id)
            if shelf is not None and self._is_valid(shelf, lease):
                shelf.worker = None
                self._tidy(shelf)

    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn of the oldest request; see `IActorStore.take`."""
        with self._lock:
            return self._take(self._leased(lease), time.time(), crash_attempts)

    def append_progress(
        self, lease: Lease, message_id: str, items: Sequence[ProgressItem]
    ) -> None:
        """Append steps to a log; see `IActorStore.append_progress`."""
        with self._lock:
            record = self._leased(lease).find(message_id)
            if record is not None and record.status is _PENDING:
                self._append(record, items)

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves; see `IActorStore.commit`."""
        with self._lock:
            shelf = self._leased(lease)
            now = time.time()
            record = shelf.find(turn.message_id) if shelf.known is not None else None
            queued = record is not None
            if record is None:
                record = turn.request
            if record is None or record.status is not _PENDING:
                done = Committed(CommitOutcome.ENDED, shelf.etag, record)
            elif queued and self._noted and record in self._noted:
                done = self._commit_cancelled(shelf, record, turn, now)
            elif turn.etag is not None and turn.etag != shelf.etag:
                return Committed(CommitOutcome.CONFLICT, shelf.etag)
            else:
                self._keep_turn(shelf, record, turn, now)
                if queued:
                    self._unqueue(shelf, record)
                else:
                    shelf.keep(record)
                self._finish(record, turn.status, turn.data, now)
                done = Committed(_COMMITTED, shelf.etag)
            if turn.take:
                done.taken = self._take(shelf, now, turn.crash_attempts)
            return done

    def _commit_cancelled(
        self, shelf: Shelf, record: RequestRecord, turn: TurnCommit, now: float
    ) -> Committed:
        how = self._noted[record]
        kept = turn.keep and how is Cancellation.INTERRUPT
        if kept and turn.state and turn.etag in (None, shelf.etag):
            self._change(shelf, turn.state)
        shelf.last_turn = now
        ended = self._end_as(shelf, record, RequestStatus.CANCELLED, code_of(how), now)
        return Committed(CommitOutcome.CANCELLED, shelf.etag, ended)

    def _keep_turn(
        self, shelf: Shelf, record: RequestRecord, turn: TurnCommit, now: float
    ) -> None:
        shelf.last_turn = now
        if turn.state:
            self._change(shelf, turn.state)
        if turn.state_ttl is not None:
            if shelf.state is not None:
                self._state_ends.set(shelf, now + turn.state_ttl)
        elif self._state_ends:
            self._state_ends.drop(shelf)
        for out in turn.outbox:
            due = max(now, out.not_before)
            self._outbox.set(_Parcel(out, due), due)
        for change in turn.reminders:
            self._change_reminder(shelf, change)
        if turn.progress:
            self._append(record, turn.progress)
        if turn.dead is not None:
            dead = evolve(record, status=turn.status, data=turn.data, finished_at=now)
            self._bury(dead, turn.dead, now)

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
            for shelf in list(self._shelves.values()):
                if shelf.worker == worker:
                    shelf.worker = None
                    self._tidy(shelf)

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns the worker may run; see `IActorStore.ready`."""
        with self._lock:
            now = time.time()
            found = (s.actor_id for s in self._busy if self._is_free(s, worker, now))
            return list(itertools.islice(found, limit))

    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted for turns of a worker."""
        with self._lock:
            return [
                (record.actor_id, record.message_id, how)
                for record, how in self._noted.items()
                if self._shelves[record.actor_id].worker == worker
            ]

    def relay(self, now: float, limit: int) -> list[ActorId]:
        """Move outgoing requests into mailboxes; see `IActorStore.relay`."""
        got: dict[ActorId, None] = {}
        with self._lock:
            for _ in range(limit):
                parcel = self._outbox.pop(now)
                if parcel is None:
                    break
                if self._deliver(parcel, now):
                    got[parcel.request.actor_id] = None
        return list(got)

    def _deliver(self, parcel: _Parcel, now: float) -> bool:
        request = parcel.request
        shelf = self._shelf(request.actor_id)
        if shelf.find(request.message_id) is not None:
            return False
        if len(shelf.queue or ()) < parcel.mailbox:
            request.created_at = now
            self._enqueue(shelf, request)
            return True
        end = parcel.since + GIVE_UP_AFTER
        if now < min(end, request.deadline or end):
            parcel.tries += 1
            self._outbox.set(parcel, now + retry_delay(parcel.tries))
            return False
        request.status, request.finished_at = RequestStatus.REJECTED, now
        request.data = failure("mailbox_full")
        self._bury(request, "mailbox_full", now)
        return False

    def fire_reminders(self, now: float, limit: int) -> list[ActorId]:
        """Make requests of reminders; see `IActorStore.fire_reminders`."""
        got: dict[ActorId, None] = {}
        with self._lock:
            for _ in range(limit):
                alarm = self._alarms.pop(now)
                if alarm is None:
                    break
                if self._fire(*alarm, now):
                    got[alarm[0].actor_id] = None
        return list(got)

    def _fire(self, shelf: Shelf, name: str, now: float) -> bool:
        reminders = shelf.reminders or {}
        reminder, before = reminders[name]
        last = shelf.find(before)
        if last is not None and last.status is _PENDING:
            self._alarms.set((shelf, name), math.nextafter(now, math.inf))
            return False
        tick = tick_of(reminder.due, reminder.period, reminder.count, now)
        request = tick_request(shelf.actor_id, reminder, tick, now)
        new = shelf.find(request.message_id) is None
        if new:
            self._enqueue(shelf, request)
        if tick.next_due is None:
            del reminders[name]
            shelf.reminders = reminders or None
        else:
            later = evolve(reminder, due=tick.next_due, count=tick.left)
            reminders[name] = later, request.message_id
            self._alarms.set((shelf, name), tick.next_due)
        return new

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End requests whose deadline has passed; see `IActorStore.expire`."""
        ended: list[RequestRecord] = []
        with self._lock:
            while len(ended) < limit:
                record = self._deadlines.pop(now)
                if record is None:
                    break
                shelf = self._shelves[record.actor_id]
                ended.append(
                    self._end_as(
                        shelf, record, RequestStatus.EXPIRED, "invocation_timeout", now
                    )
                )
        return ended

    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept, from now on too; see `IActorStore.purge`."""
        with self._lock:
            self._archive.retention = retention
            count = self._archive.purge(now, limit)
            before = now - retention.dead_seconds
            count += self._dead.shorten(limit, before, retention.dead_letters)
            count += self._purge_states(now, limit)
            self._purge_owners(now - retention.seconds, limit)
            return count

    def _purge_states(self, now: float, limit: int) -> int:
        count = 0
        for _ in range(limit):
            shelf = self._state_ends.pop(now)
            if shelf is None:
                break
            if shelf.queue is not None:
                self._state_ends.set(shelf, now + _DUE_STATE_AGAIN)
                continue
            count += shelf.state is not None
            shelf.state, shelf.etag = None, str(next(self._numbers))
            self._tidy(shelf)
        return count

    def _purge_owners(self, before: float, limit: int) -> None:
        # In the order of the latest look, so that each gets its turn.
        for actor_id, (owner, at) in list(
            itertools.islice(self._owners.items(), limit)
        ):
            if at >= before:
                break
            del self._owners[actor_id]
            if actor_id in self._shelves:
                self._owners[actor_id] = owner, time.time()

    # For people.

    def dead_letters(self, limit: int, after: str | None = None) -> list[DeadLetter]:
        """Return dead letters, the oldest first; see `IActorStore.dead_letters`."""
        with self._lock:
            found = (d for d in self._dead if after is None or d.id > after)
            return list(itertools.islice(found, limit))

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return a dead letter, or None."""
        with self._lock:
            return self._dead.get(id)

    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""
        with self._lock:
            return self._dead.discard(id)

    def inspect(self, actor_id: ActorId) -> ActorSummary | None:
        """Return what is known of an actor; see `IActorStore.inspect`."""
        with self._lock:
            owner = self._owners.get(actor_id, (None,))[0]
            shelf = self._shelves.get(actor_id)
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
                queued=len(shelf.waiting()),
                running=None if running is None else running.message_id,
                last_turn=shelf.last_turn,
                reminders=len(shelf.reminders or ()),
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
        with self._lock:
            shelf = self._leased(lease)
            found = not shelf.is_bare()
            for record in list(shelf.queue or ()):
                self._end_as(
                    shelf, record, RequestStatus.CANCELLED, "cancelled", time.time()
                )
            for record in shelf.records():
                self._archive.logs.pop((record.actor_id, record.message_id), None)
            for name in shelf.reminders or ():
                self._alarms.drop((shelf, name))
            self._state_ends.drop(shelf)
            del self._shelves[shelf.actor_id]
            found |= self._owners.pop(shelf.actor_id, None) is not None
            return self._dead.discard_of(shelf.actor_id) or found

    def pending(self) -> int:
        """Return how many requests wait or run."""
        return self._pending

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:  # noqa: ARG002 - nobody else is there to be told of
        """Return a subscription that tells nothing: no other process is here."""
        return _Silence()

    def close(self) -> None:
        """Do nothing: what it keeps goes with the object."""

    # Steps of the above, under the lock.

    def _shelf(self, actor_id: ActorId) -> Shelf:
        shelf = self._shelves.get(actor_id)
        if shelf is None:
            shelf = self._shelves[actor_id] = Shelf(actor_id)
        return shelf

    def _tidy(self, shelf: Shelf) -> None:
        if shelf.worker is None and shelf.is_bare():
            self._shelves.pop(shelf.actor_id, None)

    def _is_free(self, shelf: Shelf, worker: str, now: float) -> bool:
        owner = shelf.worker
        if owner is None or owner == worker:
            return True
        return self._workers.get(owner, 0.0) <= now

    def _is_valid(self, shelf: Shelf, lease: Lease) -> bool:
        return shelf.token == lease.token and shelf.worker == lease.worker

    def _leased(self, lease: Lease) -> Shelf:
        shelf = self._shelves.get(lease.actor_id)
        if shelf is None or shelf.token != lease.token or shelf.worker != lease.worker:
            raise LeaseLostError(
                f"worker {lease.worker} has no lease of actor {lease.actor_id} any more:"
                " claim it again",
                actor_id=str(lease.actor_id),
            )
        return shelf

    def _change(self, shelf: Shelf, ops: Sequence[SetValue | RemoveKey]) -> None:
        shelf.change(ops)
        shelf.etag = str(next(self._numbers))

    def _change_reminder(self, shelf: Shelf, change: Reminder) -> None:
        reminders = shelf.reminders = shelf.reminders or {}
        if isinstance(change, SetReminder):
            reminders[change.name] = change, ""
            self._alarms.set((shelf, change.name), change.due)
        elif reminders.pop(change.name, None) is not None:
            self._alarms.drop((shelf, change.name))
        shelf.reminders = reminders or None

    def _seen(self, record: RequestRecord) -> RequestRecord:
        """Return what may be shown of a request; one that has ended changes no more."""
        if record.status is not _PENDING:
            return record
        log = self._archive.logs.get((record.actor_id, record.message_id))
        position = record.position if log is None else log.position
        return evolve(record, cancel=self._noted.get(record), position=position)

    def _note(self, record: RequestRecord, how: Cancellation) -> None:
        # The first counts, but for the one that would keep something.
        if self._noted.get(record, Cancellation.INTERRUPT) is Cancellation.INTERRUPT:
            self._noted[record] = how

    def _append(self, record: RequestRecord, items: Sequence[ProgressItem]) -> None:
        key = record.actor_id, record.message_id
        log = self._archive.logs.get(key)
        if log is None:
            log = self._archive.logs[key] = Log()
        log.append(items)

    def _enqueue(self, shelf: Shelf, request: RequestRecord) -> None:
        if shelf.queue is None:
            shelf.queue = deque((request,))
            self._busy[shelf] = None
        else:
            shelf.queue.append(request)
        shelf.keep(request)
        self._pending += 1
        if request.deadline is not None:
            self._deadlines.set(request, request.deadline)

    def _unqueue(self, shelf: Shelf, record: RequestRecord) -> None:
        queue = shelf.queue
        assert queue, "what is pending was accepted"
        if queue[0] is record:
            queue.popleft()
        else:
            queue.remove(record)
        if not queue:
            shelf.queue = None
            del self._busy[shelf]
        self._pending -= 1
        if record.deadline is not None:
            self._deadlines.drop(record)

    def _finish(
        self, record: RequestRecord, status: RequestStatus, data: bytes, now: float
    ) -> None:
        record.status = status
        record.data = data
        record.params = b""
        record.finished_at = now
        self._archive.add(record)

    def _take(self, shelf: Shelf, now: float, crash_attempts: int) -> Taken:
        if shelf.queue is None:
            return _NOTHING
        ended: list[RequestRecord] = []
        while shelf.queue is not None:
            record = shelf.queue[0]
            if record.attempt:
                record = self._replaced(shelf, record)
            end = end_unbegun(record, now, crash_attempts)
            if end is None:
                record.attempt += 1
                record.started_at = now
                return Taken(record, ended)
            params = record.params
            ended.append(self._end_as(shelf, record, *end, now))
            if end[1] == "crashed":
                self._bury(evolve(ended[-1], params=params), end[1], now)
        return Taken(None, ended)

    def _replaced(self, shelf: Shelf, record: RequestRecord) -> RequestRecord:
        """Put a copy in the place of a request that a turn may have in its hands."""
        fresh = self._seen(record)
        self._noted.pop(record, None)
        queue = shelf.queue
        assert queue, "what is pending was accepted"
        queue[queue.index(record)] = fresh
        shelf.keep(fresh)
        if record.deadline is not None:
            self._deadlines.drop(record)
            self._deadlines.set(fresh, record.deadline)
        return fresh

    def _end_as(
        self,
        shelf: Shelf,
        record: RequestRecord,
        status: RequestStatus,
        code: str,
        now: float,
    ) -> RequestRecord:
        """End a pending request otherwise than its turn says; return it as it is now."""
        if record.attempt:
            record = self._replaced(shelf, record)
        self._unqueue(shelf, record)
        self._finish(record, status, failure(code), now)
        return record

    def _supersede(
        self, shelf: Shelf, record: RequestRecord, now: float
    ) -> RequestRecord:
        return self._end_as(shelf, record, RequestStatus.CANCELLED, "superseded", now)

    def _drop(self, shelf: Shelf, record: RequestRecord, now: float) -> RequestRecord:
        params = record.params
        ended = self._end_as(shelf, record, RequestStatus.REJECTED, "dropped", now)
        self._bury(evolve(ended, params=params), "dropped", now)
        return ended

    def _bury(self, request: RequestRecord, reason: str, now: float) -> None:
        self._dead.add(request, reason, now, self._archive.retention.dead_letters)

    def _replace_known(self, old: RequestRecord, new: RequestRecord | None) -> bool:
        shelf = self._shelves.get(old.actor_id)
        if shelf is None or shelf.find(old.message_id) is not old:
            return False
        if new is not None:
            shelf.keep(new)
        else:
            shelf.drop(old)
            self._tidy(shelf)
        return True
