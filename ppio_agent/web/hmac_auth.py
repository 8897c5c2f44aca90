"""Authentication by request signatures: the secret is never sent, and nothing replays."""

from __future__ import annotations

import hashlib
import logging
import secrets as random_secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    ServiceUnavailableError,
    ValidationError,
    WireError,
)
from ppio_agent.hooks import hookimpl
from ppio_agent.wire.models import Principal
from ppio_agent.wire.signing import (
    SIGNATURE_HEADERS,
    MemoryNonceStore,
    NonceStore,
    Signature,
    valid_key_id,
)

from .auth import AuthRequest

__all__ = ["HmacAuth"]

_log = logging.getLogger(__name__)

Secrets = Mapping[str, str | Sequence[str]]


class HmacAuth:
    """Admits whoever signs requests with a known secret; see `wire.signing`.

    The principal's id is that of the key. Of a request that is not signed it says
    nothing, so that the next plug-in is asked.

    Args:
        secrets: Key id to its secret, or to several while they are being exchanged; or
            a function that returns such a mapping, asked for each signed request.
        window: Seconds that the signer's clock may be wrong, in either direction.
        nonces: What remembers the nonces used, for twice the window; None keeps them
            in memory, which is right for one process. See `storage.open_nonces`. Who
            opened it closes it.
        clock: The time, in unix seconds.

    Raises:
        ConfigurationError: There is no key, one cannot be used, or the window is none.

    Attributes:
        quick: Whether no function is asked, and the nonces are in memory.

    Thread safety: thread-safe, if the function is.
    """

    security_schemes: ClassVar[Mapping[str, Any]] = {
        "hmac": {
            "type": "apiKey",
            "in": "header",
            "name": "X-PPIO-Signature",
            "description": "With X-PPIO-Key, X-PPIO-Timestamp and X-PPIO-Nonce:"
            " HMAC-SHA256 over method, target, time, nonce and body.",
        }
    }

    def __init__(
        self,
        secrets: Secrets | Callable[[], Secrets],
        *,
        window: float = 300.0,
        nonces: NonceStore | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not 0 < window < float("inf"):
            raise ConfigurationError("the window has to be a number of seconds above 0")
        # Tried for keys that do not exist, which must take as long as those that do.
        self._decoy = random_secrets.token_hex(32)
        self._ask = secrets if callable(secrets) else None
        self._known = {} if callable(secrets) else _checked(secrets)
        self._window = window
        self._nonces: NonceStore = MemoryNonceStore() if nonces is None else nonces
        self._clock = clock
        self.quick = self._ask is None and isinstance(self._nonces, MemoryNonceStore)

    @hookimpl
    def ppio_authenticate(self, request: AuthRequest) -> Principal | None:
        """Return the signing key's principal; None if the request is not signed.

        Blocking: as long as the store of nonces.
        """
        try:
            signature = Signature.read(request.headers)
        except WireError as error:
            raise ValidationError(
                str(error), code="invalid_signature_headers"
            ) from error
        if signature is None:
            return None
        # From WSGI's way to write bytes to the way in which `wire.signing` does.
        target = request.target.encode("latin-1").decode("utf-8", "surrogateescape")
        if not signature.proves(
            request.method,
            target,
            hashlib.sha256(request.body).hexdigest(),
            secrets=self._tried(signature.key_id),
        ):
            raise AuthenticationError("the signature is not accepted")
        if not signature.is_timely(self._clock(), self._window):
            raise AuthenticationError(
                f"the request was not signed within {self._window:g} s of now: sign it"
                " anew, and check the clock",
                code="signature_expired",
            )
        # Last, so that only holders of a secret can fill the store.
        if not self._claim(signature):
            raise AuthenticationError(
                "the nonce was used before: sign each attempt with a new one",
                code="nonce_replayed",
            )
        request.hide(*SIGNATURE_HEADERS)
        return Principal(signature.key_id, "hmac")

    def _tried(self, key_id: str) -> list[str]:
        """Return a key's secrets, and decoys: of every key and of none as many."""
        known = self._known if self._ask is None else _checked(self._ask())
        tried = list(known.get(key_id, ()))
        most = max(map(len, known.values()))
        return tried + [self._decoy] * (most - len(tried))

    def _claim(self, signature: Signature) -> bool:
        try:
            return self._nonces.claim(
                signature.key_id, signature.nonce, keep=2 * self._window
            )
        except ServiceUnavailableError:
            _log.warning(
                "a signed request is refused: the nonces are not available",
                exc_info=True,
            )
            raise

    def __repr__(self) -> str:
        return f"HmacAuth({'asked' if self._ask else len(self._known)} keys)"


def _checked(secrets: Secrets) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(secrets, Mapping) or not secrets:
        raise ConfigurationError("HmacAuth takes a mapping of key ids to secrets")
    checked = {}
    for key_id, value in secrets.items():
        if not isinstance(key_id, str) or not valid_key_id(key_id):
            raise ConfigurationError(
                f"the key id {key_id!r} is not 1 to 255 visible ASCII characters"
            )
        several = [value] if isinstance(value, str) else value
        found = tuple(several) if isinstance(several, Sequence) else ()
        if not found or not all(map(_is_secret, found)):
            raise ConfigurationError(
                f"the key {key_id} has no secret, an empty one, or one that is no text"
            )
        checked[key_id] = found
    return checked


def _is_secret(value: object) -> bool:
    """Whether it is a text that has a UTF-8 form."""
    return (
        isinstance(value, str)
        and bool(value)
        and value.encode("utf-8", "replace").decode() == value
    )
