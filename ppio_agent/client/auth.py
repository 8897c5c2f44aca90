"""What proves who asks: the keys of a client, or the plug-in that stands in for them.

A key proves it at the control plane. With a secret each attempt is signed besides, and
the agent sees the signature alone: the platform's key is none of its business.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import field, frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.redact import Redactor, is_secret_header, mask
from ppio_agent.exceptions import AuthenticationError, ConfigurationError
from ppio_agent.transport import Auth, Request
from ppio_agent.wire.signing import SIGNATURE_HEADERS, sign, valid_key_id

if TYPE_CHECKING:
    from ppio_agent.hooks.specs import ClientAuth

__all__ = [
    "KEY_VARIABLE",
    "SECRET_VARIABLE",
    "AuthManager",
    "Authenticator",
    "PluginAuth",
    "attempt_auth",
]

KEY_VARIABLE = "PPIO_API_KEY"
SECRET_VARIABLE = "PPIO_API_SECRET"  # noqa: S105 - a variable's name

# A signature is good for one request, and another one each time.
_SIGNATURE = frozenset(name.lower() for name in SIGNATURE_HEADERS)
_MOST_TOKENS = 64
_NO_BODY = hashlib.sha256(b"").hexdigest()


@frozen
class _Keys:
    api_key: str = field(repr=mask)
    api_secret: str | None = field(repr=lambda secret: repr(secret and mask(secret)))
    key_id: str


class AuthManager:
    """Holds the API key, and the secret if there is one, and makes headers of them.

    Args:
        api_key: Key of the platform; None reads `PPIO_API_KEY`.
        api_secret: Secret for signed requests; None reads `PPIO_API_SECRET`, and
            none there means Bearer authentication.
        key_id: Name of the secret in signatures; None makes one of the API key, which
            does not tell it.
        forward_api_key: Whether agents are sent the API key, too.
        environ: What to read instead of the process's environment.
        clock: The time, in unix seconds.

    Raises:
        AuthenticationError: The key is missing, or cannot stand in a header.
        ConfigurationError: The key id cannot be used.

    A pickle holds only what was given as an argument; the rest is read again from
    the environment where it is loaded.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        key_id: str | None = None,
        forward_api_key: bool = False,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        environ = os.environ if environ is None else environ
        self.redactor = Redactor()
        self._given = (api_key, api_secret)
        self._named = key_id
        self._forward = forward_api_key
        self._clock = clock
        self._renew()
        renew_in_child(self, AuthManager._renew)
        self._keys = self._checked(
            environ.get(KEY_VARIABLE) if api_key is None else api_key,
            environ.get(SECRET_VARIABLE) if api_secret is None else api_secret,
        )

    def _renew(self) -> None:
        # Makes one rotation wait for another; readers take the pair as it is.
        self._lock = threading.Lock()

    def _checked(self, api_key: str | None, api_secret: str | None) -> _Keys:
        key = _stripped("API key", api_key)
        if not key:
            raise AuthenticationError(
                f"no API key: pass api_key=… or set {KEY_VARIABLE}"
            )
        secret = _stripped("API secret", api_secret) or None
        for name, value in (("API key", key), ("API secret", secret or "x")):
            if not value.isascii() or not value.isprintable():
                raise AuthenticationError(
                    f"the {name} has characters that cannot stand in a header;"
                    " check that it was copied whole"
                )
        key_id = _derived_id(key) if self._named is None else self._named
        if not valid_key_id(key_id):
            raise ConfigurationError(
                "the setting key_id has to be 1 to 255 visible ASCII characters"
            )
        if key_id == key and not self._forward:
            raise ConfigurationError(
                "the setting key_id is the API key itself, which agents would see;"
                " choose another name, or set forward_api_key if they may"
            )
        self.redactor.add(key, secret)
        return _Keys(key, secret, key_id)

    @property
    def api_key(self) -> str:
        """The key in use."""
        return self._keys.api_key

    @property
    def account(self) -> Hashable:
        """What tells the caches of two accounts apart."""
        return self._keys.api_key

    @property
    def given(self) -> tuple[str | None, str | None]:
        """The key and the secret as arguments gave them, those of `rotate` included.

        None for what the environment gave.
        """
        return self._given

    @property
    def key_id(self) -> str:
        """By which name agents know the secret: that of their `HmacAuth`."""
        return self._keys.key_id

    @property
    def signs(self) -> bool:
        """Whether there is a secret to sign with."""
        return self._keys.api_secret is not None

    def rotate(
        self, *, api_key: str | None = None, api_secret: str | None = None
    ) -> None:
        """Use another key, secret or both from the next attempt on.

        What is left out stays as it is. Both are exchanged in one step: no request
        has the key of one pair and the signature of another.

        Raises:
            AuthenticationError: The new one cannot be used; the old one stays.
        """
        with self._lock:
            old = self._keys
            self._keys = self._checked(
                old.api_key if api_key is None else api_key,
                old.api_secret if api_secret is None else api_secret,
            )
            given_key, given_secret = self._given
            self._given = (
                given_key if api_key is None else api_key,
                given_secret if api_secret is None else api_secret,
            )

    def headers(self, request: Request, *, refresh: bool = False) -> dict[str, str]:
        """Return the headers that prove who asks; a signature is good for one attempt.

        Args:
            request: What is asked, as it will be sent.
            refresh: Whether the last ones were answered 401: some platforms want the
                key of the templates API in the header of the sandboxes API.
        """
        keys = self._keys
        kind = request.kind
        if kind == "envd":
            return {}  # it knows the sandbox's own token alone
        if kind == "agent":
            found = _bearer(keys) if self._forward else {}
        elif kind == "template" and request.method == "GET" and not refresh:
            found = _bearer(keys)
        else:
            found = {"X-API-KEY": keys.api_key}
        if keys.api_secret is not None:
            found.update(self._signature(request, keys.key_id, keys.api_secret))
        return found

    def _signature(
        self, request: Request, key_id: str, api_secret: str
    ) -> dict[str, str]:
        body = request.body
        return sign(
            request.method,
            request.target,
            hashlib.sha256(body).hexdigest() if body else _NO_BODY,
            key_id=key_id,
            secret=api_secret,
            now=self._clock(),
            nonce=secrets.token_urlsafe(16),
        )

    def __repr__(self) -> str:
        return f"AuthManager({self._keys!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), key_id=self._named, forward_api_key=self._forward)
        return make, self._given


class PluginAuth:
    """What a plug-in of the hook `ppio_client_auth` says of each attempt.

    Its tokens are hidden from logs and errors as keys are: the last 64 of them.

    Args:
        plugin: Asked for headers; replaces the keys at the control plane and at the
            agent.

    Thread safety: that of the plug-in.
    """

    def __init__(self, plugin: ClientAuth) -> None:
        self.redactor = Redactor()
        self._plugin = plugin
        self._renew()
        renew_in_child(self, PluginAuth._renew)
        # Those used last at the end: calls may still use the ones before.
        self._tokens: OrderedDict[str, None] = OrderedDict()

    def _renew(self) -> None:
        # Guards _tokens.
        self._lock = threading.Lock()

    @property
    def account(self) -> Hashable:
        """What tells the caches of two accounts apart."""
        return id(self)

    def headers(self, request: Request, *, refresh: bool = False) -> Mapping[str, str]:
        """Return the plug-in's headers; see `hooks.specs.ClientAuth`.

        Raises:
            ConfigurationError: They are no mapping of texts to texts.
        """
        if request.kind == "envd":
            return {}  # as for keys
        found = self._plugin.headers(request, refresh=refresh)
        if not isinstance(found, Mapping) or not all(
            isinstance(text, str) for pair in found.items() for text in pair
        ):
            raise ConfigurationError(
                f"the headers of the plug-in {type(self._plugin).__qualname__} are no"
                " mapping of texts to texts; see the hook ppio_client_auth"
            )
        for name, value in found.items():
            lower = name.lower()
            if lower not in _SIGNATURE and is_secret_header(lower):
                # "Bearer" and the like say nothing.
                word = value.rpartition(" ")[2]
                self._hide(word if lower == "authorization" else value)
        return found

    def _hide(self, token: str) -> None:
        with self._lock:
            known = token in self._tokens
            self._tokens[token] = None
            self._tokens.move_to_end(token)
            if not known:
                if len(self._tokens) > _MOST_TOKENS:
                    self._tokens.popitem(last=False)
                self.redactor.replace(*self._tokens)

    def __repr__(self) -> str:
        return f"PluginAuth({type(self._plugin).__qualname__})"


Authenticator: TypeAlias = AuthManager | PluginAuth


def attempt_auth(auth: Authenticator, tokens: Mapping[str, str] | None = None) -> Auth:
    """Return what gives each attempt its headers.

    Args:
        auth: Proves who asks.
        tokens: Headers that a sandbox of this account wants besides.
    """
    own = dict(tokens or {})
    refused = False

    def headers(request: Request, refresh: bool) -> Mapping[str, str]:  # noqa: FBT001 - the transport's form
        nonlocal refused
        # A plug-in is told once. Of keys it means the other form of header, which
        # later attempts of the request keep to.
        refused = refused or (refresh and isinstance(auth, AuthManager))
        return {**own, **auth.headers(request, refresh=refresh or refused)}

    return headers


def _bearer(keys: _Keys) -> dict[str, str]:
    return {"Authorization": f"Bearer {keys.api_key}"}


def _stripped(name: str, given: object) -> str:
    if given is not None and not isinstance(given, str):
        kind = type(given).__name__
        raise AuthenticationError(f"the {name} has to be a text, not {kind}")
    return (given or "").strip()


def _derived_id(api_key: str) -> str:
    """Return a name for a key: always the same, and no way back to the key."""
    digest = hashlib.sha256(b"ppio-agent key id\n" + api_key.encode())
    return f"key-{digest.hexdigest()[:20]}"
