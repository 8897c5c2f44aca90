"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support import write_agent

if TYPE_CHECKING:
    from ppio_agent.client import AgentRuntimeClient
    from ppio_agent.sandbox import SandboxPlatform

# How long an example takes says nothing on a machine that does other things as well.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")

Deploy = Callable[..., str]


@pytest.fixture(scope="session")
def platform(ppio_platform: SandboxPlatform) -> SandboxPlatform:
    """One real platform for all tests that need just any."""
    return ppio_platform


@pytest.fixture
def client(ppio_client: AgentRuntimeClient) -> AgentRuntimeClient:
    """A client of the platform; its sandboxes end with the test."""
    return ppio_client


@pytest.fixture
def deploy(platform: SandboxPlatform, tmp_path: Path) -> Deploy:
    """Deploy the source of an agent and return the id of its template."""

    def deploy(source: str, *, name: str = "test-agent", **manifest: object) -> str:
        folder = write_agent(tmp_path / name, source, name=name, **manifest)
        return platform.deploy(folder).template_id

    return deploy
