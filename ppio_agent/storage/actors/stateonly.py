"""A store made of a storage that keeps state, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from attrs import evolve

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import ConfigurationError, ServiceUnavailableError
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_json, encode_json

from . import open_actor_store
from ._shelf import Shelf, changed, part_of
from .memory import STATE_AGAIN, InMemoryStateStorage
from .port import IActorStateStorage, IActorStore
from .records import (
    Cancellation,
    CommitOutcome,
    Committed,
    Lease,
    RemoveKey,
    SetValue,
    StateRead,
    TurnCommit,
    WriteResult,
)

__all__ = ["StateOnlyStore", "as_store"]

_NO_STATE = "0"
_METHODS = ("read_state", "write_state", "delete_state")


def as_store(storage: IActorStateStorage | str | None) -> IActorStore:
    """Return the store that stands for what a runtime was given.

    Args:
        storage: A store; a storage with the three methods of `IActorStateStorage`,
            derived from it or not; a URL for `open_actor_store`; None: a new store in
            memory.

    Raises:
        ConfigurationError: It is none of these.
    """
    if storage is None:
        return InMemoryStateStorage()
    if isinstance(storage, str):
        storage = open_actor_store(storage)
    if isinstance(storage, IActorStore):
        return storage
    if all(callable(getattr(storage, name, None)) for name in _METHODS):
        return StateOnlyStore(storage)
    raise ConfigurationError(
        f"a {type(storage).__name__} cannot keep actors: give a URL, a store, or an"
        f" object with {', '.join(_METHODS)}"
    )


class StateOnlyStore(InMemoryStateStorage):
    """Keeps state in a storage of three methods, and all the rest in memory.

    The etag is a digest of the state, so that it notices what others wrote to the
    storage. State is written just before the rest of a turn is kept: if the process
    ends between the two, a cancel comes there, or the storage raises although it wrote,
    the state of a turn is kept whose request did not complete; its turn may be run
    again on that state.

    Args:
        storage: Where state goes. Its errors are the caller's; a write that returns
            False is a `ServiceUnavailableError`.

    Thread safety: thread-safe, if the storage is. What changes the state of one actor
    does so after the other, also if the storage is slow.
    """

    def __init__(self, storage: IActorStateStorage) -> None:
        super().__init__()
        self._storage = storage
        renew_in_child(self, StateOnlyStore._begin)

    def _begin(self) -> None:
        super()._begin()
        # Each held while states of some actors are read, changed and written, the one
        # thing here that may take long; taken before all other locks.
        self._changing = tuple(threading.Lock() for _ in self._boxes.locks)

    def _changes_of(self, actor_id: ActorId) -> threading.Lock:
        return self._changing[hash(actor_id) % len(self._changing)]

    def read_state(self, actor_id: ActorId) -> dict[str, Any]:
        """Return the whole state; empty if there is none."""
        return self._storage.read_state(actor_id)

    def write_state(self, actor_id: ActorId, state: dict[str, Any]) -> bool:
        """Replace the whole state; return whether that was done."""
        with self._changes_of(actor_id):
            return self._storage.write_state(actor_id, state)

    def delete_state(self, actor_id: ActorId) -> bool:
        """Remove the whole state; return whether there was any."""
        with self._changes_of(actor_id):
            return self._storage.delete_state(actor_id)

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
        state, etag = self._load(actor_id)
        return part_of(StateRead(etag, state), keys, prefix, after, limit)

    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch from outside a turn; see the class for what it is worth."""
        with self._changes_of(actor_id):
            state, current = self._load(actor_id)
            if etag not in (None, current):
                return WriteResult(current, success=False)
            return WriteResult(self._save(actor_id, changed(state, ops)), success=True)

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        lease = super().claim(worker, actor_id)
        if lease is not None:
            self._load(actor_id)
        return lease

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves; see `IActorStore.commit`."""
        with self._changes_of(lease.actor_id):
            if turn.state and self._keeps_state(lease, turn):
                state, current = self._load(lease.actor_id)
                if turn.etag not in (None, current):
                    return Committed(CommitOutcome.CONFLICT, current)
                self._save(lease.actor_id, changed(state, turn.state))
            return super().commit(lease, evolve(turn, etag=None, state=()))

    def _keeps_state(self, lease: Lease, turn: TurnCommit) -> bool:
        """Whether the state of a turn is to be kept, as far as is known now."""
        with self._boxes.lock_of(lease.actor_id):
            record = self._leased(lease).find(turn.message_id)
            if record is None:
                return turn.request is not None
            if record.status is not RequestStatus.PENDING:
                return False
            interrupted = record.cancel is Cancellation.INTERRUPT
            return record.cancel is None or (interrupted and turn.keep)

    def _has_state(self, shelf: Shelf) -> bool:
        return shelf.etag != _NO_STATE

    def _end_state(self, actor_id: ActorId, now: float) -> None:
        with self._changes_of(actor_id):
            with self._boxes.lock_of(actor_id):
                if not self._is_spent(actor_id, now):
                    return
            try:
                self._storage.delete_state(actor_id)
            except BaseException:
                # Behind the others, lest one that cannot be deleted keeps them all.
                self._state_ends.set(actor_id, now + STATE_AGAIN)
                raise
            self._etag(actor_id, {})

    def delete(self, lease: Lease) -> bool:
        """Remove an actor with all it has; see `IActorStore.delete`."""
        with self._changes_of(lease.actor_id):
            found = super().delete(lease)
            return self._storage.delete_state(lease.actor_id) or found

    def _load(self, actor_id: ActorId) -> tuple[dict[str, bytes], str]:
        state = self._storage.read_state(actor_id)
        texts = {key: encode_json(value) for key, value in state.items()}
        return texts, self._etag(actor_id, texts)

    def _save(self, actor_id: ActorId, texts: dict[str, bytes]) -> str:
        state = {key: decode_json(text) for key, text in texts.items()}
        if not state:
            self._storage.delete_state(actor_id)
        elif not self._storage.write_state(actor_id, state):
            raise ServiceUnavailableError(
                f"the storage did not write the state of actor {actor_id}: try again"
            )
        return self._etag(actor_id, texts)

    def _etag(self, actor_id: ActorId, texts: dict[str, bytes]) -> str:
        etag = _NO_STATE
        if texts:
            etag = sha256(repr(sorted(texts.items())).encode()).hexdigest()[:32]
        with self._boxes.lock_of(actor_id):
            shelf = self._boxes.shelves.get(actor_id)
            if shelf is not None:
                shelf.etag = etag  # for commits without state and for inspection
        return etag
