"""Settings: argument, else environment, else default."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.serving import AgentConfig, PPIOAgentRuntimeApp
from ppio_agent.serving.config import checked_timeout, unknown_settings


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


@pytest.mark.parametrize(
    "timeout",
    [
        "5",
        -5,
        0,
        True,
        float("inf"),
        float("nan"),
        [],
        pytest.param(10**400, id="huge"),
    ],
)
def test_the_timeout_of_an_entrypoint_is_checked_as_the_setting_is(
    timeout: Any,
) -> None:
    """Where it is written, not when the first request comes."""
    with pytest.raises(ConfigurationError, match="a number of seconds above 0, or"):
        PPIOAgentRuntimeApp().entrypoint(timeout=timeout)
    assert checked_timeout(5) == 5.0
    assert checked_timeout(None) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", 99_999), ("port", "8080x"), ("port", -1), ("port", True), ("host", "")],
)
def test_where_a_server_is_to_listen_is_checked_as_the_setting_is(
    name: str, value: Any
) -> None:
    """Before anything is started."""
    app, started = PPIOAgentRuntimeApp(), []
    app.on_startup(lambda: started.append(1))
    for serve in (app.server, app.run):
        with pytest.raises(ConfigurationError, match=f"^{name} .or PPIO_AGENT_"):
            serve(**{name: value})
    assert started == []


def test_the_platforms_port_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its variable is not ours, but what it sets is."""
    monkeypatch.setenv("PPIO_SANDBOX_ID", "sb1")
    monkeypatch.setenv("PORT", "http")
    with pytest.raises(ConfigurationError, match=r"^port .or PPIO_AGENT_"):
        PPIOAgentRuntimeApp().server()


def test_a_variable_that_is_no_setting_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the setting that may be meant; its value is nobody's business."""
    monkeypatch.setenv("PPIO_AGENT_TIMOUT", "3-secret")
    monkeypatch.setenv("PPIO_AGENT_TIMEOUT", "3")
    app = PPIOAgentRuntimeApp()
    app.entrypoint(lambda request: "ok")
    with caplog.at_level("WARNING", "ppio_agent"), app.test_client() as client:
        client.invoke({})
        client.invoke({})
    assert [record.getMessage() for record in caplog.records] == [
        "the variable PPIO_AGENT_TIMOUT is no setting of the agent:"
        " is PPIO_AGENT_TIMEOUT meant?"
    ]


def test_variables_of_others_are_left_alone() -> None:
    """Only our prefix says that a setting was meant."""
    assert not [*unknown_settings({"PPIO_API_KEY": "k", "PPIO_AGENT_PORT": "1"})]
    assert [*unknown_settings({"PPIO_AGENT_xyz": "", "PPIO_AGENT_port": ""})] == [
        ("PPIO_AGENT_port", ": is PPIO_AGENT_PORT meant?"),
        ("PPIO_AGENT_xyz", ""),
    ]


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
