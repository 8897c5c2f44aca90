"""Request signatures: what is signed, how it is proved, and nonces that count once.

One definition for client, app and cluster. Signing and checking are pure; what has to be
remembered between requests is behind the port `NonceStore`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from attrs import field, frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import RateLimitError, ServiceUnavailableError, WireError

__all__ = [
    "MAX_NONCES",
    "SIGNATURE_HEADERS",
    "MemoryNonceStore",
    "NonceStore",
    "Signature",
    "nonces_unavailable",
    "sign",
    "too_many_nonces",
    "valid_key_id",
]

MAX_NONCES = 100_000
"""How many nonces a store keeps for one key."""

SIGNATURE_HEADERS = (
    "X-PPIO-Key",
    "X-PPIO-Timestamp",
    "X-PPIO-Nonce",
    "X-PPIO-Signature",
)

_VERSION = "v1"
# Form of each and its description, in the order of SIGNATURE_HEADERS.
_FORMS = (
    (re.compile(r"[\x21-\x7e]{1,255}"), "1 to 255 visible ASCII characters"),
    (re.compile(r"[0-9]{1,15}", re.ASCII), "unix seconds, in digits"),
    (re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII), "16 to 128 of A-Z a-z 0-9 _ -"),
    (re.compile(r"v1=[0-9a-f]{64}", re.ASCII), "v1= and 64 lower-case hex digits"),
)


def sign(
    method: str,
    target: str,
    body_sha256: str,
    *,
    key_id: str,
    secret: str,
    now: float,
    nonce: str,
) -> dict[str, str]:
    """Return the four headers that prove who sent a request, and that it is unchanged.

    Args:
        method: HTTP method, in any case.
        target: Path and query exactly as sent, percent-encoding untouched.
        body_sha256: Lower-case hex SHA-256 of the body's bytes.
        key_id: Public name of the secret.
        secret: The shared secret; it is used and never sent.
        now: Wall-clock time in unix seconds.
        nonce: 16 to 128 of ``[A-Za-z0-9_-]``, new for each attempt.
    """
    timestamp = str(int(now))
    text = _text(method, target, body_sha256, timestamp=timestamp, nonce=nonce)
    values = (key_id, timestamp, nonce, f"{_VERSION}={_digest(secret, text)}")
    return dict(zip(SIGNATURE_HEADERS, values, strict=True))


@frozen
class Signature:
    """The four headers of a signed request, of the right form but not yet believed.

    Attributes:
        key_id: Which key it claims to be signed with.
        timestamp: When it claims to be signed: unix seconds, as sent.
        nonce: What makes it unique.

    Thread safety: immutable.
    """

    key_id: str
    timestamp: str
    nonce: str
    _proof: str = field(repr=False)

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> Signature | None:
        """Return the signature in a request's headers; None if it is not signed.

        Args:
            headers: By their lower-case names. One of the four makes it a signed
                request, which needs the three others.

        Raises:
            WireError: A header is missing or not of its form; its name is the path.
        """
        values = [headers.get(name.lower()) for name in SIGNATURE_HEADERS]
        if not any(value is not None for value in values):
            return None
        found = []
        for name, (form, words), value in zip(
            SIGNATURE_HEADERS, _FORMS, values, strict=True
        ):
            if value is None:
                raise WireError(name, "missing in a signed request")
            if not form.fullmatch(value):
                raise WireError(name, f"has to be {words}")
            found.append(value)
        key_id, timestamp, nonce, proof = found
        return cls(key_id, timestamp, nonce, proof.partition("=")[2])

    def proves(
        self, method: str, target: str, body_sha256: str, *, secrets: Iterable[str]
    ) -> bool:
        """Whether the request was signed with one of a key's secrets.

        Args:
            method: Method of the request that came.
            target: Its path and query as sent.
            body_sha256: Lower-case hex SHA-256 of its body's bytes.
            secrets: All are tried, so that the time taken does not tell which fits.
        """
        text = _text(
            method, target, body_sha256, timestamp=self.timestamp, nonce=self.nonce
        )
        proved = False
        for secret in secrets:
            proved |= hmac.compare_digest(_digest(secret, text), self._proof)
        return proved

    def is_timely(self, now: float, window: float) -> bool:
        """Whether it was signed within `window` seconds of `now`, before or after."""
        return abs(now - int(self.timestamp)) <= window


def valid_key_id(text: str) -> bool:
    """Whether `text` can stand in the header that names the key."""
    return _FORMS[0][0].fullmatch(text) is not None


def _text(
    method: str, target: str, body_sha256: str, *, timestamp: str, nonce: str
) -> bytes:
    """Return what is signed."""
    lines = (_VERSION, method.upper(), target, timestamp, nonce, body_sha256)
    # A target that came with bytes outside UTF-8 is signed as those bytes.
    return "\n".join(lines).encode("utf-8", "surrogateescape")


def _digest(secret: str, text: bytes) -> str:
    return hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


class NonceStore(Protocol):
    """Remembers nonces, so that each counts once; asked for genuine signatures only.

    Thread safety: every method may be called from any thread.
    """

    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        """Remember a nonce; of all who claim it exactly one gets True.

        Args:
            key_id: The key it was used with; each key has nonces of its own.
            nonce: The nonce.
            keep: Seconds for which it is remembered at least.

        Raises:
            RateLimitError: As many as can be kept for this key are kept already.
            ServiceUnavailableError: The store cannot say; the nonce may be taken.
        """

    def close(self) -> None:
        """Let go of connections and files. Idempotent."""


class MemoryNonceStore:
    """Remembers nonces in this process, which is enough if there is no other.

    A forked child knows those of its parent until then, and no later ones.

    Args:
        limit: Most nonces for one key.
        clock: A clock that never goes back.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        *,
        limit: int = MAX_NONCES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._clock = clock
        # Guards both below.
        self._lock = threading.Lock()
        self._expiry: dict[str, dict[str, float]] = {}  # of a key's nonces, in order
        self._queue: deque[tuple[float, str, str]] = deque()
        renew_in_child(self, MemoryNonceStore._renew)

    def _renew(self) -> None:
        # Of a change that the fork cut in two, one nonce may be kept for ever.
        self._lock = threading.Lock()

    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        """Remember a nonce; see `NonceStore.claim`."""
        now = self._clock()
        with self._lock:
            self._forget_locked(now)
            known = self._expiry.setdefault(key_id, {})
            if nonce in known:
                return False
            if len(known) >= self._limit:
                raise too_many_nonces(next(iter(known.values())) - now)
            known[nonce] = now + keep
            self._queue.append((now + keep, key_id, nonce))
            return True

    def _forget_locked(self, now: float) -> None:
        while self._queue and self._queue[0][0] < now:
            _, key_id, nonce = self._queue.popleft()
            known = self._expiry[key_id]
            del known[nonce]
            if not known:
                del self._expiry[key_id]

    def close(self) -> None:
        """Do nothing; forgetting would let them be used again."""


def too_many_nonces(retry_after: float) -> RateLimitError:
    """Return the error of a store that is full for one key, which it does not show.

    Args:
        retry_after: Seconds until the oldest nonce is forgotten.
    """
    return RateLimitError(
        "more requests were signed with this key than can be remembered; send fewer,"
        " or try again later",
        retry_after=max(1.0, retry_after),
    )


def nonces_unavailable() -> ServiceUnavailableError:
    """Return the error of a store that does not answer; its cause is for the log."""
    return ServiceUnavailableError(
        "it cannot be told whether this request was seen before; sign it anew and try"
        " again",
        code="nonces_unavailable",
    )
