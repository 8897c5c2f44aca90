"""An agent that `ppio-sandbox` 2.1.0 serves, as a template beside ours."""

from __future__ import annotations

from pathlib import Path

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.sandbox import SandboxPlatform
from tests.peers import needs_peer
from tests.sandbox.agents import write_agent
from tests.sandbox.sdks.agents import theirs


def test_our_client_calls_it(platform: SandboxPlatform, tmp_path: Path) -> None:
    """Both ways; it sees neither the platform's key nor another credential."""
    source = theirs(needs_peer("ppio-2"))
    platform.deploy(write_agent(tmp_path, "theirs", {"app.py": source}))
    config = ClientConfig.from_env({}, base_url=platform.url)
    with (
        AgentRuntimeClient(platform.api_key, config=config) as client,
        client.create_session("theirs") as session,
    ):
        answer = session.invoke({"n": 1})
        assert answer.result["request"] == {"n": 1}
        assert platform.api_key not in str(answer.result["headers"])
        assert session.invoke({}).result["pid"] == answer.result["pid"]
        words = list(session.invoke_stream({"words": ["a", "b"]}))
        assert words == [{"word": "a"}, {"word": "b"}]
        assert session.ping().status.value == "Healthy"
