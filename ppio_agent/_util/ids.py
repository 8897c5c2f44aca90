"""Identifiers: cheap ones for what is no secret, real secrets for what opens things.

A request id is made for every request. ``uuid.uuid4`` reads ``os.urandom`` and so
gives up the interpreter lock each time; a keyed hash over a counter does not, and,
unlike ``random``, no id tells the next.
"""

from __future__ import annotations

import itertools
import os
import secrets
from hashlib import blake2b

__all__ = ["new_id", "secret_token"]


class _IdSource:
    """A process's own key and counter; replaced as a whole after a fork."""

    __slots__ = ("_count", "_key", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._key = os.urandom(32)
        self._count = itertools.count()

    def next(self) -> str:
        number = next(self._count).to_bytes(8, "big")
        return blake2b(number, key=self._key, digest_size=16).hexdigest()


_source: _IdSource | None = None


def new_id() -> str:
    """Return a new identifier of 32 lower-case hex digits.

    Unique over processes and forks. It is not a secret: use `secret_token` for
    whatever opens something.

    Thread safety: thread-safe.
    """
    global _source  # noqa: PLW0603 - one source a process is the point
    source = _source
    if source is None or source.pid != os.getpid():
        source = _source = _IdSource()
    return source.next()


def secret_token(nbytes: int = 32) -> str:
    """Return an unguessable text for tokens and keys, safe in URLs and headers.

    Args:
        nbytes: Bytes of randomness; the text is about 4/3 as long.
    """
    return secrets.token_urlsafe(nbytes)
