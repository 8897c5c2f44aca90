"""The playground: one page by which a person talks to the agent in a browser.

The page is a file beside this module, read when it is first asked for. Nothing in it
comes from elsewhere, and the policy sent with it keeps it so.
"""

from __future__ import annotations

import functools
import secrets
from pathlib import Path

from ppio_agent.web import Reply

__all__ = ["playground"]

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


def playground() -> Reply:
    """Return the page, under a nonce of its own."""
    nonce = secrets.token_urlsafe(16)
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", "; ".join(_POLICY).format(nonce=nonce)),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
    ]
    return Reply(200, headers, nonce.encode().join(_pieces()))


@functools.cache
def _pieces() -> tuple[bytes, ...]:
    """Return the page, cut where the nonce belongs."""
    page = Path(__file__).with_suffix(".html").read_bytes()
    return tuple(page.split(_NONCE))
