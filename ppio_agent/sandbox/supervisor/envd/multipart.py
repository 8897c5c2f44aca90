"""`multipart/form-data`, cut into parts as it comes; no part is held whole. Pure.

The libraries that do this cost a supervisor more memory than all of it has.

Source: RFC 7578, RFC 2046 section 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["MultipartError", "MultipartReader", "Part", "PartEnd", "boundary_of"]

_MAX_HEAD = 16 * 1024
_PADDING = 64
_PARAMETER = re.compile(r';\s*([\w*-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;\s]*)')


class MultipartError(ValueError):
    """The body is not what its type says."""


class Part(NamedTuple):
    """A part begins.

    Attributes:
        name: Name of the form's field.
        filename: Name of the file; None if it is not one.
    """

    name: str
    filename: str | None


class PartEnd(NamedTuple):
    """The part is whole."""


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a `Content-Type` names.

    Raises:
        MultipartError: It names none.
    """
    boundary = _parameters(content_type).get("boundary", "")
    if not re.fullmatch(r"[ -~]{0,69}[!-~]", boundary):
        raise MultipartError("the type of the body names no boundary")
    return boundary.encode("ascii")


class MultipartReader:
    """Turns pieces of a body into parts and pieces of parts.

    Args:
        boundary: What stands between the parts.

    Thread safety: one thread at a time.
    """

    def __init__(self, boundary: bytes) -> None:
        delimiter = b"\r\n--" + boundary
        # Followed by anything else it is content that begins alike.
        self._delimiter = re.compile(
            re.escape(delimiter) + rb"(--|[ \t]{0,%d}\r\n)" % _PADDING
        )
        self._keep = len(delimiter) + _PADDING + 2
        # The first delimiter may lack the line end before it.
        self._buffer = bytearray(b"\r\n")
        self._state = "preamble"

    @property
    def over(self) -> bool:
        """Whether the last part is whole."""
        return self._state == "over"

    def feed(self, data: bytes) -> Iterator[Part | bytes | PartEnd]:
        """Take the next piece; yield what is found in it, and read it to the end.

        Raises:
            MultipartError: It is not what its type says.
        """
        self._buffer += data
        while self._state != "over":
            if self._state == "head":
                part = self._head()
                if part is None:
                    return
                yield part
                continue
            inside = self._state == "body"
            content, more = self._cut()
            if inside and content:
                yield content
            if not more:
                return
            if inside:
                yield PartEnd()
        self._buffer.clear()  # what follows means nothing

    def _cut(self) -> tuple[bytes, bool]:
        """Return what is before the delimiter, and whether it was found."""
        found = self._delimiter.search(self._buffer)
        if found is None:
            safe = max(0, len(self._buffer) - self._keep)
            content = bytes(self._buffer[:safe])
            del self._buffer[:safe]
            return content, False
        content = bytes(self._buffer[: found.start()])
        self._state = "over" if found[1] == b"--" else "head"
        # The line end stays, so that a head without a line ends like any other.
        del self._buffer[: found.end() - (2 if self._state == "head" else 0)]
        return content, True

    def _head(self) -> Part | None:
        """Return the part that begins, once its head is whole."""
        end = self._buffer.find(b"\r\n\r\n", 0, _MAX_HEAD)
        if end < 0:
            if len(self._buffer) >= _MAX_HEAD:
                raise MultipartError("the head of a part is too long")
            return None
        try:
            head = self._buffer[:end].decode("utf-8")
        except UnicodeDecodeError as exc:
            raise MultipartError("the head of a part is not UTF-8") from exc
        del self._buffer[: end + 4]
        self._state = "body"
        for line in head.split("\r\n"):
            header, _, value = line.partition(":")
            if header.strip().lower() == "content-disposition":
                found = _parameters(value)
                return Part(found.get("name", ""), found.get("filename"))
        return Part("", None)


def _parameters(value: str) -> dict[str, str]:
    found = {}
    for name, text in _PARAMETER.findall(value):
        if text.startswith('"'):
            text = re.sub(r'\\(["\\])', r"\1", text[1:-1])  # noqa: PLW2901 - unquoted
        found[name.lower()] = text
    return found
