"""Calls spelled as for Amazon's AgentCore runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, RuntimeStream
from ppio_agent.client.agent_runtime import read_payload
from ppio_agent.exceptions import (
    InvocationError,
    StreamClosedError,
    TemplateNotFoundError,
    ValidationError,
)
from tests.support_platform import Exchange, FakePlatform, echo_agent, template_record


@pytest.mark.parametrize(
    ("payload", "request_"),
    [
        (b'{"prompt": "Hi", "k": 1}', {"prompt": "Hi", "k": 1}),
        ('{"a": null}', {"a": None}),
        ('"quoted"', "quoted"),
        (b"Hello there", "Hello there"),
        (bytearray("Grüße".encode()), "Grüße"),
        ("42", "42"),
        ("null", "null"),
        ("", ""),
        ("{name}, hello", "{name}, hello"),
        ("[note] hello", "[note] hello"),
    ],
)
def test_payloads(payload: Any, request_: Any) -> None:
    """A JSON object is itself, all other text a prompt."""
    assert read_payload(payload) == request_


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\xff", "UTF-8, at byte 0"),
        (b"[1, 2]", "array"),
        ('{"x": NaN}', "no JSON object"),
        ("{'single': 1}", "no JSON object"),
        ({"a": 1}, "json.dumps"),
        (None, "bytes or str"),
    ],
)
def test_bad_payloads_send_nothing(
    client: AgentRuntimeClient, platform: FakePlatform, payload: Any, why: str
) -> None:
    """They are refused before there is a sandbox."""
    with pytest.raises(ValidationError, match=why):
        client.invoke_agent_runtime("tpl1", payload)

    assert platform.requests == []


def test_bad_session_ids_send_nothing(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """So are they."""
    with pytest.raises(ValidationError, match="session id"):
        client.invoke_agent_runtime("tpl1", b"Hi", runtimeSessionId="two words")

    assert platform.requests == []


def test_answer_and_conversation(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """The envelope whole; the id made up leads back to the same sandbox."""
    first: Any = client.invoke_agent_runtime("alias-tpl1", b'{"prompt": "Hi"}')
    again: Any = client.invoke_agent_runtime(
        "alias-tpl1", "once more", runtimeSessionId=first["runtimeSessionId"]
    )

    assert set(first) == {"response", "runtimeSessionId", "status", "agentId"}
    assert (first["status"], first["agentId"]) == ("success", "alias-tpl1")
    assert first["response"]["result"]["echo"] == {"prompt": "Hi"}
    assert first["response"]["metadata"] == {"invocation_id": "inv_1"}
    assert json.dumps(first)
    assert again["response"]["result"]["count"] == 2
    assert platform.alive == ["sb1"]
    assert client.close_session(first["runtimeSessionId"])
    assert platform.alive == []
    assert [s.in_flight for s in client.list_sessions()] == []


def test_a_streaming_agent(client: AgentRuntimeClient, platform: FakePlatform) -> None:
    """Its pieces as they came, each with the ids; close leaves the sandbox."""

    def agent(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            echo_agent(exchange)
            return
        exchange.start_stream()
        exchange.send(b'data: "a"\n\ndata: {"n": 1}\n\n')
        exchange.end_stream()

    platform.agent = agent
    stream = client.invoke_agent_runtime("tpl1", b"Hi", runtimeSessionId="s")
    assert isinstance(stream, RuntimeStream)
    running = client.list_sessions()[0].in_flight
    pieces = list(stream)

    ids = {"runtimeSessionId": "s", "agentId": "tpl1"}
    assert pieces == [{"chunk": '"a"', **ids}, {"chunk": '{"n": 1}', **ids}]
    assert (stream["runtimeSessionId"], stream["status"]) == ("s", "streaming")
    assert stream["response"] is stream
    assert running == 1
    assert client.list_sessions()[0].in_flight == 0
    assert platform.alive == ["sb1"]

    with client.invoke_agent_runtime("tpl1", b"Hi", runtimeSessionId="s") as other:  # type: ignore[union-attr]  # it streams
        pass
    with pytest.raises((StopIteration, StreamClosedError)):
        next(other)


def test_errors_of_the_agent(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """They are raised as by every other call."""
    envelope = {"result": None, "status": "error", "error": "no luck"}
    platform.on("POST", "/inv", lambda e: e.reply(500, envelope))

    with pytest.raises(InvocationError, match="no luck"):
        client.invoke_agent_runtime("tpl1", b"Hi")


def test_endpoints_are_versions(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """Of two templates of one name the endpoint says which; DEFAULT says nothing."""
    platform.templates = [
        template_record("old", aliases=["chat"], version="1", metadata={}),
        template_record("new", aliases=["chat"], version="2", metadata={}),
    ]
    old: Any = client.invoke_agent_runtime("chat", b"Hi", "s", endpoint="1")
    new: Any = client.invoke_agent_runtime("agent-new", b"Hi", "s", endpoint="2")
    plain: Any = client.invoke_agent_runtime(
        "agent-new", b"Hi", "s", endpoint="DEFAULT"
    )

    assert old["response"]["result"]["sandbox"] == "sb1"
    assert new["response"]["result"]["sandbox"] == "sb2"
    assert plain["response"]["result"]["count"] == 2
    with pytest.raises(ValidationError, match="several templates"):
        client.invoke_agent_runtime("chat", b"Hi")
    with pytest.raises(TemplateNotFoundError, match="chat:3"):
        client.invoke_agent_runtime("chat", b"Hi", endpoint="3")


def test_the_template_is_looked_up_once(
    make_client: Callable[..., AgentRuntimeClient], platform: FakePlatform
) -> None:
    """Also where no list is kept."""
    make_client(enable_cache=False).invoke_agent_runtime("tpl1", "Hi")

    assert len(platform.seen("GET", "/templates")) == 1
