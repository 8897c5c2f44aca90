"""The `metadata` parameter of sandbox lists. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, unquote

from ppio_agent.exceptions import ValidationError

__all__ = ["matches", "parse_filter"]


def parse_filter(text: str | None) -> dict[str, str]:
    """Return the pairs that a sandbox must have.

    Clients encode each key and value, build a query string of them, and encode that
    once more as the parameter; `text` is the parameter with the outermost encoding
    taken off, as web frameworks hand it over.

    Raises:
        ValidationError: It is not a query string.

    Example:
        >>> parse_filter("k=v%2520w&stage=dev")
        {'k': 'v w', 'stage': 'dev'}
    """
    if not text:
        return {}
    try:
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, max_num_fields=64
        )
    except ValueError:
        raise ValidationError(
            "query parameter metadata: expected key=value pairs joined by &"
        ) from None
    return {unquote(key): unquote(value) for key, value in pairs}


def matches(wanted: Mapping[str, str], metadata: Mapping[str, str]) -> bool:
    """Whether `metadata` has every pair of `wanted`."""
    return all(metadata.get(key) == value for key, value in wanted.items())
