"""Take secrets out of what a person or a log may see."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

__all__ = ["SECRET_HEADERS", "Redactor", "escaped", "is_secret_header", "mask"]

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
# Of a text that is to be cut, so much is looked at.
_MOST_READ = 64 * 1024
# Those of Unicode that end a line, too, and halves of pairs, which no log can write.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


def escaped(text: str, *, keep: str = "") -> str:
    r"""Return text of a peer's with its control characters written out, as in a repr.

    Args:
        text: Whatever it said.
        keep: Control characters that may stay.

    Example:
        >>> print(escaped("a\r\nb"), escaped("ünicode"))
        a\r\nb ünicode
    """
    return _CONTROL.sub(
        lambda found: (
            found[0]
            if found[0] in keep
            else found[0].encode("unicode_escape").decode("ascii")
        ),
        text,
    )


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
        parent: What it knows, now or later, is hidden as well.

    Thread safety: thread-safe, without a lock: a finaliser or a forked child may find
    it in any state.
    """

    def __init__(
        self, secrets: Iterable[str | None] = (), *, parent: Redactor | None = None
    ) -> None:
        self._parent = parent
        self._kept: set[str] = set()
        self._passing: frozenset[str] = frozenset()
        # Another one after each change: a pattern made before it does not count.
        self._stamp = object()
        self._made: tuple[tuple[object, ...], re.Pattern[str] | None] = ((), None)
        self.add(*secrets)

    def add(self, *secrets: str | None) -> None:
        """Hide these values from now on; None and short ones are passed over."""
        found = _long_enough(secrets)
        if not found <= self._kept:
            self._kept.update(found)
            self._stamp = object()

    def replace(self, *secrets: str) -> None:
        """Hide these values in the place of those that it was given before.

        For secrets that change again and again, of which `add` would keep all.
        """
        self._passing = _long_enough(secrets)
        self._stamp = object()

    def _stamps(self) -> tuple[object, ...]:
        if self._parent is None:
            return (self._stamp,)
        return (self._stamp, *self._parent._stamps())  # noqa: SLF001 - our own

    def _known(self) -> set[str]:
        known = self._kept | self._passing
        return known if self._parent is None else known | self._parent._known()  # noqa: SLF001 - our own

    def _pattern(self) -> re.Pattern[str] | None:
        stamps = self._stamps()
        made_of, pattern = self._made
        if made_of != stamps:
            known = sorted(self._known(), key=lambda s: (-len(s), s))
            spellings = "|".join(map(_spellings, known))
            pattern = re.compile(spellings) if spellings else None
            self._made = stamps, pattern
        return pattern

    def text(self, text: str) -> str:
        """Return `text` with every known secret replaced."""
        pattern = self._pattern()
        return text if pattern is None else pattern.sub(_HIDDEN, text)

    def start(self, text: str, most: int) -> str:
        """Return the first `most` characters in one line, with no part of a secret."""
        return escaped(" ".join(self.text(text[:_MOST_READ]).split())[:most])

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
        pattern = self._pattern()
        if pattern is not None and pattern.search(unquote(text)):
            return _HIDDEN  # letters need no encoding: who encodes them has a reason
        return text

    def __repr__(self) -> str:
        return f"Redactor({len(self._known())} values)"


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
