"""How settings of actors are checked: validators of fields that say what is right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import Attribute

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.actors import MAX_COUNT, MAX_SECONDS

__all__ = ["duration", "flag", "kind", "number", "whole", "word"]

Check = Callable[[Any, "Attribute[Any]", Any], None]


def _check(is_right: Callable[[Any], bool], expected: str) -> Check:
    def validate(model: object, member: Attribute[Any], value: Any) -> None:
        if not is_right(value):
            raise ConfigurationError(
                f"{type(model).__name__}.{member.name} has to be {expected}: it is"
                f" {_shown(value)}"
            )

    return validate


def _shown(value: object) -> str:
    simple = value is None or isinstance(value, (str, float))
    return f"{value!r:.80}" if simple else f"another {type(value).__name__}"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(least: int) -> Check:
    """Return the check of a whole number that stores can keep."""
    return _check(
        lambda value: type(value) is int and least <= value <= MAX_COUNT,
        f"a whole number from {least} to {MAX_COUNT}",
    )


def number(least: float) -> Check:
    """Return the check of a finite number."""
    return _check(
        lambda value: _is_number(value) and least <= value < float("inf"),
        f"a number from {least:g} on",
    )


def duration(*, zero: bool = False, none: bool = False) -> Check:
    """Return the check of a number of seconds, at most 10 years.

    Args:
        zero: Whether it may be 0.
        none: Whether it may be None.
    """

    def is_right(value: Any) -> bool:
        if value is None:
            return none
        above = _is_number(value) and (value > 0.0 or (zero and value == 0.0))
        return above and value <= MAX_SECONDS

    start = "from 0" if zero else "above 0"
    end = ", or None" if none else ""
    return _check(is_right, f"a number of seconds {start} to {MAX_SECONDS:.0f}{end}")


def word(*known: str) -> Check:
    """Return the check of one of these words."""
    return _check(
        lambda value: isinstance(value, str) and value in known,
        f"one of {', '.join(known)}",
    )


def kind(cls: type) -> Check:
    """Return the check of an object of a class."""
    return _check(lambda value: isinstance(value, cls), cls.__name__)


def flag() -> Check:
    """Return the check of True or False."""
    return _check(lambda value: isinstance(value, bool), "True or False")
