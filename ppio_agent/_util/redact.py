"""Take secrets out of what a person or a log may see."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

__all__ = ["SECRET_HEADERS", "Redactor", "is_secret_header", "mask"]

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

_SECRET_NAME = re.compile(
    r"secret|token|passw|api[-_]?key|signature|credential", re.IGNORECASE
)
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

    A value is known however it is spelt: as it is, percent-encoded, or escaped as in
    JSON and in a repr.

    Args:
        secrets: Values to be hidden wherever they occur; those of fewer than 6
            characters only where their name gives them away.

    Thread safety: thread-safe.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # Guards changes of the three below; `text` reads the pattern as it is.
        self._lock = threading.Lock()
        self._kept: frozenset[str] = frozenset()
        self._passing: frozenset[str] = frozenset()
        self._pattern: re.Pattern[str] | None = None
        self.add(*secrets)

    def add(self, *secrets: str | None) -> None:
        """Hide these values from now on; None and short ones are passed over."""
        found = _long_enough(secrets)
        with self._lock:
            if not found <= self._kept:
                self._kept |= found
                self._renew_locked()

    def replace(self, *secrets: str) -> None:
        """Hide these values in the place of those that it was given before.

        For secrets that change again and again, of which `add` would keep all.
        """
        with self._lock:
            self._passing = _long_enough(secrets)
            self._renew_locked()

    def _renew_locked(self) -> None:
        known = sorted(self._kept | self._passing, key=lambda s: (-len(s), s))
        spellings = "|".join(map(_spellings, known))
        self._pattern = re.compile(spellings) if spellings else None

    def text(self, text: str) -> str:
        """Return `text` with every known secret replaced."""
        return text if self._pattern is None else self._pattern.sub(_HIDDEN, text)

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return a copy whose secret headers are hidden, the rest checked as text."""
        return {
            name: _HIDDEN if is_secret_header(name) else self.text(str(value))
            for name, value in headers.items()
        }

    def url(self, url: str) -> str:
        """Return `url` without user info, secret query values and known secrets."""
        try:
            parts = urlsplit(url)
            query, fragment = _hide_named(parts.query), _hide_named(parts.fragment)
        except ValueError:
            return _HIDDEN
        _, at, host = parts.netloc.rpartition("@")
        netloc = f"{_HIDDEN}@{host}" if at else host
        text = self.text(
            urlunsplit((parts.scheme, netloc, parts.path, query, fragment))
        )
        if self._pattern is not None and self._pattern.search(unquote(text)):
            return _HIDDEN  # letters need no encoding: who encodes them has a reason
        return text

    def __repr__(self) -> str:
        return f"Redactor({len(self._kept | self._passing)} values)"


def _long_enough(secrets: Iterable[str | None]) -> frozenset[str]:
    return frozenset(s for s in secrets if s and len(s) >= _SHORTEST)


def is_secret_header(name: str) -> bool:
    """Return whether a header of this name, in any case, holds a secret."""
    name = name.lower()
    return name in SECRET_HEADERS or bool(_SECRET_NAME.search(name))


def _hide_named(pairs: str) -> str:
    """Return a query without the values whose names give them away."""
    if "=" not in pairs or not _SECRET_NAME.search(unquote(pairs)):
        return pairs
    hidden = [
        (name, _HIDDEN if _SECRET_NAME.search(name) else value)
        for name, value in parse_qsl(pairs, keep_blank_values=True)
    ]
    return urlencode(hidden, safe="*")


def _spellings(secret: str) -> str:
    """Return a pattern of every way in which a secret is written."""
    return "".join(map(_spellings_of_character, secret))


def _spellings_of_character(character: str) -> str:
    if character.isascii() and (character.isalnum() or character in "-_.~"):
        return re.escape(character)
    encoded = character.encode("utf-8", "surrogatepass")
    written = {character, repr(character)[1:-1], json.dumps(character)[1:-1]}
    if character in "'\"/":
        written.add(f"\\{character}")
    if character == " ":
        written.add("+")
    hexadecimal = "".join(f"%{byte:02x}" for byte in encoded)
    return f"(?:{'|'.join(map(re.escape, sorted(written)))}|(?i:{hexadecimal}))"
