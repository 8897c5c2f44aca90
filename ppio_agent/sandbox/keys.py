"""Who a request to the control plane is from: API keys, kept only as digests.

Each key has a *short form*, 32 hex digits that do not tell the key. It stands in the
user names of URLs, as in `https://api.<short>@127.0.0.1:3443`, whose Basic header takes
the place of a client's own; so it opens next to nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from ppio_agent.exceptions import AuthenticationError

__all__ = ["DEFAULT_TENANT", "KeyRing", "basic_user", "bearer"]

DEFAULT_TENANT: Final = "default"
"""Tenant of the key that a platform generates for itself."""

_REFUSAL: Final = "invalid or missing API key"
_SHORTEST: Final = 8
_MOST_SEEN: Final = 10_000
_SHORT_DIGITS: Final = 32
_PURPOSE: Final = b"ppio_agent: short form of an API key"


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
        # Tenants of unknown keys that were accepted, with the digests of these, to be
        # recognised as credentials later.
        self._seen: OrderedDict[str, bytes] = OrderedDict()

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
        tenant = _own_tenant(_short(digest))
        self._seen[tenant] = digest
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return tenant

    def tenant_of_short(self, short: str) -> str | None:
        """Return the tenant whose key has this short form, or None."""
        found = None
        for known, tenant in self._tenants.items():
            if _equal(_short(known), short):
                found = tenant
        seen = self._seen.get(_own_tenant(short))
        if seen is not None and _equal(_short(seen), short):
            found = _own_tenant(short)
        return found

    def short_of(self, tenant: str) -> str | None:
        """Return the short form of a key of this tenant; None: none is known."""
        for known, owner in self._tenants.items():
            if owner == tenant:
                return _short(known)
        seen = self._seen.get(tenant)
        return None if seen is None else _short(seen)

    def is_credential(self, name: str, value: str) -> bool:
        """Whether a request header holds a key of this platform, or its short form.

        Args:
            name: Name of the header, in lower case.
            value: Its value.
        """
        key = value if name == "x-api-key" else None
        if name == "authorization":
            user = basic_user(value)
            if user is not None:
                return self.tenant_of_short(user.partition(".")[2]) is not None
            key = bearer(value)
        if not key:
            return False
        digest = _digest(key.strip())
        seen = self._seen.get(_own_tenant(_short(digest)))
        return self._find(digest) is not None or seen == digest

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


def basic_user(authorization: str | None) -> str | None:
    """Return the user name of a `Basic` header value, or None.

    Example:
        >>> basic_user("Basic YXBpLjEyMzQ6"), basic_user("Bearer abc")
        ('api.1234', None)
    """
    scheme, _, pair = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(pair.strip(), validate=True).decode("latin-1")
    except (binascii.Error, ValueError):
        return None
    return text.partition(":")[0]


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _short(digest: bytes) -> str:
    return hmac.new(digest, _PURPOSE, sha256).hexdigest()[:_SHORT_DIGITS]


def _own_tenant(short: str) -> str:
    return f"key-{short[:16]}"


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogateescape"))
