"""The port behind which everything lives that must outlast a turn of an actor.

Mailbox, lease, state, results, progress, reminders and dead letters of an actor are one
store's, so that a worker in any process can take its next turn. A runtime only decides
which thread does that, and when.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from ppio_agent.wire.actors import ActorId
from ppio_agent.wire.json import decode_json, encode_json

from .records import (
    Accepted,
    ActorSummary,
    Cancellation,
    Cancelled,
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

__all__ = ["IActorStateStorage", "IActorStore"]


class IActorStateStorage(ABC):
    """Keeps a dictionary of JSON values for each actor; three methods are enough.

    Dictionaries are copies, in and out.

    Thread safety: every method may be called from any thread.
    """

    @abstractmethod
    def read_state(self, actor_id: ActorId) -> dict[str, Any]:
        """Return the whole state; empty if there is none."""

    @abstractmethod
    def write_state(self, actor_id: ActorId, state: dict[str, Any]) -> bool:
        """Replace the whole state; return whether that was done."""

    @abstractmethod
    def delete_state(self, actor_id: ActorId) -> bool:
        """Remove the whole state; return whether there was any."""


class IActorStore(IActorStateStorage):
    """Keeps everything of actors. See the module for what it is about.

    Each method is one atomic step. Any may raise `OSError` where a disk is full or
    fails, or `ServiceUnavailableError` where a server cannot be reached; it is not known
    then whether it was done, but each may be called again with the same arguments.

    Attributes:
        durable: Whether what it accepted is there after the process was killed.
        shared: Whether other processes may use it at the same time.

    Thread safety: every method may be called from any thread. A forked child must not
    use its parent's.
    """

    durable: bool
    shared: bool

    def read_state(self, actor_id: ActorId) -> dict[str, Any]:
        """Return the whole state; empty if there is none."""
        texts = _whole_state(self, actor_id).values
        return {key: decode_json(text) for key, text in texts.items()}

    def write_state(self, actor_id: ActorId, state: dict[str, Any]) -> bool:
        """Replace the whole state; return True.

        Raises:
            SerializationError: A value has no JSON form.
        """
        texts = {key: encode_json(value) for key, value in state.items()}
        ops: list[SetValue | RemoveKey] = []
        while True:
            old = _whole_state(self, actor_id)
            ops[:] = (RemoveKey(key) for key in old.values if key not in texts)
            ops += (SetValue(key, text) for key, text in texts.items())
            if self.write(actor_id, ops, old.etag).success:
                return True

    def delete_state(self, actor_id: ActorId) -> bool:
        """Remove the whole state; return whether there was any."""
        while True:
            old = _whole_state(self, actor_id)
            ops = [RemoveKey(key) for key in old.values]
            if not ops or self.write(actor_id, ops, old.etag).success:
                return bool(ops)

    @abstractmethod
    def now(self) -> float:
        """Return the time by its clock; quick, no round trip."""

    @abstractmethod
    def read(
        self,
        actor_id: ActorId,
        keys: Sequence[str] | None = None,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
    ) -> StateRead:
        """Read a part of the state.

        Args:
            actor_id: Whose.
            keys: Only these; None: all.
            prefix: Only keys that begin with it.
            after: Only keys that are greater, by code points.
            limit: Most keys.
        """

    @abstractmethod
    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch, from outside a turn; with an `etag` only if it is in force."""

    # Requests.

    @abstractmethod
    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others of its actor, once.

        A known id is looked at first, then `limits.on_busy`, then the limits. With
        `interrupt` and `rollback` all that wait end CANCELLED `superseded`, and the one
        whose turn runs is told to end. A dropped one ends REJECTED `dropped` and is a
        dead letter. What was accepted is durable when this returns.
        """

    @abstractmethod
    def get_request(self, actor_id: ActorId, message_id: str) -> RequestRecord | None:
        """Return a request, or None if it is not known, or no longer."""

    @abstractmethod
    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """End a request that waits (CANCELLED `cancelled`); else note `how` on it.

        Of several notes the first counts, but that INTERRUPT gives way to the others.
        """

    @abstractmethod
    def read_progress(
        self, actor_id: ActorId, message_id: str, after: int, limit: int
    ) -> list[ProgressItem]:
        """Return steps whose number is above `after`, in their order.

        The last 1,024 steps or 1 MiB of them are kept; what is older is gone.
        """

    # Turns.

    @abstractmethod
    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor, with a new token; None if another has it.

        It is to be had if nobody has it, its worker's time (`heartbeat`) has passed or
        its process is known to be dead, or the worker itself has it. The actor need not
        be known.
        """

    @abstractmethod
    def release(self, lease: Lease) -> None:
        """Give a lease back; one that was lost is no error. Forgets empty actors.

        A turn that was begun by it does not count against `crash_attempts`.
        """

    @abstractmethod
    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn of the oldest pending request.

        One that was begun before without a commit is the first again; after
        `crash_attempts` turns that were not handed back (`release`) it ends FAILED `crashed` instead, as a dead letter. One
        that the same lease began is the same turn, whose beginning was not told: its
        `attempt` stays.

        Raises:
            LeaseLostError: Somebody else has claimed the actor.
        """

    @abstractmethod
    def append_progress(
        self, lease: Lease, message_id: str, items: Sequence[ProgressItem]
    ) -> None:
        """Append steps to the log of a request; of one that has ended, nothing.

        Raises:
            LeaseLostError: Somebody else has claimed the actor.
        """

    @abstractmethod
    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves.

        A noted `Cancellation` wins: the request ends CANCELLED (`cancelled`, or
        `superseded` for the two others), and nothing else is kept but, with `keep` on
        an INTERRUPT, the state. If `turn.request` is known already, that is `ENDED`
        when it had ended; else it is ended.

        Raises:
            LeaseLostError: Somebody else has claimed the actor; nothing was kept.
        """

    @abstractmethod
    def wait(self, edges: Sequence[tuple[ActorId, ActorId]]) -> list[ActorId]:
        """Note that the first of each pair waits for the second, then look for a cycle.

        An actor waits for one other: a later pair of it replaces an earlier one.

        Returns:
            The actors of a cycle that the last pair closes, in the order in which they
            wait; empty if there is none. Pairs stay noted until `unwait`.
        """

    @abstractmethod
    def unwait(self, actor_ids: Sequence[ActorId]) -> None:
        """Forget for whom these wait."""

    # Workers and time.

    @abstractmethod
    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker for `ttl` seconds from now.

        A worker that never called this has no time, so that its leases are free.

        Returns:
            Whether its time had not passed; the first call of a worker is True.
        """

    @abstractmethod
    def retire(self, worker: str) -> None:
        """Give back all leases of a worker, as `release` does, and forget it."""

    @abstractmethod
    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors with pending requests whose lease is free, or the worker's."""

    @abstractmethod
    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted on pending requests of actors leased by the worker."""

    @abstractmethod
    def relay(self, now: float, limit: int) -> Moved:
        """Move outgoing requests that are due into mailboxes, each once.

        It looks at up to `limit` of them.

        They are created at `now`. One whose id is known there is dropped. One whose
        mailbox is full is tried again after 0.1 s, doubling up to 30 s, until its
        deadline or for 24 h after it was due first; then it is a dead letter
        (`mailbox_full`).
        """

    @abstractmethod
    def fire_reminders(self, now: float, limit: int) -> Moved:
        """Make requests of the reminders that are due; see `schedule.tick_of`.

        It looks at up to `limit` of them.

        Their ids are of `schedule.tick_id`, their params `{"name", "due", "missed",
        "params"}`. As long as the request that a reminder made before is pending it
        makes none; what it missed comes with the next.
        """

    @abstractmethod
    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End pending requests whose deadline has passed (EXPIRED), running or not."""

    @abstractmethod
    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept: requests, letters, states, owners.

        Returns:
            How much was looked at: if less than `limit`, nothing is left to forget.
        """

    # For people.

    @abstractmethod
    def dead_letters(self, limit: int, after: str | None = None) -> list[DeadLetter]:
        """Return dead letters, the oldest first, from behind the one with id `after`."""

    @abstractmethod
    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return a dead letter, or None."""

    @abstractmethod
    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""

    @abstractmethod
    def inspect(self, actor_id: ActorId) -> ActorSummary | None:
        """Return what is known of an actor; None if it has nothing here."""

    @abstractmethod
    def own(self, actor_id: ActorId, owner: str) -> str:
        """Make somebody the owner of an actor that has none; return its owner."""

    @abstractmethod
    def owner(self, actor_id: ActorId) -> str | None:
        """Return the owner of an actor; None if it has none."""

    @abstractmethod
    def delete(self, lease: Lease) -> bool:
        """Remove an actor with all it has; return whether it had anything.

        Pending requests end CANCELLED `cancelled` first, as their waiters see.

        Raises:
            LeaseLostError: Somebody else has claimed the actor.
        """

    @abstractmethod
    def pending(self) -> int:
        """Return how many requests wait or run, perhaps a second ago."""

    @abstractmethod
    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:
        """Tell of what others do to this store, as far as it can know at once.

        The callback is called on a thread of the store's, must not block and may be
        told of what this process itself did.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of files, connections and threads. Idempotent."""


def _whole_state(store: IActorStore, actor_id: ActorId) -> StateRead:
    """Read all of a state as it was at one moment, however many pages it has."""
    first = page = store.read(actor_id)
    values = dict(first.values)
    while page.next_key is not None:
        page = store.read(actor_id, after=page.next_key)
        if page.etag != first.etag:
            first, values = (page := store.read(actor_id)), {}
        values.update(page.values)
    return StateRead(first.etag, values)
