"""Who sent a request: what plug-ins are shown, and the one that knows API keys."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ppio_agent.exceptions import AuthenticationError, ConfigurationError
from ppio_agent.hooks import Hooks, hookimpl
from ppio_agent.wire.models import Principal

from .exchange import Exchange

__all__ = ["ApiKeyAuth", "AuthRequest", "Authenticator"]

# Taken out of what a handler sees when a plug-in does not say which header it verified.
_CREDENTIALS = ("authorization", "x-api-key")

Keys = Mapping[str, str] | Sequence[str]


class AuthRequest:
    """What an authentication plug-in is shown of a request.

    Attributes:
        method: Upper case.
        path: Decoded, without the query.
        headers: Lower-case names.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_exchange", "headers", "method", "path", "verified")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.method = exchange.method
        self.path = exchange.path
        self.headers: Mapping[str, str] = exchange.headers
        self.verified: list[str] = []

    @property
    def target(self) -> str:
        """The request target as it was sent: path and query, still encoded."""
        return self._exchange.target

    @property
    def body(self) -> bytes:
        """The whole body."""
        return self._exchange.body

    def hide(self, *names: str) -> None:
        """Take headers whose credentials were verified out of what handlers see."""
        self.verified.extend(name.lower() for name in names)


class ApiKeyAuth:
    """Admits whoever sends one of the known keys.

    The key is read from ``Authorization: Bearer <key>`` or ``X-API-Key``.

    Args:
        keys: Name of the principal to key; or keys, whose principals are then `key-1`,
            `key-2` …; or a function that returns either, asked for each request.

    Raises:
        ConfigurationError: There is no key, or an empty one.

    Thread safety: thread-safe, if the function is.
    """

    def __init__(self, keys: Keys | Callable[[], Keys]) -> None:
        self._ask = keys if callable(keys) else None
        self._digests = () if callable(keys) else _digests(keys)

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


class _CallablePlugin:
    """A plain function, as the plug-in it stands for."""

    def __init__(self, function: Callable[[AuthRequest], Principal | None]) -> None:
        self._function = function

    @hookimpl
    def ppio_authenticate(self, request: AuthRequest) -> Principal | None:
        return self._function(request)


class Authenticator:
    """Asks the plug-ins who sent a request.

    Args:
        hooks: The app's plug-ins; those in `auth` are registered with them.
        auth: Plug-ins or functions ``(request) -> Principal | None``, in the order in
            which they are asked, before all others.
    """

    def __init__(self, hooks: Hooks, auth: Sequence[Any]) -> None:
        # The plug-in registered last is asked first.
        for item in reversed(auth):
            is_plugin = hasattr(item, "ppio_authenticate")
            if not is_plugin and not callable(item):
                raise TypeError(
                    f"auth takes plug-ins or functions, not a {type(item).__name__}"
                )
            hooks.register(item if is_plugin else _CallablePlugin(item))
        self._hooks = hooks

    @property
    def active(self) -> bool:
        """Whether anything authenticates."""
        return self._hooks.implemented("ppio_authenticate")

    def admit(self, exchange: Exchange) -> None:
        """Note on the exchange who sent it, and what handlers must not see.

        Raises:
            AuthenticationError: Nobody knows the sender, or a plug-in refuses.
        """
        request = AuthRequest(exchange)
        principal = self._hooks.authenticate(request)
        if principal is None:
            raise AuthenticationError(
                "authentication is required", code="authentication_required"
            )
        exchange.principal = principal
        exchange.hidden = frozenset(request.verified or _CREDENTIALS)
