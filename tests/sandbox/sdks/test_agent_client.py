"""`AgentRuntimeClient` of `ppio-sandbox` 1.1.3, unmodified, over TLS. Acceptance 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.agents import write_agent
from tests.sandbox.sdks.agents import ECHO, write_theirs
from tests.sandbox.sdks.peer import Peer
from tests.support import wait_until


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    config = PlatformConfig(data_dir=folder, backend="process", tls_port=0)
    with SandboxPlatform(config) as platform:
        yield platform


@pytest.fixture
def peer(platform: SandboxPlatform) -> Iterator[Peer]:
    with Peer("ppio-1", "agent_client", platform) as peer:
        yield peer


def _deploy(platform: SandboxPlatform, folder: Path, name: str, source: str) -> str:
    template = platform.deploy(write_agent(folder, name, {"app.py": source}))
    return f"{name}-{template.template_id}"


def test_an_agent_is_found_called_streamed_from_and_ended(
    peer: Peer, platform: SandboxPlatform, tmp_path: Path
) -> None:
    """One conversation is one sandbox, with one process of the agent in it."""
    agent = _deploy(platform, tmp_path, "echo", ECHO)
    (found,) = [one for one in peer.do("list_templates") if one["name"] == "echo"]
    assert agent == f"echo-{found['id']}"
    document = json.loads(found["metadata"]["agent_runtime"])
    assert document["spec"]["entrypoint"] == "app.py"

    first = peer.do(
        "invoke",
        agent=agent,
        request={"prompt": "hällo"},
        conversation="one",
        envs={"GREETING": "hi"},
    )
    assert (first["status"], first["agentId"]) == ("success", agent)
    assert first["response"]["request"] == {"prompt": "hällo"}
    assert first["response"]["greeting"] == "hi"
    second = peer.do("invoke", agent=agent, request={}, conversation="one")
    assert second["response"]["count"] == 2
    assert second["response"]["pid"] == first["response"]["pid"]
    words = peer.do(
        "stream", agent=agent, request={"words": ["a", "ß"]}, conversation="one"
    )
    assert [json.loads(word) for word in words] == ["a", "ß"]
    looked = peer.do("look", conversation="one")
    assert (looked["ping"], looked["status"]) == ("Healthy", "active")

    supervisor = psutil.Process(first["response"]["pid"]).parent()
    assert [one.pid for one in supervisor.children()] == [first["response"]["pid"]]
    other = peer.do("invoke", agent=agent, request={}, conversation="two")
    assert other["response"]["pid"] != first["response"]["pid"]

    peer.do("close_session", conversation="one")
    assert len(platform.sandboxes.list_sandboxes()) == 1
    peer.do("close")
    wait_until(lambda: platform.sandboxes.list_sandboxes() == [])


def test_the_agent_sees_no_key_of_the_platform(
    peer: Peer, platform: SandboxPlatform, tmp_path: Path
) -> None:
    """The client sends it to the agent with each request; it is taken out on the way."""
    agent = _deploy(platform, tmp_path, "echo", ECHO)
    answer = peer.do("invoke", agent=agent, request={})
    headers = answer["response"]["headers"]
    assert "PPIO-AgentRuntime-Client/1.0" in headers.values()
    secrets = (platform.api_key, platform.env()["PPIO_DOMAIN"].partition("@")[0])
    assert not [secret for secret in secrets if secret in json.dumps(headers)]
    assert "authorization" not in {name.lower() for name in headers}
    peer.do("close")


def test_an_agent_of_their_own_answers_it(
    peer: Peer, platform: SandboxPlatform, tmp_path: Path
) -> None:
    """`ppio-sandbox` serves it, with Starlette."""
    template = platform.deploy(write_theirs(tmp_path))
    agent = f"theirs-{template.template_id}"
    answer = peer.do("invoke", agent=agent, request={"n": 1}, conversation="one")
    assert answer["response"]["result"]["request"] == {"n": 1}
    words = peer.do(
        "stream", agent=agent, request={"words": ["a", "b"]}, conversation="one"
    )
    assert [json.loads(word) for word in words] == [{"word": "a"}, {"word": "b"}]
    peer.do("close")


def test_an_agent_that_is_not_there(peer: Peer) -> None:
    assert peer.do("missing", agent=f"nope-{20 * 'x'}") == "ResourceNotFoundException"
