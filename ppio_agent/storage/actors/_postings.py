"""What comes to mailboxes in memory by itself: outgoing requests and reminders."""

from __future__ import annotations

import math

from attrs import evolve

from ppio_agent.wire.actors import ActorId, RequestStatus

from ._agenda import Agenda
from ._mailboxes import Mailboxes
from ._shelf import Shelf
from .ends import failure
from .records import Moved, Outgoing, Reminder, SetReminder
from .schedule import GIVE_UP_AFTER, retry_delay, tick_of, tick_request

__all__ = ["Postings"]


class _Parcel:
    """An outgoing request on its way."""

    __slots__ = ("mailbox", "request", "since", "tries")

    def __init__(self, out: Outgoing, since: float) -> None:
        self.request, self.mailbox = out.request, out.mailbox
        self.since, self.tries = since, 0


class Postings:
    """Outgoing requests and reminders of all actors.

    Thread safety: thread-safe, but that what takes a shelf is for who has its lock.
    """

    __slots__ = ("_alarms", "_boxes", "_outbox")

    def __init__(self, boxes: Mailboxes) -> None:
        self._boxes = boxes
        self._outbox: Agenda[_Parcel] = Agenda()
        self._alarms: Agenda[tuple[Shelf, str]] = Agenda()

    def send(self, out: Outgoing, now: float) -> None:
        """Take in an outgoing request."""
        due = max(now, out.not_before)
        self._outbox.set(_Parcel(out, due), due)

    def relay(self, now: float, limit: int) -> Moved:
        """Deliver what is due; see `IActorStore.relay`."""
        got: dict[ActorId, None] = {}
        for _ in range(limit):
            parcel = self._outbox.pop(now)
            if parcel is None:
                return Moved(list(got), left=len(self._outbox))
            if self._deliver(parcel, now):
                got[parcel.request.actor_id] = None
        return Moved(list(got), more=True, left=len(self._outbox))

    def _deliver(self, parcel: _Parcel, now: float) -> bool:
        with self._boxes.lock_of(parcel.request.actor_id):
            return self._deliver_locked(parcel, now)

    def _deliver_locked(self, parcel: _Parcel, now: float) -> bool:
        request = parcel.request
        shelf = self._boxes.shelf(request.actor_id)
        if shelf.find(request.message_id) is not None:
            return False
        if len(shelf.queue or ()) < parcel.mailbox:
            request.created_at = now
            self._boxes.enqueue(shelf, request)
            return True
        end = parcel.since + GIVE_UP_AFTER
        if now < min(end, request.deadline or end):
            parcel.tries += 1
            self._outbox.set(parcel, now + retry_delay(parcel.tries))
            return False
        request.status, request.finished_at = RequestStatus.REJECTED, now
        request.data = failure("mailbox_full")
        self._boxes.bury(request, "mailbox_full", now)
        return False

    def change(self, shelf: Shelf, change: Reminder) -> None:
        """Set or forget a reminder."""
        reminders = shelf.reminders or {}
        if isinstance(change, SetReminder):
            reminders[change.name] = change, ""
            self._alarms.set((shelf, change.name), change.due)
        elif reminders.pop(change.name, None) is not None:
            self._alarms.drop((shelf, change.name))
        shelf.reminders = reminders or None

    def forget(self, shelf: Shelf) -> None:
        """Forget all reminders of an actor."""
        for name in shelf.reminders or ():
            self._alarms.drop((shelf, name))
        shelf.reminders = None

    def fire(self, now: float, limit: int) -> Moved:
        """Make requests of reminders that are due; see `IActorStore.fire_reminders`."""
        got: dict[ActorId, None] = {}
        for _ in range(limit):
            alarm = self._alarms.pop(now)
            if alarm is None:
                return Moved(list(got))
            if self._fire(*alarm, now):
                got[alarm[0].actor_id] = None
        return Moved(list(got), more=True)

    def _fire(self, shelf: Shelf, name: str, now: float) -> bool:
        with self._boxes.lock_of(shelf.actor_id):
            return self._fire_locked(shelf, name, now)

    def _fire_locked(self, shelf: Shelf, name: str, now: float) -> bool:
        reminders = shelf.reminders or {}
        if name not in reminders or reminders[name][0].due > now:
            return False  # changed since it was found to be due
        reminder, before = reminders[name]
        last = shelf.find(before)
        if last is not None and last.status is RequestStatus.PENDING:
            # Its own `due` stays: what is missed by this is counted then.
            self._alarms.set((shelf, name), math.nextafter(now, math.inf))
            return False
        tick = tick_of(reminder.due, reminder.period, reminder.count, now)
        request = tick_request(shelf.actor_id, reminder, tick, now)
        new = shelf.find(request.message_id) is None
        if new:
            self._boxes.enqueue(shelf, request)
        if tick.next_due is None:
            del reminders[name]
            shelf.reminders = reminders or None
        else:
            later = evolve(reminder, due=tick.next_due, count=tick.left)
            reminders[name] = later, request.message_id
            self._alarms.set((shelf, name), tick.next_due)
        return new
