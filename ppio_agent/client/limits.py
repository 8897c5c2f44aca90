"""Times and names that a caller gives, checked before anything is sent; our own times."""

from __future__ import annotations

from ppio_agent._util.clock import Deadline
from ppio_agent._util.redact import escaped
from ppio_agent.exceptions import RequestTimeoutError, ValidationError

__all__ = ["KILL_LIMIT", "check_name", "seconds", "time_left"]

# Seconds that are spent on ending a sandbox before its time to live has to.
KILL_LIMIT = 10.0
# 31 years: what waits in the standard library can be told on every system.
_MOST = 1e9


def check_name(how: str, value: object) -> None:
    """Refuse what names nothing.

    Args:
        how: What is named by what, for the message.
        value: What the caller gave for it.

    Raises:
        ValidationError: It is no text, or empty, or has control characters.
    """
    if not isinstance(value, str) or not value or escaped(value) != value:
        raise ValidationError(f"{how}, not by {value!r}")


def seconds(name: str, value: object, *, none: str = "means no limit") -> float | None:
    """Return a time that can be waited for, or None.

    Args:
        name: Of the argument.
        value: What the caller gave for it.
        none: What None does there.

    Raises:
        ValidationError: It is no number of seconds above 0.
    """
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 < value <= _MOST:  # type: ignore[operator]  # it is a number
        return float(value)  # type: ignore[arg-type]  # it is a number
    raise ValidationError(
        f"{name} has to be a number of seconds above 0, at most 1e9, or None; None"
        f" {none}"
    )


def time_left(deadline: Deadline, timeout: float | None = None) -> float | None:
    """Return the seconds left for a call: until `deadline`, at most `timeout`.

    Raises:
        RequestTimeoutError: There are none; nothing was sent.
    """
    left = deadline.bound(timeout)
    if left == 0.0:
        raise RequestTimeoutError(
            "the time ran out before the agent was called", phase="connect"
        )
    return left
