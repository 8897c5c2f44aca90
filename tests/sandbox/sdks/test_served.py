"""An agent that `ppio-sandbox` 2.1.0 serves, as a template beside ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.sdks.agents import write_theirs, write_theirs_whole
from tests.support import needs_program


@pytest.mark.parametrize(
    ("backend", "programs", "write"),
    [
        ("process", (), write_theirs),
        # On its port 8080, as it is written for the cloud.
        ("bubblewrap", ("bwrap", "pasta"), write_theirs_whole),
    ],
)
def test_our_client_calls_it(
    tmp_path: Path,
    backend: str,
    programs: tuple[str, ...],
    write: Callable[[Path], Path],
) -> None:
    """Both ways; it sees neither the platform's key nor another credential."""
    for program in programs:
        needs_program(program)
    settings = PlatformConfig(data_dir=tmp_path / "data", backend=backend)
    with SandboxPlatform(settings) as platform:
        platform.deploy(write(tmp_path))
        config = ClientConfig.from_env({}, base_url=platform.url)
        with (
            AgentRuntimeClient(platform.api_key, config=config) as client,
            client.create_session("theirs") as session,
        ):
            answer = session.invoke({"n": 1})
            assert answer.result["request"] == {"n": 1}
            assert platform.api_key not in str(answer.result["headers"])
            words = list(session.invoke_stream({"words": ["a", "b"]}))
            assert words == [{"word": "a"}, {"word": "b"}]
            assert session.ping().status.value == "Healthy"
            assert session.invoke({}).result["pid"] == answer.result["pid"]
