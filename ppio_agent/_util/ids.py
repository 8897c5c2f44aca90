"""Identifiers: cheap ones for what is no secret, real secrets for what opens things.

An id is made for every request. ``uuid.uuid4`` reads ``os.urandom`` and so gives up the
interpreter lock each time; a hash over a key and a counter does not, makes many at once
and, unlike ``random``, no id tells the next.
"""

from __future__ import annotations

import itertools
import os
import secrets
from hashlib import shake_128

__all__ = ["new_id", "secret_token"]

_DIGITS, _BATCH = 32, 32


class _IdSource:
    """A process's own key and counter, and ids in stock; replaced after a fork."""

    __slots__ = ("_count", "_key", "_stock")

    def __init__(self) -> None:
        self._key = os.urandom(32)
        self._count = itertools.count()
        self._stock: list[str] = []

    def next(self) -> str:
        try:
            return self._stock.pop()  # one step of the interpreter: no lock is needed
        except IndexError:
            return self._refill()

    def _refill(self) -> str:
        number = next(self._count).to_bytes(8, "big")
        digits = shake_128(self._key + number).hexdigest(_BATCH * _DIGITS // 2)
        starts = range(0, _BATCH * _DIGITS, _DIGITS)
        made = [digits[start : start + _DIGITS] for start in starts]
        first = made.pop()
        self._stock += made
        return first


def _begin() -> str:
    """Make this process's source, and return its first id."""
    global _next  # noqa: PLW0603 - one source a process is the point
    _next = _IdSource().next
    return _next()


def _renew() -> None:
    global _next  # noqa: PLW0603 - see above
    _next = _begin


_next = _begin

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)


def new_id() -> str:
    """Return a new identifier of 32 lower-case hex digits.

    Unique over processes and forks. It is not a secret: use `secret_token` for
    whatever opens something.

    Thread safety: thread-safe.
    """
    return _next()


def secret_token(nbytes: int = 32) -> str:
    """Return an unguessable text for tokens and keys, safe in URLs and headers.

    Args:
        nbytes: Bytes of randomness; the text is about 4/3 as long.
    """
    return secrets.token_urlsafe(nbytes)
