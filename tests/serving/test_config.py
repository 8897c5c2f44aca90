"""Settings: argument, else environment, else default."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.serving import AgentConfig, PPIOAgentRuntimeApp


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PPIO_SANDBOX_ID", raising=False)


def test_the_settings_of_the_field_are_accepted() -> None:
    """As the documents in the field write them."""
    config = AgentConfig(
        host="0.0.0.0",
        port=8080,
        timeout=300,
        max_request_size=1024 * 1024,
        cors_origins=["*"],
        debug=False,
        log_level="INFO",
    )
    assert config.cors_origins == ("*",)
    assert PPIOAgentRuntimeApp(config=config).config is config


def test_argument_comes_before_environment_before_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For each field alone."""
    monkeypatch.setenv("PPIO_AGENT_PORT", "9000")
    monkeypatch.setenv("PPIO_AGENT_TIMEOUT", "none")
    config = AgentConfig(port=9001)
    assert (config.port, config.timeout, config.host) == (9001, None, "127.0.0.1")
    assert AgentConfig().port == 9000


def test_in_a_sandbox_it_listens_on_all_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The platform's edge is the only one that reaches it."""
    monkeypatch.setenv("PPIO_SANDBOX_ID", "sb1")
    assert AgentConfig().host == "0.0.0.0"


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("yes", "debug", True),
        ("0", "detect_disconnect", False),
        ("2.5", "heartbeat", 2.5),
        ("None", "heartbeat", None),
        ("https://a.example, https://b.example/", "cors_origins", ("https://a.example", "https://b.example")),
        ("debug", "log_level", "DEBUG"),
        ("7", "max_queue", 7),
        ("no", "playground", False),
        ("None", "playground", None),
    ],
)  # fmt: skip
def test_the_environments_text_is_read_by_type(
    text: str, name: str, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers, flags, lists, and `none`."""
    monkeypatch.setenv(f"PPIO_AGENT_{name.upper()}", text)
    assert getattr(AgentConfig(), name) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "http"), ("port", 70_000), ("port", True), ("port", 1.5),
        ("timeout", 0), ("timeout", "soon"), ("timeout", float("nan")),
        ("timeout", float("inf")), ("heartbeat", []), ("debug", "perhaps"), ("debug", 1),
        ("host", ""), ("host", 5), ("cors_origins", 5), ("cors_origins", [5]),
        ("log_level", "loud"), ("max_concurrency", 0), ("retention", None),
    ],
)  # fmt: skip
def test_an_ill_typed_value_names_its_setting(name: str, value: Any) -> None:
    """And how it is set from outside."""
    with pytest.raises(ConfigurationError, match=f"^{name} .or PPIO_AGENT_"):
        AgentConfig(**{name: value})


def test_an_unknown_setting_is_refused() -> None:
    """By the class and by the app."""
    with pytest.raises(TypeError):
        AgentConfig(colour="red")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        PPIOAgentRuntimeApp(colour="red")


def test_single_settings_override_a_config() -> None:
    """`debug=True` next to `config=`."""
    app = PPIOAgentRuntimeApp(config=AgentConfig(port=9000), debug=True)
    assert (app.config.port, app.config.debug) == (9000, True)
    assert attrs.evolve(app.config, debug=False).port == 9000
