"""Variants of a client: other settings, the same connections, sessions and templates."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable

import pytest

from ppio_agent.client import AgentRuntimeClient
from ppio_agent.exceptions import (
    ClientClosedError,
    ConfigurationError,
    RequestTimeoutError,
    ServiceUnavailableError,
)
from tests.support_platform import Exchange, FakePlatform

Make = Callable[..., AgentRuntimeClient]


def test_a_timeout_bounds_the_calls_of_the_variant_alone(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """The client that it was made of keeps its own."""
    quick = client.with_options(timeout=0.2)
    late = threading.Event()

    def slow(_exchange: Exchange) -> None:
        late.wait(30.0)

    assert quick.config.timeout == 0.2
    assert client.config.timeout == 300.0
    platform.on("POST", "/invocations", slow)
    with pytest.raises(RequestTimeoutError):
        quick.invoke_agent("tpl1", "Hello")
    with pytest.raises(RequestTimeoutError):
        quick.invoke_agent("tpl1", "Hello", session_id="s")
    late.set()


def test_retries_are_those_of_the_variant(
    make_client: Make, platform: FakePlatform
) -> None:
    """None at all, although the client would try again."""
    client = make_client(max_retries=3)
    once = client.with_options(max_retries=0)
    platform.on(
        "POST", "/invocations", lambda e: e.reply(503, {"code": "service_unavailable"})
    )
    with pytest.raises(ServiceUnavailableError) as caught:
        once.invoke_agent("tpl1", "Hello")
    assert caught.value.attempts == 1


def test_headers_are_added_to_those_of_the_client(
    make_client: Make, platform: FakePlatform
) -> None:
    """To both planes; the variant's own win."""
    client = make_client(headers={"X-Team": "red", "X-Site": "a"})
    variant = client.with_options(headers={"X-Team": "blue"})
    variant.invoke_agent("tpl1", "Hello")
    client.get_template("tpl1")
    created, *_, killed = [r for r in platform.requests if r.method != "GET"]
    for request in (created, killed):
        assert request.headers["x-team"] == "blue"
        assert request.headers["x-site"] == "a"
    listed = platform.requests[0]
    assert listed.headers["x-team"] == "red"


def test_sessions_and_templates_and_connections_are_shared(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """A conversation goes on in the sandbox that it has; nothing is fetched again."""
    first = client.invoke_agent("tpl1", "Hello", session_id="s")
    second = client.with_options(timeout=5.0).invoke_agent(
        "tpl1", "Hello", session_id="s"
    )
    assert second.sandbox_id == first.sandbox_id
    assert len(client.list_sessions()) == 1
    listed = [r for r in platform.requests if r.path.startswith("/templates")]
    assert len(listed) == 1


def test_closing_one_closes_all(client: AgentRuntimeClient) -> None:
    """They are one client with several settings."""
    variant = client.with_options(timeout=5.0)
    variant.create_session("tpl1")
    variant.close()
    with pytest.raises(ClientClosedError):
        client.invoke_agent("tpl1", "Hello")


def test_a_variant_before_the_first_call_finds_a_closed_client_closed(
    client: AgentRuntimeClient,
) -> None:
    """Whether or not there were connections."""
    variant = client.with_options(max_retries=1)
    client.close()
    with pytest.raises(ClientClosedError):
        variant.invoke_agent("tpl1", "Hello")


def test_it_pickles_with_its_settings(client: AgentRuntimeClient) -> None:
    """In another process it is a client of its own."""
    variant = client.with_options(timeout=5.0, headers={"X-Team": "blue"})
    with pickle.loads(pickle.dumps(variant)) as copied:
        assert copied.config == variant.config


def test_what_cannot_be_used_is_refused(client: AgentRuntimeClient) -> None:
    """At once, by the rules of the settings."""
    with pytest.raises(ConfigurationError, match="timeout"):
        client.with_options(timeout=-1.0)
    with pytest.raises(ConfigurationError, match="authentication"):
        client.with_options(headers={"Authorization": "mine"})
