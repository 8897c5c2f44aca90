"""A store that tells of what is done with it is the store all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppio_agent.actors import IActorStore, InMemoryStateStorage, OpenTelemetry
from ppio_agent.actors._telling import TellingStore
from ppio_agent.testing.actor_store import ActorStoreContract


class TestTellingStore(ActorStoreContract):
    """It keeps to the contract of stores."""

    @pytest.fixture
    def store(self) -> Iterator[IActorStore]:
        store = TellingStore.of(InMemoryStateStorage(), OpenTelemetry())
        yield store
        store.close()
