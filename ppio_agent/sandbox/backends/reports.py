"""Messages of a supervisor as values. Pure.

A program in the sandbox may have taken its supervisor over: nothing that comes from
there is believed before it has the right shape and size.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar

from ppio_agent.sandbox.supervisor.channel import ChannelError

from .base import AgentPhase, AgentStatus, Usage

__all__ = ["parse_agent", "parse_error", "parse_over", "parse_ready", "parse_usage"]

_PHASES: dict[str, AgentPhase] = {
    "starting": "starting",
    "ready": "ready",
    "exited": "exited",
}
_MAX_TAIL = 4096
_MAX_TEXT = 200
_MAX_INT = 2**53

_T = TypeVar("_T")


def parse_agent(message: Mapping[str, Any]) -> AgentStatus:
    """Return how the agent is.

    Raises:
        ChannelError: The message is not of that kind.
    """
    phase = _PHASES.get(_typed(message, "phase", str))
    if phase is None:
        raise ChannelError("unknown phase of an agent")
    return AgentStatus(
        phase=phase,
        exit_code=_count(message, "exit_code"),
        signal=_count(message, "signal"),
        started_at=_instant(message, "started_at"),
        ready_at=_instant(message, "ready_at"),
        log_tail=_typed(message, "log_tail", str)[-_MAX_TAIL:],
        pid=_count(message, "pid"),
    )


def parse_ready(message: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the pid that a supervisor says it has, and whether it is paused.

    Raises:
        ChannelError: The message is not of that kind.
    """
    return _count(message, "pid") or 0, _typed(message, "paused", bool)


def parse_usage(message: Mapping[str, Any]) -> Usage:
    """Return what the sandbox uses.

    Raises:
        ChannelError: The message is not of that kind.
    """
    return Usage(
        cpu_seconds=_seconds(message, "cpu_seconds") or 0.0,
        rss_bytes=_count(message, "rss_bytes") or 0,
        processes=_count(message, "processes") or 0,
    )


def parse_error(message: Mapping[str, Any]) -> str:
    """Return why a request failed, `""` if it did not.

    Raises:
        ChannelError: The message is not of that kind.
    """
    return _text(message, "error")


def parse_over(message: Mapping[str, Any]) -> str:
    """Return which limit a sandbox is over, in one line; `""` if it does not say.

    Raises:
        ChannelError: The message is not of that kind.
    """
    return "".join(filter(str.isprintable, _text(message, "detail")))


def _text(message: Mapping[str, Any], key: str) -> str:
    return _typed(message, key, str)[:_MAX_TEXT] if key in message else ""


def _typed(message: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    value = message.get(key)
    if type(value) is not kind:  # a bool is no int here
        raise ChannelError(f"{key}: expected {kind.__name__}")
    return value


def _count(message: Mapping[str, Any], key: str) -> int | None:
    if message.get(key) is None:
        return None
    value = _typed(message, key, int)
    if not 0 <= value < _MAX_INT:
        raise ChannelError(f"{key}: out of range")
    return value


def _seconds(message: Mapping[str, Any], key: str) -> float | None:
    if message.get(key) is None:
        return None
    value = _typed(message, key, float)
    if not 0 <= value < _MAX_INT:
        raise ChannelError(f"{key}: out of range")
    return value


def _instant(message: Mapping[str, Any], key: str) -> datetime | None:
    seconds = _seconds(message, key)
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, timezone.utc)
    except (ValueError, OverflowError, OSError) as exc:
        raise ChannelError(f"{key}: out of range") from exc
