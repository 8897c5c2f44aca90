"""Take secrets out of what a person or a log may see."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

__all__ = ["SECRET_HEADERS", "Redactor", "mask"]

SECRET_HEADERS = frozenset({
    "authorization",
    "cookie",
    "e2b-traffic-access-token",
    "ppio-traffic-access-token",
    "proxy-authorization",
    "set-cookie",
    "x-access-token",
    "x-api-key",
    "x-ppio-signature",
})  # fmt: skip

_SECRET_NAME = re.compile(r"secret|token|password|api[-_]?key", re.IGNORECASE)
_HIDDEN = "***"
# A shorter value is found by chance in ordinary text, which would then be spoilt.
_SHORTEST = 6


def mask(secret: str) -> str:
    """Return a stand-in that shows at most the last 4 characters of a long secret.

    Example:
        >>> mask("sk-0123456789abcdef"), mask("short")
        ('***cdef', '***')
    """
    return f"{_HIDDEN}{secret[-4:]}" if len(secret) >= 12 else _HIDDEN


class Redactor:
    """Replaces known secret values, and whatever is named like one, by ``***``.

    Args:
        secrets: Values to be hidden wherever they occur; those of fewer than 6
            characters only where their name gives them away.

    Thread safety: thread-safe; `add` swaps the pattern atomically.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: tuple[str, ...] = ()
        self._pattern: re.Pattern[str] | None = None
        self.add(*secrets)

    def add(self, *secrets: str | None) -> None:
        """Hide these values from now on; None and short ones are passed over."""
        known = set(self._secrets)
        for secret in secrets:
            if secret and len(secret) >= _SHORTEST:
                known.update((secret, quote(secret, safe="")))
        if known == set(self._secrets):
            return
        longest_first = tuple(sorted(known, key=lambda s: (-len(s), s)))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))
        self._secrets = longest_first

    def text(self, text: str) -> str:
        """Return `text` with every known secret replaced."""
        return text if self._pattern is None else self._pattern.sub(_HIDDEN, text)

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return a copy whose secret headers are hidden, the rest checked as text."""
        return {
            name: _HIDDEN if _is_secret_header(name) else self.text(str(value))
            for name, value in headers.items()
        }

    def url(self, url: str) -> str:
        """Return `url` without user info, secret query values and known secrets."""
        try:
            parts = urlsplit(url)
            host = parts.netloc.rpartition("@")
            netloc = f"{_HIDDEN}@{host[2]}" if host[1] else parts.netloc
            query = parts.query
            if _SECRET_NAME.search(query):
                pairs = parse_qsl(query, keep_blank_values=True)
                hidden = [
                    (k, _HIDDEN if _SECRET_NAME.search(k) else v) for k, v in pairs
                ]
                query = urlencode(hidden, safe="*")
            url = urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))
        except ValueError:
            return _HIDDEN
        return self.text(url)

    def __repr__(self) -> str:
        return f"Redactor({len(self._secrets)} values)"


def _is_secret_header(name: str) -> bool:
    name = name.lower()
    return name in SECRET_HEADERS or bool(_SECRET_NAME.search(name))
