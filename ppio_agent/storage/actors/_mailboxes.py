"""The requests of all actors in memory: how they come in, are begun, and end."""

from __future__ import annotations

import threading
import time
from collections import deque

from attrs import evolve

from ppio_agent.wire.actors import ActorId, RequestStatus

from ._agenda import Agenda
from ._archive import Archive, DeadLetters
from ._shelf import Log, Shelf
from .admission import admit, end_unbegun
from .ends import failure
from .records import (
    Acceptance,
    Accepted,
    Cancellation,
    Cancelled,
    Limits,
    RequestRecord,
    Taken,
)

__all__ = ["Mailboxes"]

# Members of enums are slow to look up, and these are for each turn.
_PENDING = RequestStatus.PENDING
_NEW = Accepted(Acceptance.NEW)
_NOTHING = Taken()
# So many that actors rarely share one: who waits for a lock is given it before it can
# run, and with one for all actors busy threads would give it to each other at each step.
_LOCKS = 64
_INSTEAD = frozenset({"interrupt", "rollback"})


class Mailboxes:
    """Shelves of actors, and what is known of all their requests together.

    Pending records are changed in place, so they leave here as copies only, see `seen`.
    Ended ones are not changed, and packed.

    Attributes:
        shelves: By actor.
        pending: Requests that wait or run, in the order in which they came.
        deadlines: Of pending requests.
        archive: Requests that have ended, and logs.
        dead: Dead letters.

    Thread safety: what is about one actor is for who has its lock, see `lock_of`. Keys
    of `shelves` and `pending` are set and removed, and all of them copied, in one step
    of the interpreter each.
    """

    __slots__ = (
        "archive",
        "dead",
        "deadlines",
        "locks",
        "pending",
        "shelves",
        "spared",
    )

    def __init__(self) -> None:
        self.locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self.shelves: dict[ActorId, Shelf] = {}
        self.pending: dict[RequestRecord, None] = {}
        # How many turns of them were begun and handed back; of most none.
        self.spared: dict[RequestRecord, int] = {}
        self.deadlines: Agenda[RequestRecord] = Agenda()
        self.archive = Archive(self._replace_ended)
        self.dead = DeadLetters()

    def lock_of(self, actor_id: ActorId) -> threading.Lock:
        """Return the lock that guards what is about an actor, and about some others."""
        return self.locks[hash(actor_id.instance_id) % _LOCKS]

    def shelf(self, actor_id: ActorId) -> Shelf:
        """Return the shelf of an actor, a new one if need be; see `tidy`."""
        shelf = self.shelves.get(actor_id)
        if shelf is None:
            shelf = self.shelves[actor_id] = Shelf(actor_id)
        return shelf

    def tidy(self, shelf: Shelf) -> bool:
        """Forget the actor if nothing is to be known of it; return whether that is so."""
        bare = shelf.worker is None and shelf.is_bare()
        # It may be a shelf that somebody had in hand when the actor was forgotten.
        if bare and self.shelves.get(shelf.actor_id) is shelf:
            del self.shelves[shelf.actor_id]
        return bare

    def seen(self, record: RequestRecord) -> RequestRecord:
        """Return what may be shown of a request; one that has ended changes no more."""
        if record.status is not _PENDING:
            return record
        log = None
        if self.archive.logs:
            log = self.archive.logs.get((record.actor_id, record.message_id))
        # By position and in full: this is done for each turn, `evolve` takes ten times
        # as long.
        return RequestRecord(
            record.actor_id,
            record.message_id,
            record.method,
            record.params,
            record.digest,
            record.sender,
            record.chain,
            record.traceparent,
            record.created_at,
            record.deadline,
            _PENDING,
            record.attempt,
            record.started_at,
            None,
            b"",
            False,  # noqa: FBT003 - not evicted
            record.position if log is None else log.position,
            record.cancel,
        )

    def log(self, record: RequestRecord) -> Log:
        """Return the log of a request, a new one if need be."""
        return self.archive.logs.setdefault((record.actor_id, record.message_id), Log())

    def note(self, record: RequestRecord, how: Cancellation) -> None:
        """Note that a turn is to end; only INTERRUPT, which may keep, gives way."""
        if record.cancel in {None, Cancellation.INTERRUPT}:
            record.cancel = how

    # In.

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others, unless it is known or too many are there."""
        shelf = self.shelves.get(request.actor_id)
        if shelf is None:
            shelf = self.shelf(request.actor_id)
        else:
            known = shelf.find(request.message_id)
            if known is not None:
                told = known.digest and request.digest
                same = not told or known.digest == request.digest
                outcome = Acceptance.DUPLICATE if same else Acceptance.CONFLICT
                return Accepted(outcome, self.seen(known))
        if len(self.pending) < limits.pending:
            queue = shelf.queue
            room = limits.on_busy == "enqueue" and len(queue or ()) < limits.mailbox
            if queue is None or room:
                self.enqueue(shelf, request)
                return _NEW
        return self._accept_behind(shelf, request, limits)

    def _accept_behind(
        self, shelf: Shelf, request: RequestRecord, limits: Limits
    ) -> Accepted:
        waiting, running = shelf.queued(), shelf.running()
        pending = len(self.pending)
        outcome, leave = admit(waiting, int(running is not None), pending, limits)
        if outcome is not Acceptance.NEW:
            self.tidy(shelf)
            queue = shelf.queue if outcome is Acceptance.BUSY else None
            return Accepted(outcome, self.seen(queue[0]) if queue else None)
        ended = self._make_room(shelf, leave, limits) if leave else ()
        self.enqueue(shelf, request)
        if running is None or limits.on_busy not in _INSTEAD:
            return Accepted(outcome, ended=ended)
        self.note(running, Cancellation(limits.on_busy))
        return Accepted(outcome, ended=ended, running=running.message_id)

    def _make_room(
        self, shelf: Shelf, leave: int, limits: Limits
    ) -> list[RequestRecord]:
        now = time.time()
        end = self._supersede if limits.on_busy in _INSTEAD else self._drop
        waiting = [record for record in shelf.queue or () if not record.attempt]
        return [end(shelf, record, now) for record in waiting[:leave]]

    def enqueue(self, shelf: Shelf, request: RequestRecord) -> None:
        """Put a request, whose id is not known, behind the others."""
        shelf.keep(request.message_id, request)
        if shelf.queue is None:
            shelf.queue = deque((request,))
        else:
            shelf.queue.append(request)
        self.pending[request] = None
        if request.deadline is not None:
            self.deadlines.set(request, request.deadline)

    def cancel(
        self, actor_id: ActorId, message_id: str, how: Cancellation
    ) -> Cancelled:
        """End a request that waits, or note how; see `IActorStore.cancel`."""
        shelf = self.shelves.get(actor_id)
        record = None if shelf is None else shelf.find(message_id)
        if shelf is None or record is None:
            return Cancelled.NOT_FOUND
        if record.status is not _PENDING:
            return Cancelled.TERMINAL
        if record.attempt:
            self.note(record, how)
            return Cancelled.REQUESTED
        now = time.time()
        try:
            self.end_as(shelf, record, RequestStatus.CANCELLED, "cancelled", now)
        except BaseException:
            self.mend(actor_id)
            raise
        return Cancelled.CANCELLED

    # On.

    def take(self, shelf: Shelf, now: float, crash_attempts: int) -> Taken:
        """Begin a turn of the oldest request; see `IActorStore.take`."""
        if shelf.queue is None:
            return _NOTHING
        ended: list[RequestRecord] = []
        while queue := shelf.queue:
            record = queue[0]
            end, again = None, False
            if record.attempt or record.deadline is not None:
                # The same turn once more: nobody was told of it.
                again = record.attempt > 0 and shelf.begun == shelf.token
                spared = self.spared.get(record, 0)
                end = end_unbegun(record, now, crash_attempts + spared + again)
            if end is None:
                shelf.begun = shelf.token
                record.attempt += not again
                record.started_at = now
                return Taken(self.seen(record), ended)
            params = record.params
            ended.append(self.end_as(shelf, record, *end, now))
            if end[1] == "crashed":
                self.bury(evolve(ended[-1], params=params), end[1], now)
        return Taken(None, ended)

    def hand_back(self, shelf: Shelf) -> None:
        """Take a lease back; that its turn has not ended is nobody's crash."""
        record = shelf.running()
        if record is not None and shelf.begun == shelf.token:
            self.spared[record] = self.spared.get(record, 0) + 1
        shelf.worker = None
        self.tidy(shelf)

    def mend(self, actor_id: ActorId) -> None:
        """Make whole what an exception from outside left of a step with an actor.

        In the main thread a signal raises anywhere. What is known of requests counts:
        those that are pending wait, others have ended. What else the step did, as a
        change of the state, stays: the step may be done again.
        """
        shelf = self.shelf(actor_id)
        queue = dict.fromkeys(shelf.queue or ())  # in their order
        for message_id in shelf.ids():
            kept = shelf.kept(message_id)
            if isinstance(kept, RequestRecord):
                queue[kept] = None
        for record in [one for one in self.pending if one.actor_id == actor_id]:
            self.pending.pop(record, None)
            self.deadlines.drop(record)
        waiting = [record for record in queue if record.status is _PENDING]
        waiting.sort(key=lambda record: not record.attempt)
        shelf.queue = None
        for record in waiting:
            self.enqueue(shelf, record)
        for record in queue:
            if record.status is not _PENDING:
                record.params = b""
                shelf.keep(record.message_id, self.archive.add(actor_id, record))
        self.tidy(shelf)

    # Out.

    def end(
        self,
        shelf: Shelf,
        record: RequestRecord,
        status: RequestStatus,
        data: bytes,
        now: float,
    ) -> None:
        """End a pending request as its turn says."""
        queue = shelf.queue
        if queue is None:
            return
        if queue[0] is record:
            queue.popleft()
        else:
            queue.remove(record)
        if not queue:
            shelf.queue = None
        self.pending.pop(record, None)
        if self.spared:
            self.spared.pop(record, None)
        if record.deadline is not None:
            self.deadlines.drop(record)
        self.finish(shelf, record, status, data, now)

    def finish(
        self,
        shelf: Shelf,
        record: RequestRecord,
        status: RequestStatus,
        data: bytes,
        now: float,
    ) -> None:
        """End a request that is not pending here, or no longer."""
        record.status = status
        record.data = data
        record.params = b""
        record.finished_at = now
        shelf.keep(record.message_id, self.archive.add(shelf.actor_id, record))

    def end_as(
        self,
        shelf: Shelf,
        record: RequestRecord,
        status: RequestStatus,
        code: str,
        now: float,
    ) -> RequestRecord:
        """End a pending request otherwise than its turn says; return what is kept."""
        self.end(shelf, record, status, failure(code), now)
        return record

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End requests whose deadline has passed; under no lock."""
        ended: list[RequestRecord] = []
        while len(ended) < limit:
            record = self.deadlines.pop(now)
            if record is None:
                break
            with self.lock_of(record.actor_id):
                shelf = self.shelves.get(record.actor_id)
                if shelf is not None and record.status is _PENDING:
                    expired = RequestStatus.EXPIRED, "invocation_timeout"
                    ended.append(self.end_as(shelf, record, *expired, now))
        return ended

    def _supersede(
        self, shelf: Shelf, record: RequestRecord, now: float
    ) -> RequestRecord:
        return self.end_as(shelf, record, RequestStatus.CANCELLED, "superseded", now)

    def _drop(self, shelf: Shelf, record: RequestRecord, now: float) -> RequestRecord:
        params = record.params
        ended = self.end_as(shelf, record, RequestStatus.REJECTED, "dropped", now)
        self.bury(evolve(ended, params=params), "dropped", now)
        return ended

    def bury(self, request: RequestRecord, reason: str, now: float) -> None:
        """Keep a request, as it ended but with its parameters, as a dead letter."""
        self.dead.add(request, reason, now, self.archive.retention.dead_letters)

    def delete(self, shelf: Shelf, now: float) -> None:
        """Forget an actor with its requests."""
        for record in list(shelf.queue or ()):
            self.end_as(shelf, record, RequestStatus.CANCELLED, "cancelled", now)
        for message_id in shelf.ids():
            self.archive.logs.pop((shelf.actor_id, message_id), None)
        del self.shelves[shelf.actor_id]

    def _replace_ended(
        self, actor_id: ActorId, message_id: str, old: bytes, new: bytes | None
    ) -> bool:
        with self.lock_of(actor_id):
            shelf = self.shelves.get(actor_id)
            if shelf is None or shelf.kept(message_id) is not old:
                return False
            self.archive.logs.pop((actor_id, message_id), None)
            if new is not None:
                shelf.keep(message_id, new)
            else:
                shelf.drop(message_id)
                self.tidy(shelf)
            return True
