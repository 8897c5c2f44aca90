"""The fake platform of the client's tests, and an awaitable client of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ppio_agent.aio import AgentRuntimeClient, ClientConfig
from tests.client.conftest import _bare_environment, platform
from tests.support_platform import KEY, FakePlatform

__all__ = ["_bare_environment", "platform"]


@pytest.fixture
def make_client(platform: FakePlatform) -> Callable[..., AgentRuntimeClient]:
    """Make clients of the platform; whoever makes one closes it, in a loop."""

    def make(**settings: Any) -> AgentRuntimeClient:
        settings = {"base_url": platform.url, "max_retries": 0, **settings}
        return AgentRuntimeClient(KEY, config=ClientConfig(**settings))

    return make
