"""Authentication by API keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ppio_agent.exceptions import AuthenticationError, ConfigurationError
from ppio_agent.hooks import hookimpl
from ppio_agent.wire.models import Principal

from .auth import AuthRequest

__all__ = ["ApiKeyAuth"]

Keys = Mapping[str, str] | Sequence[str]


class ApiKeyAuth:
    """Admits whoever sends one of the known keys.

    The key is read from ``Authorization: Bearer <key>`` or ``X-API-Key``.

    Args:
        keys: Name of the principal to key; or keys, whose principals are then `key-1`,
            `key-2` …; or a function that returns either, asked for each request.

    Raises:
        ConfigurationError: There is no key, or an empty one.

    Attributes:
        quick: Whether no function is asked.

    Thread safety: thread-safe, if the function is.
    """

    security_schemes: ClassVar[Mapping[str, Any]] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }

    def __init__(self, keys: Keys | Callable[[], Keys]) -> None:
        self._ask = keys if callable(keys) else None
        self._digests = () if callable(keys) else _digests(keys)
        self.quick = self._ask is None

    @hookimpl
    def ppio_authenticate(self, request: AuthRequest) -> Principal | None:
        """Return the key's principal; None if there is no key in the request."""
        found = _sent_key(request.headers)
        if found is None:
            return None
        header, key = found
        sent = _digest(key)
        known = self._digests if self._ask is None else _digests(self._ask())
        name = None
        # All are compared, so that the time taken does not tell which one came close.
        for candidate, digest in known:
            if hmac.compare_digest(digest, sent):
                name = candidate
        if name is None:
            raise AuthenticationError("the API key is not accepted")
        request.hide(header)
        return Principal(name, "api-key")

    def __repr__(self) -> str:
        return f"ApiKeyAuth({'asked' if self._ask else len(self._digests)} keys)"


def _digests(keys: Keys) -> tuple[tuple[str, bytes], ...]:
    if isinstance(keys, str):
        raise ConfigurationError("ApiKeyAuth takes a list or mapping of keys, no text")
    named: Iterable[tuple[str, str]]
    if isinstance(keys, Mapping):
        named = keys.items()
    else:
        named = ((f"key-{n}", key) for n, key in enumerate(keys, 1))
    digests = []
    for name, key in named:
        if not isinstance(key, str) or not key:
            raise ConfigurationError(f"the API key {name!r} is empty or no text")
        digests.append((name, _digest(key)))
    if not digests:
        raise ConfigurationError("ApiKeyAuth needs at least one key")
    return tuple(digests)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _sent_key(headers: Mapping[str, str]) -> tuple[str, str] | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return "authorization", token.strip()
    key = headers.get("x-api-key")
    return None if key is None else ("x-api-key", key.strip())
