"""Who a request to the control plane is from: API keys, kept only as digests."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from ppio_agent.exceptions import AuthenticationError

__all__ = ["DEFAULT_TENANT", "KeyRing", "bearer"]

DEFAULT_TENANT: Final = "default"
"""Tenant of the key that a platform generates for itself."""

_REFUSAL: Final = "invalid or missing API key"
_SHORTEST: Final = 8
_MOST_SEEN: Final = 10_000


class KeyRing:
    """Maps API keys to tenants.

    Args:
        keys: API key → tenant name.
        any_key: Also accept every other key of at least 8 characters, each as a
            tenant of its own.

    Thread safety: thread-safe.
    """

    def __init__(self, keys: Mapping[str, str], *, any_key: bool = False) -> None:
        self._tenants = {_digest(key): tenant for key, tenant in keys.items()}
        self._any_key = any_key
        # Unknown keys that were accepted, to be recognised as credentials later.
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def tenant_of(self, api_key: str | None, authorization: str | None) -> str:
        """Return the tenant that a request's two headers prove.

        Raises:
            AuthenticationError: None, two different, or an unknown key.
        """
        given = {key for key in (api_key, bearer(authorization)) if key}
        if len(given) != 1:
            raise AuthenticationError(_REFUSAL)
        key = given.pop()
        digest = _digest(key)
        tenant = self._find(digest)
        if tenant is not None:
            return tenant
        if not self._any_key or len(key) < _SHORTEST:
            raise AuthenticationError(_REFUSAL)
        self._seen[digest] = None
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return f"key-{digest.hex()[:16]}"

    def is_credential(self, name: str, value: str) -> bool:
        """Whether a request header holds a key of this platform.

        Args:
            name: Name of the header, in lower case.
            value: Its value.
        """
        key = value if name == "x-api-key" else None
        if name == "authorization":
            key = bearer(value)
        if not key:
            return False
        digest = _digest(key.strip())
        return self._find(digest) is not None or digest in self._seen

    def _find(self, digest: bytes) -> str | None:
        # All of them are compared, in constant time each, so that the time tells
        # nothing about which key was nearly right.
        found = None
        for known, tenant in self._tenants.items():
            if hmac.compare_digest(known, digest):
                found = tenant
        return found

    def __repr__(self) -> str:
        return f"KeyRing({len(self._tenants)} keys, any_key={self._any_key})"


def bearer(authorization: str | None) -> str | None:
    """Return the token of a `Bearer` header value, or None.

    Example:
        >>> bearer("Bearer abc"), bearer("Basic abc")
        ('abc', None)
    """
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()
