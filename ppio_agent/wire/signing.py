"""Request signatures: one pure function for client, app and cluster."""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["EMPTY_SHA256", "sign"]

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
"""Hash of a request without a body."""

_VERSION = "v1"


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
    text = "\n".join((_VERSION, method.upper(), target, timestamp, nonce, body_sha256))
    digest = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return {
        "X-PPIO-Key": key_id,
        "X-PPIO-Timestamp": timestamp,
        "X-PPIO-Nonce": nonce,
        "X-PPIO-Signature": f"{_VERSION}={digest}",
    }
