"""The contract of stores, held by the ones that need no server."""

from __future__ import annotations

import pytest

from ppio_agent.storage.actors.memory import InMemoryStateStorage
from ppio_agent.testing.actor_store import ActorStoreContract


class TestMemory(ActorStoreContract):
    """`InMemoryStateStorage` does what every store does."""

    @pytest.fixture
    def store(self) -> InMemoryStateStorage:
        return InMemoryStateStorage()
