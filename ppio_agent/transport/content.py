"""Decompression in bounded pieces, so that a small answer cannot fill the memory."""

from __future__ import annotations

import zlib

from .http1 import FramingError

__all__ = ["ACCEPT_ENCODING", "Inflater", "inflater_for"]

ACCEPT_ENCODING = "gzip, deflate"

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


class Inflater:
    """Takes compressed bytes and gives plain ones, at most so many at a time.

    Args:
        gzip: Whether it is gzip, else "deflate".

    Attributes:
        pending: Whether more can be had without feeding more.
    """

    __slots__ = ("_first", "_gzip", "_input", "_zlib", "pending")

    def __init__(self, *, gzip: bool) -> None:
        self._gzip = gzip
        self._zlib = zlib.decompressobj(_GZIP if gzip else _ZLIB)
        # What was fed before anything came out; None after that.
        self._first: bytes | None = b""
        self._input = b""
        self.pending = False

    def feed(self, data: bytes, limit: int) -> bytes:
        """Return at most `limit` bytes; feed nothing while there are `pending` ones.

        Raises:
            FramingError: The bytes are not what the header says.
        """
        data = self._input + data
        if self._zlib.eof and data and self._gzip:  # a further member of the file
            self._zlib = zlib.decompressobj(_GZIP)
        try:
            found = self._inflate(data, limit)
        except zlib.error:
            raise FramingError("the answer cannot be decompressed") from None
        self._input = self._zlib.unconsumed_tail or self._zlib.unused_data
        self.pending = bool(self._input) or len(found) == limit
        return found

    def _inflate(self, data: bytes, limit: int) -> bytes:
        if self._first is None:
            return self._zlib.decompress(data, limit)
        first = self._first + data
        try:
            found = self._zlib.decompress(data, limit)
        except zlib.error:
            if self._gzip:
                raise
            # "deflate" means zlib, but some peers send it without zlib's own head.
            self._zlib = zlib.decompressobj(_RAW)
            found = self._zlib.decompress(first, limit)
        self._first = None if found else first
        return found

    def end(self) -> None:
        """Say that all was fed.

        Raises:
            FramingError: The compressed data is not complete.
        """
        if not self._zlib.eof and self._first != b"":
            raise FramingError("the answer ended inside its compressed data")


def inflater_for(coding: str | None) -> Inflater | None:
    """Return what undoes a `Content-Encoding`; None if there is nothing to undo.

    Raises:
        FramingError: It is one that was not asked for.
    """
    word = (coding or "identity").strip().lower()
    if word == "identity":
        return None
    if word in {"gzip", "x-gzip", "deflate"}:
        return Inflater(gzip=word != "deflate")
    raise FramingError(f"the answer has a content encoding nobody asked for: {word!r}")
