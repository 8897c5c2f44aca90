"""Stores of schemes that only a plug-in knows."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import hookimpl
from ppio_agent.storage import open_nonces
from ppio_agent.storage.actors import open_actor_store
from ppio_agent.storage.actors.port import IActorStateStorage
from ppio_agent.wire.signing import MemoryNonceStore


class _Files(IActorStateStorage):
    def read_state(self, actor_id: Any) -> dict[str, Any]:
        return {}

    def write_state(self, actor_id: Any, state: dict[str, Any]) -> bool:
        return False

    def delete_state(self, actor_id: Any) -> bool:
        return False


STORES = {"actor": _Files(), "nonce": MemoryNonceStore()}


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("files_plugin")

    @hookimpl
    def ppio_open_store(kind: str, url: str) -> object | None:
        return STORES.get(kind) if url.startswith("files://") else None

    module.ppio_open_store = ppio_open_store  # type: ignore[attr-defined] # a module made here
    monkeypatch.setitem(sys.modules, "files_plugin", module)
    monkeypatch.setenv("PPIO_PLUGINS", "files_plugin")


def test_a_plugin_opens_what_it_knows() -> None:
    """By the kind of what is to be kept."""
    assert open_actor_store("files://here") is STORES["actor"]
    assert open_nonces("files://here") is STORES["nonce"]


@pytest.mark.parametrize("open_store", [open_actor_store, open_nonces])
def test_a_scheme_that_nobody_knows_is_told_without_the_url(open_store: Any) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigurationError, match="install a plug-in") as info:
        open_store("shelf://user:secret@here")
    assert "secret" not in str(info.value)
