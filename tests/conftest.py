"""Fixtures that tests of several packages share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support import write_agent

if TYPE_CHECKING:
    from ppio_agent.client import AgentRuntimeClient
    from ppio_agent.sandbox import SandboxPlatform
    from tests.support_postgres import PostgresServer

# How long an example takes, or is made for, says nothing on a machine that does other
# things as well. `make fuzz` tries what reads foreign bytes for longer than the suite can.
settings.register_profile(
    "ours",
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")

Deploy = Callable[..., str]


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let reports reach the process that collects them, whatever was logged or shown.

    Text that cannot be encoded, which fuzzing writes, would end the whole run.
    """
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_encodable(one) for one in value)
    return value


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


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for all tests; each takes a `url()` of its own."""
    from tests.support_postgres import PostgresServer  # loads a driver

    server = PostgresServer()
    yield server
    server.close()
