"""Where settings come from, and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import attrs
import pytest

from ppio_agent.client import ClientConfig
from ppio_agent.exceptions import ConfigurationError


def test_argument_wins_over_environment_over_default() -> None:
    """And explain says which it was."""
    environ = {"PPIO_API_URL": "https://env.example", "PPIO_DOMAIN": "env.example"}

    config = ClientConfig.from_env(environ, domain="arg.example")

    assert config.base_url == "https://env.example"
    assert config.domain == "arg.example"
    assert config.timeout == 300.0
    origins = {line.name: line.origin for line in config.explain()}
    assert origins["base_url"] == "environment PPIO_API_URL"
    assert origins["domain"] == "argument"
    assert origins["timeout"] == "default"
    assert len(origins) == 22


def test_the_process_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration made by hand still follows what was exported."""
    monkeypatch.setenv("PPIO_SANDBOX_MAX_CONNECTIONS", "7")
    monkeypatch.setenv("PPIO_DEBUG", "true")

    config = ClientConfig(timeout=5)

    assert (config.max_connections, config.debug, config.timeout) == (7, True, 5.0)


def test_none_is_a_value() -> None:
    """No limit is something else than left out."""
    assert ClientConfig(timeout=None).timeout is None


def test_unknown_names_are_refused_with_the_nearest() -> None:
    """A slip of the pen does not pass silently."""
    with pytest.raises(TypeError, match=r"'time_out'; did you mean 'timeout'\?"):
        ClientConfig(time_out=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="_origins"):
        ClientConfig(_origins={})  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": 0}, "timeout has to be a number greater than 0"),
        ({"timeout": True}, "timeout"),
        ({"timeout": 10**400}, "timeout has to be"),
        ({"cache_ttl": float("inf")}, "cache_ttl has to be"),
        ({"max_retries": -1}, "max_retries"),
        ({"max_connections": 1.5}, "max_connections"),
        ({"max_event_bytes": 0}, "max_event_bytes"),
        ({"max_retries": 10**400}, "max_retries has to be"),
        ({"enable_cache": "maybe"}, "enable_cache has to be True or False"),
        ({"enable_cache": "é\0"}, "enable_cache"),
        ({"debug": "xxxx"}, "debug"),
        ({"enable_cache": 1}, "enable_cache has to be True or False"),
        ({"domain": "a/b"}, "domain"),
        ({"base_url": "ftp://x"}, "http"),
        ({"base_url": "http://example.com"}, "use https"),
        ({"base_url": "https://u:secret@example.com"}, "user name"),
        ({"base_url": "https://example.com:port"}, "not a URL"),
        ({"headers": {"X": "a\r\nB: c"}}, "line breaks"),
        ({"headers": {"x-api-key": "k"}}, "authentication"),
        ({"headers": {"X-PPIO-Nonce": "n"}}, "authentication"),
        ({"headers": {"ppio-sandbox-id": "a"}}, "routing"),
        ({"headers": {"E2b-Sandbox-Port": "1"}}, "routing"),
        ({"headers": ["X"]}, "mapping"),
        ({"ca_bundle": 5}, "a text"),
        ({"ca_bundle": "a\0"}, "ca_bundle has to be .* without control characters"),
        ({"proxy": "http://a\r\nb"}, "proxy has to be .* without control"),
        ({"domain": "a.example\n"}, "domain has to be .* without control"),
        ({"key_id": "a\nb"}, "key_id has to be .* without control"),
        ({"base_url": "https://a.example\r\n"}, "base_url has to be .* without"),
        ({"key_id": "\ud800"}, "key_id"),
    ],
)
def test_bad_values_are_refused(settings: dict[str, Any], message: str) -> None:
    """The error names the setting and what it has to be."""
    with pytest.raises(ConfigurationError, match=message):
        ClientConfig(**settings)


def test_bad_variables_are_named() -> None:
    """Whoever set it finds it."""
    with pytest.raises(ConfigurationError, match="PPIO_SANDBOX_MAX_CONNECTIONS"):
        ClientConfig.from_env({"PPIO_SANDBOX_MAX_CONNECTIONS": "many"})


@pytest.mark.parametrize(("text", "value"), [("On", True), ("no", False), ("0", False)])
def test_a_variable_says_yes_or_no(text: str, value: bool) -> None:
    """In the usual words."""
    assert ClientConfig.from_env({"PPIO_DEBUG": text}).debug is value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "x.localhost"])
def test_http_is_for_this_machine(host: str) -> None:
    """The key does not leave it, then."""
    assert ClientConfig(base_url=f"http://{host}:80/").base_url == f"http://{host}:80"


def test_secrets_are_hidden() -> None:
    """Neither repr nor explain shows what only its owner should know."""
    config = ClientConfig(
        proxy="http://me:hunter2@proxy:3128", headers={"X-Team-Token": "s3cr3t-value"}
    )

    shown = f"{config!r}{config.explain()}"
    assert "hunter2" not in shown
    assert "s3cr3t-value" not in shown
    assert "proxy:3128" in shown


def test_pickle_and_evolve() -> None:
    """A configuration travels, and a changed copy keeps the rest."""
    config = ClientConfig(base_url="https://a.example", timeout=None)

    assert pickle.loads(pickle.dumps(config)) == config
    changed = attrs.evolve(config, max_retries=0)
    assert (changed.base_url, changed.max_retries) == ("https://a.example", 0)


def test_replace_keeps_origins() -> None:
    """A copy with another timeout names no platform that was not named before."""
    changed = ClientConfig.from_env({"PPIO_DOMAIN": "a.example"}).replace(timeout=5)

    assert changed.timeout == 5.0
    assert changed.origin("timeout") == "argument"
    assert changed.origin("domain") == "environment PPIO_DOMAIN"
    assert changed.origin("idle_timeout") == "default"


def test_sandboxes_are_sought_where_their_platform_is() -> None:
    """The environment's origin for them is no other platform's: tokens go there."""
    environ = {
        "PPIO_API_URL": "https://a.example",
        "PPIO_SANDBOX_URL": "https://boxes.a.example",
    }
    own = ClientConfig.from_env(environ)
    assert own.sandbox_url == "https://boxes.a.example"
    assert own.replace(timeout=3).sandbox_url == "https://boxes.a.example"

    for other in (
        ClientConfig.from_env(environ, base_url="https://b.example"),
        own.replace(base_url="https://b.example"),
        own.replace(base_url="https://b.example").replace(timeout=3),
    ):
        assert other.sandbox_url is None
        assert "PPIO_SANDBOX_URL is not for" in other.origin("sandbox_url")

    both = own.replace(base_url="https://b.example", sandbox_url="https://c.example")
    assert both.sandbox_url == "https://c.example"
