"""The plug-in that pytest loads: fixtures for programs that call agents, and for agents.

Each fixture imports what it needs when it is first used, so that a run that uses none
pays for none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ppio_agent.client import AgentRuntimeClient
    from ppio_agent.sandbox import SandboxPlatform

    from .agents import ServedAgent

__all__ = ["ppio_agent_app", "ppio_client", "ppio_platform"]


@pytest.fixture(scope="session")
def ppio_platform(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SandboxPlatform]:
    """A local sandbox platform for the whole run, its data in a temporary folder.

    Deploy agents by ``ppio_platform.deploy(folder)``; `url` and `api_key` are for
    programs that make their own client.
    """
    from ppio_agent.exceptions import PPIOAgentError
    from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

    data_dir = tmp_path_factory.mktemp("ppio-platform")
    # On every machine the same, and agents may use what the tests have on theirs.
    config = PlatformConfig(data_dir=data_dir, backend="process")
    platform = SandboxPlatform(config)
    try:
        platform.start()
    except (PPIOAgentError, OSError) as error:
        pytest.fail(
            f"ppio_platform: the local platform does not start: {error}", pytrace=False
        )
    with platform:
        yield platform


@pytest.fixture
def ppio_client(ppio_platform: SandboxPlatform) -> Iterator[AgentRuntimeClient]:
    """A client of `ppio_platform`; its sessions and sandboxes end with the test.

    The variables of the environment that configure clients are not read.
    """
    from ppio_agent.client import AgentRuntimeClient, ClientConfig

    config = ClientConfig.from_env({}, base_url=ppio_platform.url)
    with AgentRuntimeClient(ppio_platform.api_key, config=config) as client:
        yield client


@pytest.fixture(scope="session")
def _ppio_apps() -> Iterator[dict[int, ServedAgent]]:
    served: dict[int, ServedAgent] = {}
    with ExitStack() as stack:
        yield served
        for agent in served.values():
            stack.callback(agent.close)


@pytest.fixture
def ppio_agent_app(
    _ppio_apps: dict[int, ServedAgent],
) -> Iterator[Callable[..., ServedAgent]]:
    """Serve an agent for a test; call it with a handler or an app.

    After ``agent = ppio_agent_app(handler)``, ``agent.client`` calls it in process, and
    ``agent.url`` is where it is served on a free port. A handler ends with the test. An
    app (`PPIOAgentRuntimeApp`), which cannot be opened again, is served until the run
    ends. Settings may follow a handler: ``ppio_agent_app(handler, max_concurrency=1)``.
    """
    from ppio_agent.serving import PPIOAgentRuntimeApp

    from .agents import ServedAgent

    def serve(agent: Any, **settings: Any) -> ServedAgent:
        if isinstance(agent, PPIOAgentRuntimeApp) and not settings:
            return _ppio_apps.setdefault(id(agent), ServedAgent(agent))
        return stack.enter_context(ServedAgent(agent, **settings))

    with ExitStack() as stack:
        yield serve
