"""A fake platform and a client of it, with an environment that says nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support_platform import KEY, FakePlatform


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PPIO_") and name != "PPIO_TEST_SLOW":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PPIO_PLUGINS", "")


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform() as platform:
        yield platform


@pytest.fixture
def make_client(platform: FakePlatform) -> Iterator[Callable[..., Any]]:
    from ppio_agent.client import AgentRuntimeClient, ClientConfig

    made: list[AgentRuntimeClient] = []

    def make(**settings: Any) -> AgentRuntimeClient:
        settings = {"base_url": platform.url, "max_retries": 0, **settings}
        client = AgentRuntimeClient(KEY, config=ClientConfig(**settings))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., Any]) -> Any:
    return make_client()
