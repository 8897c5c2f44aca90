"""What the memory store keeps of one actor, in as few bytes as will do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ppio_agent.wire.actors import ActorId

from .records import (
    ProgressItem,
    RemoveKey,
    RequestRecord,
    SetReminder,
    SetValue,
    StateRead,
)

__all__ = ["KEPT_STEPS", "KEPT_STEP_BYTES", "Log", "Shelf", "changed", "part_of"]

KEPT_STEPS = 1024
KEPT_STEP_BYTES = 1024 * 1024


class Log:
    """The steps of one request, the last ones of them.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_items", "position", "size")

    def __init__(self) -> None:
        self._items: deque[ProgressItem] = deque()
        self.position = 0
        self.size = 0

    def append(self, items: Sequence[ProgressItem]) -> int:
        """Add steps; those that it has had are passed over. Return the growth in bytes."""
        before = self.size
        for item in items:
            if item.position > self.position:
                self._items.append(item)
                self.position = item.position
                self.size += len(item.data)
        while len(self._items) > KEPT_STEPS or self.size > KEPT_STEP_BYTES:
            self.size -= len(self._items.popleft().data)
        return self.size - before

    def after(self, position: int, limit: int) -> list[ProgressItem]:
        """Return steps whose number is above `position`."""
        found = [item for item in self._items if item.position > position]
        return found[:limit]


class Shelf:
    """One actor.

    Attributes:
        actor_id: Its id.
        worker: Who has the lease, if anybody.
        token: Of the latest lease.
        etag: Of the state.
        state: JSON by key; None for nothing.
        queue: Pending requests, the oldest first; None for none. A turn of the first
            one may have begun, of no other.
        known: Requests by id, pending or not. A single one stands for itself, since a
            dictionary for it would take more bytes than it does: most actors are asked
            once.
        reminders: By name, each with the id of the request that it made last; None for
            none.
        last_turn: When the latest turn was committed.

    Thread safety: one thread at a time.
    """

    __slots__ = (
        "actor_id",
        "etag",
        "known",
        "last_turn",
        "queue",
        "reminders",
        "state",
        "token",
        "worker",
    )

    def __init__(self, actor_id: ActorId) -> None:
        self.actor_id = actor_id
        self.worker: str | None = None
        self.token = 0
        self.etag = "0"
        self.state: dict[str, bytes] | None = None
        self.queue: deque[RequestRecord] | None = None
        self.known: RequestRecord | dict[str, RequestRecord] | None = None
        self.reminders: dict[str, tuple[SetReminder, str]] | None = None
        self.last_turn: float | None = None

    def is_bare(self) -> bool:
        """Whether there is nothing but what a lease made."""
        return self.known is None and self.state is None and self.reminders is None

    def find(self, message_id: str) -> RequestRecord | None:
        """Return a request."""
        known = self.known
        if isinstance(known, dict):
            return known.get(message_id)
        if known is not None and known.message_id == message_id:
            return known
        return None

    def keep(self, record: RequestRecord) -> None:
        """Know a request from now on, in place of the one with its id."""
        known = self.known
        if isinstance(known, dict):
            known[record.message_id] = record
        elif known is None or known.message_id == record.message_id:
            self.known = record
        else:
            self.known = {known.message_id: known, record.message_id: record}

    def drop(self, record: RequestRecord) -> bool:
        """Forget a request; return whether it was the one that was known."""
        if self.find(record.message_id) is not record:
            return False
        known = self.known
        if isinstance(known, dict) and len(known) > 1:
            del known[record.message_id]
        else:
            self.known = None
        return True

    def records(self) -> list[RequestRecord]:
        """Return all requests, the oldest first."""
        known = self.known
        if isinstance(known, dict):
            return list(known.values())
        return [] if known is None else [known]

    def running(self) -> RequestRecord | None:
        """Return the request whose turn was begun."""
        queue = self.queue
        return queue[0] if queue and queue[0].attempt else None

    def queued(self) -> int:
        """Return how many requests wait, no turn of theirs having begun."""
        queue = self.queue
        if not queue:
            return 0
        return len(queue) - 1 if queue[0].attempt else len(queue)


def changed(
    state: dict[str, bytes], ops: Sequence[SetValue | RemoveKey]
) -> dict[str, bytes]:
    """Change a state, in place, and return it."""
    for op in ops:
        if isinstance(op, SetValue):
            state[op.key] = op.value
        else:
            state.pop(op.key, None)
    return state


def part_of(
    whole: StateRead,
    keys: Sequence[str] | None,
    prefix: str,
    after: str | None,
    limit: int,
) -> StateRead:
    """Return what `IActorStore.read` is asked for of a whole state."""
    state = whole.values
    wanted = state.keys() if keys is None else state.keys() & set(keys)
    order = sorted(
        key
        for key in wanted
        if key.startswith(prefix) and (after is None or key > after)
    )
    page = order[:limit]
    more = page[-1] if page and len(order) > limit else None
    return StateRead(whole.etag, {key: state[key] for key in page}, more)
