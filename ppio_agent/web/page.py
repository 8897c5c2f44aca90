"""One page for a browser: a file of the package, under a policy that keeps it alone.

Nothing in such a page comes from elsewhere, and the policy sent with it keeps it so.
"""

from __future__ import annotations

import functools
import secrets
from pathlib import Path

from .kit import Reply

__all__ = ["page"]

_NONCE = b"{{nonce}}"
_POLICY = (
    "default-src 'none'",
    "connect-src 'self'",
    "img-src data:",  # the icon, which is written in the page
    "script-src 'nonce-{nonce}'",
    "style-src 'nonce-{nonce}'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",  # no text can become HTML, nor code
    "trusted-types 'none'",
)


def page(file: Path) -> Reply:
    """Return a page, with a nonce of its own wherever it says ``{{nonce}}``."""
    nonce = secrets.token_urlsafe(16)
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", "; ".join(_POLICY).format(nonce=nonce)),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
    ]
    return Reply(200, headers, nonce.encode().join(_pieces(file)))


@functools.cache
def _pieces(file: Path) -> tuple[bytes, ...]:
    """Return the page, cut where the nonce belongs."""
    return tuple(file.read_bytes().split(_NONCE))
