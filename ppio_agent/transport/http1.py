"""HTTP/1.1 from the client's side, without I/O: heads to bytes, bytes to heads, bodies.

An exchange of a call is a few dozen lines once the framing is apart from the socket.
It is our own because of what the general clients cost a call, in time and in certainty:
they read an abort inside the header block as an answer, and deliver a stream chunk by
chunk. What is not plain HTTP/1.1 is refused, never guessed.

Source: RFC 9112.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Protocol

from attrs import frozen

__all__ = [
    "MAX_HEAD_BYTES",
    "BodyReader",
    "FramingError",
    "Head",
    "Headers",
    "SizedBody",
    "TruncatedError",
    "body_reader",
    "encode_head",
    "find_head",
    "parse_head",
]

MAX_HEAD_BYTES = 64 * 1024
_MAX_CHUNK_LINE = 4096

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(r"\n[ \t]+")
_STATUS_LINE = re.compile(r"HTTP/1\.([01]) ([1-9][0-9]{2})(?: .*)?", re.ASCII)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_TARGET = re.compile(r"[\x21-\x7e]+")
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)


class FramingError(Exception):
    """The peer does not speak HTTP/1.1 as agreed, or a head cannot be sent."""


class TruncatedError(FramingError):
    """The connection ended inside an answer."""


class Headers(Mapping[str, str]):
    """The headers of an answer, read-only; names in any case.

    Several of one name are joined by ``", "``.

    Thread safety: immutable.
    """

    __slots__ = ("_items",)

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        items: dict[str, tuple[str, str]] = {}
        for name, value in pairs:
            key = name.lower()
            if key in items:
                value = f"{items[key][1]}, {value}"  # noqa: PLW2901 - joined in place
            items[key] = (name, value)
        self._items = items

    def __getitem__(self, name: str) -> str:
        return self._items[name.lower()][1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items.values())

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._items

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        """Return the value of `name`, or `default`; written for the hot path."""
        item = self._items.get(name.lower())
        return default if item is None else item[1]


@frozen(kw_only=True)
class Head:
    """Status line and headers of an answer.

    Attributes:
        minor: Minor version, 0 or 1.
        status: HTTP status.
        headers: The headers.
    """

    minor: int
    status: int
    headers: Headers

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection may serve another request afterwards."""
        said = (self.headers.get("connection") or "").lower()
        if self.minor == 0:
            return "keep-alive" in said
        return "close" not in said


@lru_cache(maxsize=512)
def _valid_name(name: str) -> bool:
    return _TOKEN.fullmatch(name) is not None


def encode_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """Return the bytes of a request's head, blank line included.

    Raises:
        FramingError: A name, a value or the target cannot be sent as it is; the
            message names it, without its value.
    """
    if not _valid_name(method) or _TARGET.fullmatch(target) is None:
        raise FramingError("the method or the URL has characters that cannot be sent")
    lines = [f"{method} {target} HTTP/1.1"]
    for name, value in headers:
        if not _valid_name(name):
            raise FramingError(f"{name!r} is no name of a header")
        if "\n" in value or "\r" in value or "\0" in value:
            raise FramingError(f"the header {name} has a line break in it")
        lines.append(f"{name}: {value}")
    lines.append("\r\n")
    try:
        return "\r\n".join(lines).encode("latin-1")
    except UnicodeEncodeError:
        raise FramingError(
            "a header has characters outside Latin-1; percent-encode them"
        ) from None


def find_head(data: bytearray, start: int = 0) -> int:
    """Return where the body starts, or -1 if the head is not complete yet.

    Args:
        data: What came so far.
        start: Up to where it was searched before.

    Raises:
        FramingError: The head is larger than 64 KiB.
    """
    end = _HEAD_END.search(data, max(0, start - 3))
    size = len(data) if end is None else end.end()
    if size > MAX_HEAD_BYTES:
        raise FramingError("the answer's head is larger than 64 KiB")
    return -1 if end is None else size


def parse_head(data: bytes | bytearray) -> Head:
    """Return what the bytes up to the body say.

    Raises:
        FramingError: They are no head of an HTTP/1 answer.
    """
    text = data.decode("latin-1").rstrip("\r\n").replace("\r\n", "\n")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    first, *lines = text.split("\n")
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        raise FramingError("the answer does not start with an HTTP/1 status line")
    return Head(
        minor=int(status[1]), status=int(status[2]), headers=Headers(_fields(lines))
    )


def _fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _valid_name(name) or "\r" in value or "\0" in value:
            raise FramingError("a line of the answer's head is no header")
        yield name, value.strip(" \t")


class BodyReader(Protocol):
    """Takes the bytes after the head and gives those of the body.

    Attributes:
        done: Whether the body is complete.
        excess: Whether bytes came after its end; such a connection is not kept.
    """

    done: bool
    excess: bool

    def feed(self, data: bytes) -> bytes:
        """Return the part of the body in `data`, which may be none of it."""

    def end(self) -> None:
        """Say that the peer has closed; TruncatedError if the body is not complete."""


class SizedBody:
    """A body of known length; 0 where there is none."""

    __slots__ = ("_left", "done", "excess")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.excess = False

    def feed(self, data: bytes) -> bytes:
        """Return `data` up to the end of the body."""
        self.excess = self.excess or len(data) > self._left
        data = data[: self._left]
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def end(self) -> None:
        """Raise unless the body is complete."""
        if not self.done:
            raise TruncatedError(f"the answer ended {self._left} bytes too early")


class _UntilClose:
    """A body that ends with the connection."""

    __slots__ = ("done", "excess")

    def __init__(self) -> None:
        self.done = False
        self.excess = False

    def feed(self, data: bytes) -> bytes:
        return data

    def end(self) -> None:
        self.done = True


class _Chunked:
    """A body in chunks. All chunks of one read are given as one piece."""

    __slots__ = ("_ending", "_left", "_rest", "_trailer", "done", "excess")

    def __init__(self) -> None:
        self._rest = b""  # of a line that is not complete
        self._left = 0  # bytes of the present chunk
        self._ending = False  # whether the line break after a chunk is awaited
        self._trailer: int | None = None  # its size, once the last chunk was seen
        self.done = False
        self.excess = False

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        pieces = []
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            end = data.find(b"\n", at)
            if end < 0:
                self._rest = data[at:]
                self._limit(len(self._rest))
                break
            self._line(data[at:end].removesuffix(b"\r"))
            at = end + 1
        else:
            self.excess = at < len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, line: bytes) -> None:
        if self._ending:
            if line:
                raise FramingError("a chunk of the answer is longer than it says")
            self._ending = False
        elif self._trailer is None:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise FramingError("the size of a chunk of the answer is no number")
            self._left = int(size[1], 16)
            self._ending = self._left > 0
            self._trailer = None if self._left else 0
        elif line:
            self._trailer += len(line)
            self._limit(len(line))
        else:
            self.done = True

    def _limit(self, line: int) -> None:
        if line > _MAX_CHUNK_LINE or (self._trailer or 0) > MAX_HEAD_BYTES:
            raise FramingError("a line between the chunks of the answer is too long")

    def end(self) -> None:
        # Some peers leave out the blank line after the last chunk.
        if self._trailer is None:
            raise TruncatedError("the answer ended inside its chunks")
        self.done = True


def body_reader(method: str, head: Head) -> BodyReader:
    """Return what reads the body of an answer.

    Raises:
        FramingError: Where the body ends cannot be said for sure.
    """
    headers, status = head.headers, head.status
    if method == "HEAD" or status < 200 or status in {204, 304}:
        return SizedBody(0)
    coding = headers.get("transfer-encoding")
    if coding is not None:
        if coding.strip().lower() != "chunked":
            raise FramingError("the answer has a transfer encoding that is not chunked")
        if "content-length" in headers:
            raise FramingError("the answer has both a length and chunks")
        return _Chunked()
    length = headers.get("content-length")
    if length is None:
        return _UntilClose()
    lengths = {text.strip() for text in length.split(",")}
    if len(lengths) > 1 or _LENGTH.fullmatch(next(iter(lengths))) is None:
        raise FramingError("the answer's length is not one number")
    return SizedBody(int(lengths.pop()))
