"""What the memory store keeps of one actor, in as few bytes as will do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ppio_agent.wire.actors import ActorId

from ._ended import unpack
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
        begun: Of the lease by which the latest turn was begun.
        etag: Of the state.
        state: JSON by key; None for nothing.
        queue: Pending requests, the oldest first; None for none. A turn of the first
            one may have begun, of no other.
        first_id: Id of one request that is known; None: there is none, or no longer.
        first: That request: as it is while it is pending, then packed. It has a place
            of its own, since most actors are asked once, and a dictionary for one
            would take more bytes than it does.
        others: All others that are known, by id; None for none.
        reminders: By name, each with the id of the request that it made last; None for
            none.
        last_turn: When the latest turn was committed.

    Thread safety: one thread at a time.
    """

    __slots__ = (
        "actor_id",
        "begun",
        "etag",
        "first",
        "first_id",
        "last_turn",
        "others",
        "queue",
        "reminders",
        "state",
        "token",
        "worker",
    )

    def __init__(self, actor_id: ActorId) -> None:
        self.actor_id = actor_id
        self.worker: str | None = None
        self.token = self.begun = 0
        self.etag = "0"
        self.state: dict[str, bytes] | None = None
        self.queue: deque[RequestRecord] | None = None
        self.first_id: str | None = None
        self.first: RequestRecord | bytes | None = None
        self.others: dict[str, RequestRecord | bytes] | None = None
        self.reminders: dict[str, tuple[SetReminder, str]] | None = None
        self.last_turn: float | None = None

    def is_bare(self) -> bool:
        """Whether there is nothing but what a lease made."""
        requests = self.first_id is not None or self.others is not None
        return not requests and self.state is None and self.reminders is None

    def find(self, message_id: str) -> RequestRecord | None:
        """Return a request; of one that has ended a copy."""
        kept = self.kept(message_id)
        if isinstance(kept, bytes):
            return unpack(self.actor_id, message_id, kept)
        return kept

    def kept(self, message_id: str) -> RequestRecord | bytes | None:
        """Return what is kept of a request: itself while it is pending, then packed."""
        if message_id == self.first_id:
            return self.first
        return None if self.others is None else self.others.get(message_id)

    def keep(self, message_id: str, request: RequestRecord | bytes) -> None:
        """Know a request from now on, in place of the one with its id."""
        others = self.others
        if others is not None and message_id in others:
            others[message_id] = request
        elif self.first_id is None or self.first_id == message_id:
            self.first_id, self.first = message_id, request
        elif others is None:
            self.others = {message_id: request}
        else:
            others[message_id] = request

    def drop(self, message_id: str) -> None:
        """Forget a request that is known."""
        if message_id == self.first_id:
            self.first_id = self.first = None
        elif self.others is not None:
            self.others.pop(message_id, None)
            self.others = self.others or None

    def ids(self) -> list[str]:
        """Return the ids of all requests."""
        first = [] if self.first_id is None else [self.first_id]
        return [*first, *(self.others or ())]

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
