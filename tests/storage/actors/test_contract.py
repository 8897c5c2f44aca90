"""The contract of stores, held by the ones that need no server."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ppio_agent.storage.actors import IActorStateStorage, IActorStore
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from ppio_agent.storage.actors.records import SetValue
from ppio_agent.storage.actors.stateonly import StateOnlyStore
from ppio_agent.testing.actor_store import ActorStoreContract
from ppio_agent.wire.actors import ActorId
from ppio_agent.wire.json import decode_json, encode_json


class DictStorage(IActorStateStorage):
    """What a user writes who needs state to be somewhere else."""

    def __init__(self) -> None:
        self.states: dict[ActorId, bytes] = {}
        self.refuses = False
        self.lock = threading.Lock()

    def read_state(self, actor_id: ActorId) -> dict[str, Any]:
        return dict(decode_json(self.states.get(actor_id, b"{}")))

    def write_state(self, actor_id: ActorId, state: dict[str, Any]) -> bool:
        if not self.refuses:
            self.states[actor_id] = encode_json(state)
        return not self.refuses

    def delete_state(self, actor_id: ActorId) -> bool:
        return self.states.pop(actor_id, None) is not None


class TestMemory(ActorStoreContract):
    """`InMemoryStateStorage` does what every store does."""

    @pytest.fixture
    def store(self) -> InMemoryStateStorage:
        return InMemoryStateStorage()


class TestStateOnly(ActorStoreContract):
    """So does a storage of three methods, but for what such a one cannot."""

    @pytest.fixture
    def store(self) -> StateOnlyStore:
        return StateOnlyStore(DictStorage())

    def test_every_batch_changes_the_etag(self, store: IActorStore) -> None:
        """Every batch that changes the state does: the etag is its digest."""
        first = store.write(A, [SetValue("a", b"1")]).etag
        assert store.write(A, [SetValue("a", b"1")]).etag == first
        assert store.write(A, [SetValue("a", b"2")]).etag != first


A = ActorId("echo", "c-1")
