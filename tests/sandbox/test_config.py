"""Settings: argument over environment over default, and nothing open by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.sandbox.config import (
    PlatformConfig,
    default_data_dir,
    unknown_settings,
)


def test_the_data_directory_follows_the_environment() -> None:
    assert default_data_dir({"PPIO_DATA_DIR": "/x"}) == Path("/x/platform")
    assert default_data_dir({}) == Path.home() / ".ppio-agent" / "platform"
    config = PlatformConfig.from_env({"PPIO_DATA_DIR": "/x"})
    assert config.data_dir == Path("/x/platform")


def test_an_argument_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {
        "PPIO_PLATFORM_PORT": "3900",
        "PPIO_PLATFORM_DATA_DIR": "/y",
        "PPIO_PLATFORM_ANY_KEY": "true",
        "PPIO_PLATFORM_KEYS": "red=key-1, blue=key-2",
        "PPIO_PLATFORM_PAUSED_TIMEOUT": "1.5",
        "PPIO_PLATFORM_TEMPLATES_DIR": "/agents",
        "PPIO_PLATFORM_HOST": " ",
    }
    config = PlatformConfig.from_env(environ, port=1234)

    assert (1234, Path("/y"), True) == (config.port, config.data_dir, config.any_key)
    assert config.keys == {"key-1": "red", "key-2": "blue"}
    assert (1.5, Path("/agents")) == (config.paused_timeout, config.templates_dir)
    assert config.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "text"),
    [("ANY_KEY", "perhaps"), ("KEYS", "s3cret-key-alone")],
)
def test_an_unreadable_variable_that_may_hold_a_key_is_not_shown(
    name: str, text: str
) -> None:
    with pytest.raises(ValueError, match=f"PPIO_PLATFORM_{name}.*: expected") as info:
        PlatformConfig.from_env({f"PPIO_PLATFORM_{name}": text})

    assert text not in str(info.value)


def test_a_variable_that_is_no_number_is_shown_with_what_is_expected() -> None:
    for name, expected in (("WARM", "a whole number"), ("ORPHAN_GRACE", "a number")):
        told = f"PPIO_PLATFORM_{name} is 'abc': expected {expected}$"
        with pytest.raises(ValueError, match=told):
            PlatformConfig.from_env({f"PPIO_PLATFORM_{name}": "abc"})


def test_a_variable_that_is_no_setting_is_found() -> None:
    environ = {"PPIO_PLATFORM_WARM": "1", "PPIO_PLATFORM_WRAM": "2"}

    (found,) = unknown_settings(environ)
    assert found == ("PPIO_PLATFORM_WRAM", ": is PPIO_PLATFORM_WARM meant?")


@pytest.mark.parametrize(
    "fields",
    [
        {"port": 65536},
        {"max_sandboxes": 0},
        {"default_timeout": 0},
        {"backend": "docker"},
        {"domain": ""},
        {"domain": "*.test"},
        {"domain": "a..test"},
        {"domain": "a/b.test"},
        {"domain": "a b"},
        {"domain": "a.test\n"},
        {"keys": {"": "tenant"}},
        {"keys": {"key": ""}},
        {"keys": {"key": " "}},
        {"max_timeout": 60, "default_timeout": 61},
    ],
)
def test_a_value_out_of_range_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"."):
        PlatformConfig(**fields)  # type: ignore[arg-type]


def test_sandboxes_live_no_longer_by_default_than_they_may() -> None:
    assert PlatformConfig().default_timeout == 300
    assert PlatformConfig(max_timeout=60).default_timeout == 60
    environ = {"PPIO_PLATFORM_MAX_TIMEOUT": "60"}
    assert PlatformConfig.from_env(environ).default_timeout == 60


@pytest.mark.parametrize(
    "fields", [{"port": "x"}, {"keys": 5}, {"data_dir": 5}, {"max_timeout": None}]
)
def test_a_value_of_another_type_is_a_setting_that_cannot_be_used(
    fields: dict[str, object],
) -> None:
    with pytest.raises(ConfigurationError, match="type"):
        PlatformConfig.from_env({}, **fields)


def test_an_open_address_needs_keys_that_were_chosen() -> None:
    for fields in ({}, {"any_key": True, "keys": {"key": "t"}}):
        with pytest.raises(
            ValueError, match=r"host 0\.0\.0\.0.*--key, or PPIO_PLATFORM_KEYS"
        ):
            PlatformConfig(host="0.0.0.0", **fields)  # type: ignore[arg-type]

    assert PlatformConfig(host="0.0.0.0", keys={"key": "t"}).host == "0.0.0.0"


def test_keys_are_in_no_repr() -> None:
    assert "sk_secret" not in repr(PlatformConfig(keys={"sk_secret": "t"}))


@pytest.mark.parametrize("domain", ["localhost", "test:443"])
def test_tls_needs_a_domain_that_certificates_can_be_for(domain: str) -> None:
    """Clients refuse `*.localhost`; without TLS it will do."""
    assert PlatformConfig(domain=domain).domain == domain
    with pytest.raises(ValueError, match="tls_port"):
        PlatformConfig(domain=domain, tls_port=0)
    assert PlatformConfig(domain="a.test:3443", tls_port=0).tls_port == 0
