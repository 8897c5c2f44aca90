"""Waitress's request parser, with a short cut for the requests that most are.

Most header lines repeat from request to request. What a line means is remembered; a
request with anything unusual in it (folded lines, a transfer coding, `Expect`, another
version, any error) is left to waitress's own code as a whole.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from waitress.buffers import OverflowableBuffer
from waitress.parser import (
    HTTPRequestParser,
    ParsingError,
    crack_first_line,
    split_uri,
)
from waitress.receiver import ChunkedReceiver, FixedStreamReceiver
from waitress.rfc7230 import HEADER_FIELD_RE
from waitress.utilities import BadRequest, RequestEntityTooLarge

__all__ = ["Chunks", "Parser"]

# Longer lines are rare and would fill the memory.
_LONGEST_LINE = 1024
# Bytes that may stand between two chunks, and behind the last one.
_LONGEST_CHUNK_LINE = 4096
_LONGEST_TRAILER = 16384
_UNUSUAL = frozenset({"EXPECT", "TRANSFER_ENCODING"})


class Parser(HTTPRequestParser):  # type: ignore[misc] # waitress has no type hints
    """One request, from its first byte to its last."""

    arrived = 0.0
    body_rcv: Any
    headers: dict[str, str]

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head of the request.

        Raises:
            ParsingError: It is malformed.
        """
        if not self._parse_usual(header_plus):
            self.headers = {}
            try:
                super().parse_header(header_plus)
            except ValueError as error:  # which waitress lets pass
                raise ParsingError("Bad URI or Content-Length") from error
            self._check_framing()
            if self.chunked:
                self.body_rcv = Chunks(self.body_rcv.getbuf())
        if not (self.chunked or self.content_length):
            # There is nothing to go on with: waitress would wait for it for ever.
            self.expect_continue = False
        if self.content_length > self.adj.ppio_max_request_size:
            self.error = RequestEntityTooLarge("declared larger than the limit")
            self.completed = True  # what follows is left unread
            self.expect_continue = False

    def received(self, data: bytes) -> int:
        """Take bytes in; return how many were of this request."""
        consumed: int = super().received(data)
        body = self.body_rcv
        if self.chunked and body is not None and not self.completed:
            # Waitress puts each piece behind the last ones, which takes ever longer.
            line, trailer = len(body.control_line), len(body.trailer)
            if line > _LONGEST_CHUNK_LINE or trailer > _LONGEST_TRAILER:
                self.error = BadRequest("a chunk's line or the trailer is too long")
                self.completed = True
        return consumed

    def _check_framing(self) -> None:
        # RFC 9112, 6.1: what stands in front may have found another end.
        if self.chunked and "CONTENT_LENGTH" in self.headers:
            raise ParsingError("both Content-Length and Transfer-Encoding")
        if "TRANSFER_ENCODING" in self.headers:  # waitress has taken that of 1.1
            raise ParsingError("Transfer-Encoding needs HTTP/1.1")

    def _parse_usual(self, head: bytes) -> bool:
        first, *lines = head.split(b"\r\n")
        start = _known_start(first)
        headers = _parse_fields(lines)
        if start is None or headers is None:
            return False
        length = headers.get("CONTENT_LENGTH", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            return False
        self.headers = headers
        self.first_line = first
        self.command, self.request_uri, uri = start
        self.version = "1.1"
        self.proxy_scheme, self.proxy_netloc, self.path, self.query, self.fragment = uri
        self.url_scheme = self.adj.url_scheme
        self.connection_close = headers.get("CONNECTION", "").lower() == "close"
        self.content_length = int(length)
        if self.content_length > 0:
            buffer = OverflowableBuffer(self.adj.inbuf_overflow)
            self.body_rcv = FixedStreamReceiver(self.content_length, buffer)
        return True


class Chunks(ChunkedReceiver):  # type: ignore[misc] # waitress has no type hints
    """A body in chunks, in which a bare line feed ends no line.

    Waitress takes one before the CR LF for a part of the line's end. To a server in
    front it may be all of that, and the chunk begin two bytes earlier.
    """

    error: BadRequest | None

    def received(self, data: bytes) -> int:
        """Take bytes in; return how many were of this body."""
        taken = 0
        while taken < len(data) and not (self.completed or self.error):
            piece = data[taken:]
            if self.chunk_remainder:
                piece = piece[: self.chunk_remainder]
            elif not self.all_chunks_received:
                piece = piece[: piece.find(b"\n") + 1] or piece
                line = self.chunk_end + self.control_line + piece
                if line.endswith(b"\n") and not line.endswith(b"\r\n"):
                    self.error = BadRequest("a chunk's line ends with a bare LF")
                    break
            taken += super().received(piece)
        return len(data) if self.error else taken


def _parse_fields(lines: list[bytes]) -> dict[str, str] | None:
    """Return the headers as waitress names them; None if any is unusual."""
    headers: dict[str, str] = {}
    for line in lines:
        if not line:
            continue
        field = _known_field(line) if len(line) <= _LONGEST_LINE else _field(line)
        if field is None:
            return None
        name, value = field
        if not name:
            continue  # waitress skips names with an underscore
        if name in headers:
            headers[name] += f", {value}"
        else:
            headers[name] = value
    return headers


def _field(line: bytes) -> tuple[str, str] | None:
    if line[0] in b" \t" or b"\r" in line or b"\n" in line:
        return None
    match = HEADER_FIELD_RE.match(line)
    if match is None:
        return None
    raw, value = match.group("name", "value")
    if b"_" in raw:
        return "", ""
    name = raw.upper().replace(b"-", b"_").decode("latin-1")
    if name in _UNUSUAL:
        return None
    return name, value.strip(b" \t").decode("latin-1")


def _start(line: bytes) -> tuple[str, str, tuple[Any, ...]] | None:
    if len(line) > _LONGEST_LINE or line != line.rstrip():
        return None
    if b"\r" in line or b"\n" in line:
        return None
    try:
        command, uri, version = crack_first_line(line)
        if version != b"1.1":
            return None
        return command.decode("latin-1"), uri.decode("latin-1"), split_uri(uri)
    except (ParsingError, ValueError):
        return None


_known_field = lru_cache(maxsize=1024)(_field)
_known_start = lru_cache(maxsize=256)(_start)
