"""Settings of an agent app: argument, else environment, else default."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import attrs
from attrs import frozen

from ppio_agent._util.net import is_loopback
from ppio_agent._util.variables import unknown_variables
from ppio_agent.exceptions import ConfigurationError

__all__ = ["AgentConfig", "checked_timeout", "own_sandbox_id", "unknown_settings"]

_T = TypeVar("_T")
_PREFIX = "PPIO_AGENT_"
_YES = frozenset({"1", "true", "yes", "on"})
_NO = frozenset({"0", "false", "no", "off", ""})
_SECONDS = "a number of seconds above 0"
_LEVELS = ("CRITICAL", "DEBUG", "ERROR", "INFO", "WARNING")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _flag(value: Any) -> bool:
    word = str(value).strip().lower()
    if not isinstance(value, (bool, str)) or word not in _YES | _NO:
        raise ValueError("true or false")
    return word in _YES


def _whole(least: int, most: int | None = None) -> Callable[[Any], int]:
    wanted = f"a whole number {'from' if most is None else 'between'} {least}"
    wanted += " on" if most is None else f" and {most}"

    def parse(value: Any) -> int:
        number = _number(int, value, wanted)
        if number < least or (most is not None and number > most):
            raise ValueError(wanted)
        return number

    return parse


def _seconds(value: Any) -> float:
    number = _number(float, value, _SECONDS)
    if not 0 < number < float("inf"):
        raise ValueError(_SECONDS)
    return number


def _number(kind: Callable[[Any], _T], value: Any, wanted: str) -> _T:
    accepted = (int, str) if kind is int else (int, float, str)
    if isinstance(value, bool) or not isinstance(value, accepted):
        raise TypeError(wanted)
    try:
        return kind(value)
    except (OverflowError, ValueError):
        raise ValueError(wanted) from None


def _or_none(parse: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    def parse_or_none(value: Any) -> _T | None:
        if value is None or (isinstance(value, str) and value.lower() == "none"):
            return None
        return parse(value)

    return parse_or_none


def _origins(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [piece.strip() for piece in value.split(",") if piece.strip()]
    if not isinstance(value, Iterable):
        raise TypeError("a list of origins")
    return tuple(_text(item).rstrip("/") for item in value)


def _word(*known: str) -> Callable[[Any], str]:
    spelled = {word.lower(): word for word in known}

    def parse(value: Any) -> str:
        word = spelled.get(_text(value).lower())
        if word is None:
            raise ValueError(f"one of {', '.join(known)}")
        return word

    return parse


def _setting(name: str, *, default: Any, parse: Callable[[Any], Any]) -> Any:
    """Return the field of one setting; `default` may be a function."""

    def convert(value: Any) -> Any:
        try:
            return parse(value)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{name} (or {_PREFIX}{name.upper()}) has to be {error}"
            ) from None

    def absent() -> Any:
        text = os.environ.get(_PREFIX + name.upper())
        if text is not None:
            return text
        return default() if callable(default) else default

    return attrs.field(factory=absent, converter=convert)


def checked_timeout(value: object) -> float | None:
    """Return the time limit of one entrypoint, checked as the setting is.

    Raises:
        ConfigurationError: It is none.
    """
    if value is None:
        return None
    try:
        if isinstance(value, str):  # only an environment has no numbers
            raise TypeError(_SECONDS)
        return _seconds(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"the timeout of an entrypoint has to be {error}, or None"
        ) from None


def unknown_settings(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield variables that look like settings of an app; see `unknown_variables`."""
    known = (field.name for field in attrs.fields(AgentConfig))
    return unknown_variables(environ, _PREFIX, known)


def own_sandbox_id() -> str | None:
    """Return the id of the sandbox in which this process runs; elsewhere None."""
    return os.environ.get("PPIO_SANDBOX_ID") or None


def _default_host() -> str:
    return "127.0.0.1" if own_sandbox_id() is None else "0.0.0.0"


@frozen(kw_only=True)
class AgentConfig:
    """How an agent app serves.

    A field that is not given is read from ``PPIO_AGENT_<NAME>`` when the object is
    made, else has its default.

    Attributes:
        host: Address to listen on; all addresses in a sandbox, else loopback.
        port: Port to listen on; 0 takes a free one.
        timeout: Seconds from arrival to the end of an invocation; None: no limit. A
            request can lower it, never raise it.
        max_request_size: Largest body in bytes, inclusive.
        cors_origins: Origins whose pages may call; exact ones, or `*`.
        debug: Tracebacks in error answers, and an access log.
        log_level: Level of the logger `ppio_agent`, set by `run()` only.
        log_format: `text` or `json`: what `run()` writes to stderr, if the program has
            no log handler of its own; None: text on a terminal, else nothing.
        max_concurrency: How many invocations run at once.
        max_queue: How many may wait for that.
        heartbeat: Seconds of silence after which a stream says that it lives; None:
            never.
        detach_grace: Seconds a stream that its caller can come back to goes on without
            a reader.
        retention: Seconds a finished invocation can be looked up.
        drain_timeout: Seconds that running invocations get when the app is stopped.
        detect_disconnect: Whether an invocation is cancelled when its client closes the
            connection; False for clients that close their sending side early.
        expose_errors: Whether callers see the texts of the agent's own exceptions.
        allow_unauthenticated: Whether everybody may call from anywhere.
        playground: Whether browsers get a page to talk to the agent; None: only in
            debug, or where the app listens on loopback.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.
        TypeError: There is no such setting.

    Thread safety: immutable.
    """

    host: str = _setting("host", default=_default_host, parse=_text)
    port: int = _setting("port", default=8080, parse=_whole(0, 65535))
    timeout: float | None = _setting("timeout", default=300.0, parse=_or_none(_seconds))
    max_request_size: int = _setting(
        "max_request_size", default=1_048_576, parse=_whole(1)
    )
    cors_origins: tuple[str, ...] = _setting("cors_origins", default=(), parse=_origins)
    debug: bool = _setting("debug", default=False, parse=_flag)
    log_level: str = _setting("log_level", default="INFO", parse=_word(*_LEVELS))
    log_format: str | None = _setting(
        "log_format", default=None, parse=_or_none(_word("text", "json"))
    )
    max_concurrency: int = _setting("max_concurrency", default=128, parse=_whole(1))
    max_queue: int = _setting("max_queue", default=128, parse=_whole(0))
    heartbeat: float | None = _setting(
        "heartbeat", default=15.0, parse=_or_none(_seconds)
    )
    detach_grace: float = _setting("detach_grace", default=30.0, parse=_seconds)
    retention: float = _setting("retention", default=600.0, parse=_seconds)
    drain_timeout: float = _setting("drain_timeout", default=30.0, parse=_seconds)
    detect_disconnect: bool = _setting("detect_disconnect", default=True, parse=_flag)
    expose_errors: bool = _setting("expose_errors", default=True, parse=_flag)
    allow_unauthenticated: bool = _setting(
        "allow_unauthenticated", default=False, parse=_flag
    )
    playground: bool | None = _setting(
        "playground", default=None, parse=_or_none(_flag)
    )

    def shows_playground(self, host: str | None) -> bool:
        """Whether browsers get the page.

        Args:
            host: The address that is listened on; None where another server does that.
        """
        if self.playground is not None:
            return self.playground
        return self.debug or (host is not None and is_loopback(host))
