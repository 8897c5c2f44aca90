"""Clients of one platform and key use the same connections, each for its own calls."""

from __future__ import annotations

import gc
from urllib.parse import urlsplit

import psutil
import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from tests.client.support_web import TalkingAgent
from tests.support import new_threads, wait_until
from tests.support_platform import KEY, FakePlatform


def _make(
    platform: FakePlatform, key: str = KEY, **settings: float
) -> AgentRuntimeClient:
    config = ClientConfig(base_url=platform.url, **settings)  # type: ignore[arg-type]  # numbers all
    return AgentRuntimeClient(key, config=config)


def _connections(platform: FakePlatform) -> int:
    port = urlsplit(platform.url).port
    found = psutil.Process().net_connections("tcp")
    return sum(bool(c.raddr) and c.raddr.port == port for c in found)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_client_for_each_request_connects_once(platform: FakePlatform) -> None:
    """Also if nobody closes them, as in a view that makes its client anew."""
    threads = new_threads("ppio-client")
    for number in range(10):
        client = _make(platform)
        answer = client.invoke_agent("tpl1", f"Hi {number}")
        assert answer.result["echo"] == {"prompt": f"Hi {number}"}
        del client
    gc.collect()
    wait_until(lambda: not threads())
    assert _connections(platform) == 1
    _make(platform).close()  # used nothing, ends nothing
    assert _connections(platform) == 1
    last = _make(platform)
    assert last.list_templates()
    last.close()
    assert _connections(platform) == 0


def test_other_keys_and_settings_have_their_own(platform: FakePlatform) -> None:
    """What differs in the calls only makes no difference."""
    clients = [
        _make(platform),
        _make(platform, timeout=20.0),
        _make(platform, key=f"{KEY}-2"),
        _make(platform, connect_timeout=5.0),
    ]
    for client in clients:
        client.list_templates()
    assert _connections(platform) == 3
    for client in clients:
        client.close()
    assert _connections(platform) == 0


def test_closing_one_client_leaves_the_calls_of_another(platform: FakePlatform) -> None:
    """Its stream goes on; its own end closes what they shared."""
    agent = platform.agent = TalkingAgent()
    one, other = _make(platform), _make(platform)
    assert one.invoke_agent("tpl1", "Hi").status == "success"
    with other.invoke_agent_stream("tpl1", "quiet") as stream:
        assert next(stream) == "a"
        one.close()
        agent.cancelled.set()
        assert list(stream) == []
    other.close()
    assert _connections(platform) == 0
