"""Who a request to the control plane is from: API keys, kept only as digests.

Each key has a *short form*, 32 hex digits that do not tell the key. It stands in the
user names of URLs, as in `https://api.<short>@127.0.0.1:3443`, whose Basic header takes
the place of a client's own; so it opens next to nothing.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Final

from ppio_agent.exceptions import AuthenticationError

__all__ = ["DEFAULT_TENANT", "KeyRing", "basic_user", "bearer", "same_secret"]

DEFAULT_TENANT: Final = "default"
"""Tenant of the key that a platform generates for itself."""

_REFUSAL: Final = "invalid or missing API key"
_SHORTEST: Final = 8
_MOST_SEEN: Final = 10_000
_SHORT_DIGITS: Final = 32
_BLANKS: Final = re.compile(r"[ \t]+")
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
        self._touch(tenant)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return tenant

    def tenant_of_short(self, short: str) -> str | None:
        """Return the tenant whose key has this short form, or None."""
        found = None
        for known, tenant in self._tenants.items():
            if same_secret(_short(known), short):
                found = tenant
        seen = self._seen.get(_own_tenant(short))
        if seen is not None and same_secret(_short(seen), short):
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

        Where every key is accepted that is any `X-API-KEY`, but only a key that was
        used before in another header, where it may as well be one of an agent's own.

        Args:
            name: Name of the header, in lower case.
            value: Its value.
        """
        if name == "x-api-key":
            return self._any_key or self._is_key(value.strip())
        if name != "authorization":
            return False
        user = basic_user(value) or ""
        return self.tenant_of_short(user.partition(".")[2]) is not None or any(
            map(self._is_key, _keys_in(value))
        )

    def _is_key(self, text: str) -> bool:
        digest = _digest(text)
        if self._find(digest) is not None:
            return True
        tenant = _own_tenant(_short(digest))
        found = self._seen.get(tenant) == digest
        if found:
            self._touch(tenant)
        return found

    def _touch(self, tenant: str) -> None:
        with suppress(KeyError):  # dropped by another thread meanwhile
            self._seen.move_to_end(tenant)

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
    return _credentials(authorization, "bearer")


def basic_user(authorization: str | None) -> str | None:
    """Return the user name of a `Basic` header value, or None.

    Example:
        >>> basic_user("Basic YXBpLjEyMzQ6"), basic_user("Bearer abc")
        ('api.1234', None)
    """
    pair = _basic_pair(authorization)
    return None if pair is None else pair.partition(":")[0]


def same_secret(given: str, secret: str) -> bool:
    """Compare two texts in a time that tells nothing of where they differ."""
    one, other = (text.encode("utf-8", "surrogateescape") for text in (given, secret))
    return hmac.compare_digest(one, other)


def _credentials(authorization: str | None, scheme: str) -> str | None:
    """Return what follows the scheme, if it is this one."""
    found, *rest = _BLANKS.split((authorization or "").strip(" \t"), maxsplit=1)
    return "".join(rest) if found.lower() == scheme else None


def _basic_pair(authorization: str | None) -> str | None:
    pair = _credentials(authorization, "basic")
    try:
        return (
            None
            if pair is None
            else base64.b64decode(pair, validate=True).decode("latin-1")
        )
    except (binascii.Error, ValueError):
        return None


def _keys_in(authorization: str) -> Iterator[str]:
    """Give every text that may be a key, whether or not it proves anything there."""
    text = authorization.strip()
    yield text
    yield from _BLANKS.split(text, maxsplit=1)[1:]
    pair = _basic_pair(text)
    if pair is not None:
        user, _, password = pair.partition(":")
        yield from (pair, user, password)


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _short(digest: bytes) -> str:
    return hmac.new(digest, _PURPOSE, sha256).hexdigest()[:_SHORT_DIGITS]


def _own_tenant(short: str) -> str:
    return f"key-{short[:16]}"
