"""The settings of a client, and where each of them came from.

Precedence: argument, then environment, then default. The environment is read once,
when the configuration is made.
"""

from __future__ import annotations

import difflib
import enum
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from ppio_agent._util.redact import SECRET_HEADERS, Redactor
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.signing import SIGNATURE_HEADERS

from .endpoint import ROUTING, parse_origin

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["UNSET", "ClientConfig", "SettingOrigin", "Unset"]


class Unset(enum.Enum):
    """The type of `UNSET`, which stands for an argument that was left out."""

    UNSET = enum.auto()

    def __repr__(self) -> str:
        return "UNSET"


UNSET = Unset.UNSET

# Annotated Any, so that it may stand as the default of a field of any type.
_UNSET: Any = UNSET
_MIB = 1024 * 1024
_MOST_SECONDS = 1e9  # as for the times that are arguments of calls
_FLAGS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
_redactor = Redactor()

# They say who asks and which sandbox is meant, which no setting may say for all.
_OWN_HEADERS = SECRET_HEADERS.union(map(str.lower, (*SIGNATURE_HEADERS, *ROUTING)))

_Check = Callable[[str, Any], Any]


def _refuse(name: str, expected: str) -> ConfigurationError:
    return ConfigurationError(f"the setting {name} has to be {expected}")


def _number(name: str, value: Any) -> float:
    if isinstance(value, str):
        value = _parsed(name, value, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value <= _MOST_SECONDS
    ):
        raise _refuse(name, "a number greater than 0, at most 1e9")
    return float(value)


def _optional_number(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, str):
        value = _parsed(name, value, int)
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 0 <= value <= sys.maxsize
    ):
        raise _refuse(name, f"a whole number, 0 or more, at most {sys.maxsize}")
    return value


def _positive_count(name: str, value: Any) -> int:
    if _count(name, value) == 0:
        raise _refuse(name, "a whole number greater than 0")
    return _count(name, value)


def _parsed(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise _refuse(name, "a number") from None


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, str):
        value = _FLAGS.get(value.strip().lower())
    if not isinstance(value, bool):
        raise _refuse(name, "True or False, in the environment 1 or 0")
    return value


def _text(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise _refuse(name, "a text")
    if any(unicodedata.category(c) in {"Cc", "Cs"} for c in value):
        raise _refuse(name, "a text without control characters")
    return value


def _domain(name: str, value: Any) -> str:
    domain = _text(name, value)
    if domain is None or any(c in domain for c in "/?#\\ "):
        raise _refuse(name, "a host name, with a port if need be")
    return domain.lower()


def _base_url(name: str, value: Any) -> str | None:
    url = _text(name, value)
    if url is None or url == "local":
        return url
    return parse_origin(url, name, https_unless_loopback=True)


def _sandbox_url(name: str, value: Any) -> str | None:
    url = _text(name, value)
    return None if url is None else parse_origin(url, name)


def _headers(name: str, value: Any) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _refuse(name, "a mapping of header names to texts")
    for key, text in value.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise _refuse(name, "a mapping of header names to texts")
        if any(c in f"{key}{text}" for c in "\r\n\0"):
            raise _refuse(name, f"free of line breaks ({key!r} is not)")
        if key.lower() in _OWN_HEADERS:
            raise _refuse(
                name, f"other than those of authentication and routing, like {key!r}"
            )
    return dict(value)


def _setting(
    check: _Check, *, default: object, env: str | None = None
) -> dict[str, Any]:
    return {"check": check, "default": default, "env": env}


@frozen(kw_only=True)
class SettingOrigin:
    """One line of `ClientConfig.explain`: a setting, its value, where it is from."""

    name: str
    value: object
    origin: str


@frozen(kw_only=True)
class ClientConfig:
    """Settings of an `AgentRuntimeClient`; seconds are floats, sizes bytes.

    Each argument left out is read from its environment variable, if it has one, and
    takes its default otherwise.

    Args:
        base_url: Control plane (`PPIO_API_URL`). ``"local"`` asks for the embedded
            local platform. None chooses by the environment, domain and key.
        timeout: Total of one invocation; None means no limit.
        max_retries: Further attempts of a call that may be repeated; 0 means none.
        enable_cache: Whether the list of templates is kept.
        cache_ttl: For how long.
        max_connections: Most connections at once (`PPIO_SANDBOX_MAX_CONNECTIONS`).
        max_keepalive_connections: Most idle connections that are kept
            (`PPIO_SANDBOX_MAX_KEEPALIVE_CONNECTIONS`).
        domain: Domain of the sandboxes (`PPIO_DOMAIN`).
        sandbox_url: One origin for all sandboxes, routed by header
            (`PPIO_SANDBOX_URL`, which does not count beside a `base_url` that is an
            argument: it belongs to the platform of the environment); None means the
            platform says, or host names are used.
        debug: Use the platform on 127.0.0.1:3900 if no `base_url` is set
            (`PPIO_DEBUG`).
        connect_timeout: Limit of one attempt to connect.
        idle_timeout: Longest silence of a stream; heartbeats count as sound.
        request_timeout: Total of one call of the control plane.
        sandbox_timeout: Time to live given to a sandbox when it is created.
        start_timeout: Time for an agent to become ready; its template's own wins.
        proxy: URL of an HTTP proxy; None means that of the environment.
        ca_bundle: File of trusted certificates; None means the system's.
        headers: Extra headers of every request; they cannot replace those of auth.
        max_event_bytes: Largest event of a stream.
        max_response_bytes: Largest answer, after decompression.
        forward_api_key: Send the platform key to the agent, too, as a Bearer token.
        key_id: Name of the API secret in signatures, as agents know it; None makes
            one of the API key, which does not tell it.

    Raises:
        ConfigurationError: A value, given or of the environment, cannot be used.
        TypeError: There is no setting of this name.

    Thread safety: immutable.
    """

    base_url: str | None = field(
        default=_UNSET,
        repr=lambda url: repr(url and _redactor.url(url)),
        metadata=_setting(_base_url, default=None, env="PPIO_API_URL"),
    )
    timeout: float | None = field(
        default=_UNSET, metadata=_setting(_optional_number, default=300.0)
    )
    max_retries: int = field(default=_UNSET, metadata=_setting(_count, default=3))
    enable_cache: bool = field(default=_UNSET, metadata=_setting(_flag, default=True))
    cache_ttl: float = field(default=_UNSET, metadata=_setting(_number, default=300.0))
    max_connections: int = field(
        default=_UNSET,
        metadata=_setting(
            _positive_count, default=200, env="PPIO_SANDBOX_MAX_CONNECTIONS"
        ),
    )
    max_keepalive_connections: int = field(
        default=_UNSET,
        metadata=_setting(
            _count, default=50, env="PPIO_SANDBOX_MAX_KEEPALIVE_CONNECTIONS"
        ),
    )
    domain: str = field(
        default=_UNSET,
        metadata=_setting(_domain, default="sandbox.ppio.cn", env="PPIO_DOMAIN"),
    )
    sandbox_url: str | None = field(
        default=_UNSET,
        repr=lambda url: repr(url and _redactor.url(url)),
        metadata=_setting(_sandbox_url, default=None, env="PPIO_SANDBOX_URL"),
    )
    debug: bool = field(
        default=_UNSET, metadata=_setting(_flag, default=False, env="PPIO_DEBUG")
    )
    connect_timeout: float = field(
        default=_UNSET, metadata=_setting(_number, default=10.0)
    )
    idle_timeout: float = field(
        default=_UNSET, metadata=_setting(_number, default=60.0)
    )
    request_timeout: float = field(
        default=_UNSET, metadata=_setting(_number, default=60.0)
    )
    sandbox_timeout: float = field(
        default=_UNSET, metadata=_setting(_number, default=300.0)
    )
    start_timeout: float = field(
        default=_UNSET, metadata=_setting(_number, default=60.0)
    )
    proxy: str | None = field(
        default=_UNSET,
        repr=lambda url: repr(url and _redactor.url(url)),
        metadata=_setting(_text, default=None),
    )
    ca_bundle: str | None = field(
        default=_UNSET, metadata=_setting(_text, default=None)
    )
    headers: Mapping[str, str] = field(
        default=_UNSET,
        repr=lambda headers: repr(_redactor.headers(headers)),
        metadata=_setting(_headers, default=MappingProxyType({})),
    )
    max_event_bytes: int = field(
        default=_UNSET, metadata=_setting(_positive_count, default=8 * _MIB)
    )
    max_response_bytes: int = field(
        default=_UNSET, metadata=_setting(_positive_count, default=64 * _MIB)
    )
    forward_api_key: bool = field(
        default=_UNSET, metadata=_setting(_flag, default=False)
    )
    key_id: str | None = field(default=_UNSET, metadata=_setting(_text, default=None))
    _origins: Mapping[str, str] = field(init=False, repr=False, eq=False)

    def __new__(cls, *_positional: object, **given: object) -> Self:
        """Refuse an unknown setting with the nearest name there is."""
        names = [a.name for a in attrs.fields(cls) if a.init]
        for name in given:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise TypeError(f"ClientConfig has no setting {name!r}{hint}")
        return super().__new__(cls)

    def __attrs_post_init__(self) -> None:
        self._resolve(os.environ)

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> Self:
        """Return the configuration for this environment instead of the process's.

        Args:
            environ: The variables; nothing else is read.
            overrides: Settings by name, which win over the variables.
        """
        config = cls.__new__(cls, **overrides)
        for attribute in _settings(cls):
            value = overrides.get(attribute.name, _UNSET)
            object.__setattr__(config, attribute.name, value)
        config._resolve(environ)  # noqa: SLF001 - our own, half made
        return config

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values for some settings.

        Unlike with `attrs.evolve` the rest keeps its origin: a default stays one.
        """
        values = {a.name: getattr(self, a.name) for a in _settings(type(self))}
        origins = {**self._origins, **dict.fromkeys(changes, "argument")}
        config = type(self)(**{**values, **changes})
        config._settle(origins)  # noqa: SLF001 - our own, half made
        return config

    def _resolve(self, environ: Mapping[str, str]) -> None:
        origins = {}
        for attribute in _settings(type(self)):
            name, meta = attribute.name, attribute.metadata
            value, origin = getattr(self, name), "argument"
            label = name
            if value is _UNSET:
                variable = meta["env"]
                if variable and environ.get(variable):
                    value, origin = environ[variable], f"environment {variable}"
                    label = f"{name} (from {variable})"
                else:
                    value, origin = meta["default"], "default"
            object.__setattr__(self, name, meta["check"](label, value))
            origins[name] = origin
        self._settle(origins)

    def _settle(self, origins: dict[str, str]) -> None:
        """Keep the origins; one platform's sandboxes are not sought at another's."""
        named = self.base_url is not None and origins["base_url"] == "argument"
        if named and origins["sandbox_url"].startswith("environment"):
            object.__setattr__(self, "sandbox_url", None)
            origins["sandbox_url"] = "default (PPIO_SANDBOX_URL is not for base_url)"
        object.__setattr__(self, "_origins", origins)

    def origin(self, name: str) -> str:
        """Return where a setting is from: argument, environment <NAME> or default."""
        return self._origins[name]

    def explain(self) -> tuple[SettingOrigin, ...]:
        """Return every setting with its value and origin, secrets hidden."""
        shown = []
        for attribute in _settings(type(self)):
            value = getattr(self, attribute.name)
            if isinstance(value, Mapping):
                value = _redactor.headers(value)
            elif isinstance(value, str):
                value = _redactor.url(value)
            origin = self._origins[attribute.name]
            shown.append(SettingOrigin(name=attribute.name, value=value, origin=origin))
        return tuple(shown)


def _settings(cls: type[ClientConfig]) -> list[attrs.Attribute[Any]]:
    return [a for a in attrs.fields(cls) if a.init]
