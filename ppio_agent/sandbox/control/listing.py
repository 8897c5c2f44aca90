"""Pages of a list that changes while it is read. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from ppio_agent.exceptions import ValidationError

__all__ = ["page", "whole_number"]

_T = TypeVar("_T")
_Key = tuple[int, str]
_MOST_DIGITS: Final = 15


def page(
    items: Iterable[_T],
    *,
    key: Callable[[_T], _Key],
    limit: int,
    token: str | None,
    newest_first: bool = True,
) -> tuple[list[_T], str | None]:
    """Return one page of `items` and the token of the next, None if it is the last.

    A token is a place in the order, not a count: what was there the whole time is
    seen exactly once, whatever comes and goes between two pages.

    Args:
        items: All of them, in any order.
        key: Gives (time, id) of an item, unique.
        limit: Most items of a page.
        token: Where the last page ended; None begins.
        newest_first: The order.

    Raises:
        ValidationError: The token was not made here.
    """
    ordered = sorted(items, key=key, reverse=newest_first)
    if token:
        last = _decode(token)
        ordered = [
            item
            for item in ordered
            if (key(item) < last if newest_first else key(item) > last)
        ]
    found = ordered[:limit]
    more = len(ordered) > limit
    return found, _encode(key(found[-1])) if more else None


def whole_number(
    text: str | None, name: str, *, default: int, low: int, high: int
) -> int:
    """Return the query parameter `name` as an int.

    Raises:
        ValidationError: It is not a whole number from `low` to `high`.
    """
    if text is None or text == "":
        return default
    digits = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
    if not digits or not low <= int(text) <= high:
        raise ValidationError(f"query parameter {name}: expected {low} to {high}")
    return int(text)


def _encode(key: _Key) -> str:
    return base64.urlsafe_b64encode(f"{key[0]}.{key[1]}".encode()).decode()


def _decode(token: str) -> _Key:
    try:
        text = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
        when, _, id_ = text.partition(".")
        return int(when), id_
    except (ValueError, binascii.Error):
        raise ValidationError("query parameter nextToken: not a token") from None
