"""How a local platform is set up. Values; nothing is opened here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import attrs
from attrs import field, frozen
from attrs.validators import ge, gt, in_

from ppio_agent._util.net import is_loopback
from ppio_agent._util.variables import unknown_variables
from ppio_agent.exceptions import ConfigurationError

__all__ = ["PlatformConfig", "default_data_dir", "unknown_settings"]

_PREFIX: Final = "PPIO_PLATFORM_"
_HIGHEST_PORT: Final = 65535
_DOMAIN: Final = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63})*(:[0-9]{1,5})?")
_DEFAULT_TIMEOUT: Final = 300


def default_data_dir(environ: Mapping[str, str]) -> Path:
    """Return `$PPIO_DATA_DIR/platform`, by default `~/.ppio-agent/platform`."""
    base = environ.get("PPIO_DATA_DIR")
    return (Path(base) if base else Path.home() / ".ppio-agent") / "platform"


def _path(value: str | Path) -> Path:
    return Path(value).expanduser().absolute()


def _truth(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("neither true nor false")


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for item in text.split(","):
        tenant, equals, key = item.strip().partition("=")
        if not (tenant and equals and key):
            raise ValueError("no pair")
        pairs[key] = tenant
    return pairs


_EXPECTED: Final[Mapping[Callable[[str], object], str]] = {
    int: "a whole number",
    float: "a number",
    _truth: "true or false",
    _pairs: "tenant=key, separated by commas",
}


def _check_port(_: object, __: object, value: int) -> None:
    if not 0 <= value <= _HIGHEST_PORT:
        raise ValueError(f"port must be from 0 to {_HIGHEST_PORT}")


def _check_keys(_: object, __: object, value: Mapping[object, object]) -> None:
    for part in (*value.keys(), *value.values()):
        if not (isinstance(part, str) and part.strip()):
            # Not which: it may be a key.
            raise ValueError("keys: expected API keys and names of tenants, none empty")


def _check_domain(_: object, __: object, value: str) -> None:
    if not _DOMAIN.fullmatch(value):
        raise ValueError(
            f"domain {value!r} cannot be part of a host name: take letters, digits and"
            " - with dots between, as in sandbox.test"
        )


@frozen(kw_only=True)
class PlatformConfig:
    """Settings of a `SandboxPlatform`.

    Args:
        data_dir: Where templates, sandboxes and logs are; made with mode 0700.
        host: Address of the one listener.
        port: Its port; 0 takes a free one.
        domain: Given to clients; they build host names of sandboxes from it. With TLS
            it needs two labels or more.
        keys: API key → tenant name. Empty: one key is generated, kept in `data_dir`
            (0600), and belongs to the tenant `default`.
        any_key: Accept every key of at least 8 characters, each as its own tenant;
            for tests, on loopback only.
        max_sandboxes_per_tenant: Live sandboxes of one tenant, paused included.
        max_sandboxes: Live sandboxes of all tenants.
        max_timeout: Longest life that may be asked for, in seconds.
        default_timeout: Seconds a sandbox lives when its creator names none; 300, or
            `max_timeout` if that is less.
        paused_timeout: Seconds a paused sandbox is kept before it is killed.
        orphan_grace: Seconds that sandboxes outlive a platform that crashed, for the
            next one to take them over.
        backend: How sandboxes run: `process`, `bubblewrap`, or `auto` for the best
            there is.
        warm: Blank bubblewrap sandboxes that are kept ready.
        command_deadline: `enforce` kills a command at the time limit that its caller
            sent, as the cloud does; `off` only takes note of it.
        tls_port: Port of a second listener that speaks TLS; 0 takes a free one, None
            has none. Needs the extra `tls`.
        templates_dir: Folder whose subfolders are agents; a template that is asked
            for by name and not held is deployed from there. None: none.

    Raises:
        TypeError: A value has another type.
        ValueError: A value is out of range or does not go with another, or another
            host than loopback is to be bound with a key that was not chosen for it.

    Thread safety: immutable.
    """

    data_dir: Path = field(
        factory=lambda: default_data_dir({}), converter=_path, metadata={"read": str}
    )
    host: str = field(default="127.0.0.1", metadata={"read": str})
    port: int = field(default=0, validator=_check_port, metadata={"read": int})
    domain: str = field(
        default="sandbox.test", validator=_check_domain, metadata={"read": str}
    )
    keys: Mapping[str, str] = field(
        factory=dict,
        converter=dict,
        validator=_check_keys,
        repr=False,
        metadata={"read": _pairs},
    )
    any_key: bool = field(default=False, metadata={"read": _truth})
    max_sandboxes_per_tenant: int = field(
        default=20, validator=gt(0), metadata={"read": int}
    )
    max_sandboxes: int = field(default=100, validator=gt(0), metadata={"read": int})
    max_timeout: int = field(default=86400, validator=gt(0), metadata={"read": int})
    default_timeout: int = field(validator=gt(0), metadata={"read": int})
    paused_timeout: float = field(
        default=86400.0, validator=gt(0), metadata={"read": float}
    )
    orphan_grace: float = field(default=30.0, validator=ge(0), metadata={"read": float})
    backend: str = field(
        default="auto",
        validator=in_(("auto", "process", "bubblewrap")),
        metadata={"read": str},
    )
    warm: int = field(default=2, validator=ge(0), metadata={"read": int})
    command_deadline: str = field(
        default="off", validator=in_(("off", "enforce")), metadata={"read": str}
    )
    tls_port: int | None = field(
        default=None,
        validator=attrs.validators.optional(_check_port),
        metadata={"read": int},
    )
    templates_dir: Path | None = field(
        default=None,
        converter=attrs.converters.optional(_path),
        metadata={"read": str},
    )

    @default_timeout.default
    def _default_timeout(self) -> int:
        return min(_DEFAULT_TIMEOUT, self.max_timeout)

    def __attrs_post_init__(self) -> None:
        if self.default_timeout > self.max_timeout:
            raise ValueError(
                f"default_timeout {self.default_timeout} is longer than max_timeout"
                f" {self.max_timeout}: make the one shorter or the other longer"
            )
        if not is_loopback(self.host) and (self.any_key or not self.keys):
            raise ValueError(
                f"host {self.host} can be reached by others: give keys of your own"
                " (--key, or PPIO_PLATFORM_KEYS), and leave any_key off"
            )
        if self.tls_port is not None and "." not in self.domain:
            raise ValueError(
                f"domain {self.domain} cannot be used with tls_port: clients accept no"
                " certificate for all names of one label; take two, as in sandbox.test"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> PlatformConfig:
        """Return the configuration that the environment and the arguments make.

        Precedence: argument, then `PPIO_PLATFORM_<NAME>`, then the default; the data
        directory also follows `PPIO_DATA_DIR`. `PPIO_PLATFORM_KEYS` holds
        `tenant=key` pairs separated by commas.

        Args:
            environ: The environment; nothing else is read.
            overrides: Fields of this class.

        Raises:
            ConfigurationError: A variable or an argument has a value that cannot be
                used.
        """
        found: dict[str, Any] = {"data_dir": default_data_dir(environ)}
        for member in attrs.fields(cls):
            text = environ.get(f"{_PREFIX}{member.name.upper()}", "").strip()
            if text and member.name not in overrides:
                found[member.name] = _read(member.name, text, member.metadata["read"])
        try:
            return cls(**{**found, **overrides})
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
        except TypeError as error:
            raise ConfigurationError(
                f"a setting of the platform has a value of another type: {error}"
            ) from error


def _read(name: str, text: str, convert: Callable[[str], object]) -> object:
    try:
        return convert(text)
    except ValueError as error:
        expected = _EXPECTED[convert]
        # Whatever is meant to be no number may be a key.
        shown = f"is {text!r}" if convert in (int, float) else "cannot be read"
        raise ConfigurationError(
            f"{_PREFIX}{name.upper()} {shown}: expected {expected}"
        ) from error


def unknown_settings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield variables that look like settings of it; see `unknown_variables`."""
    known = (member.name for member in attrs.fields(PlatformConfig))
    return unknown_variables(environ, _PREFIX, known)
