"""One body that becomes files: unpacked, cut into parts and written as it comes.

Nothing is held but the piece at hand. A file is written under another name beside its
own, which it gets when it is whole; until then whoever reads it finds what was there.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from .multipart import MultipartError, MultipartReader, Part, PartEnd, boundary_of
from .roots import Place, Roots
from .rpc import RpcError
from .slices import Steps
from .walk import find

__all__ = ["MAX_UPLOAD", "Upload"]

MAX_UPLOAD = 1024 * 1024 * 1024
"""Largest body taken, unpacked."""

_MAX_PARTS = 1000
_PIECE = 256 * 1024


class Upload:
    """Takes the body of one `POST /files`.

    Args:
        roots: Where files may be.
        path: Where the file is to be; empty if each part says so.
        content_type: `application/octet-stream`, or `multipart/form-data`, of which the
            parts named `file` are taken.
        encoding: `gzip`, or none.

    Raises:
        RpcError: It is of another kind, or a path is not allowed.
        OSError: A file cannot be written.

    Thread safety: one thread at a time.
    """

    def __init__(
        self, roots: Roots, path: str, *, content_type: str, encoding: str
    ) -> None:
        self._roots = roots
        self._path = path
        self._file: _File | None = None
        self._written: list[dict[str, Any]] = []
        self._taken = 0
        self._parts = 0
        self._unpack = _unpacker(encoding)
        self._reader: MultipartReader | None = None
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            with _as_rpc():
                self._reader = MultipartReader(boundary_of(content_type))
        elif kind != "application/octet-stream":
            raise _bad("expected application/octet-stream or multipart/form-data")
        elif not path:
            raise _bad("the path of the file is missing")
        else:
            self._file = _File(roots, roots.locate(path))

    def feed(self, data: bytes) -> Steps[None]:
        """Take the next piece of the body, which unpacked may be large.

        Raises:
            RpcError: As the class does.
            OSError: As the class does; `EFBIG` if it is larger than `MAX_UPLOAD`.
        """
        for piece in self._unpacked(data):
            self._taken += len(piece)
            if self._taken > MAX_UPLOAD:
                raise OSError(errno.EFBIG, f"more than {MAX_UPLOAD} bytes")
            if self._reader is not None:
                self._take_parts(self._reader, piece)
            elif self._file is not None:
                self._file.write(piece)
            yield

    def finish(self) -> list[dict[str, Any]]:
        """Return what was written, now that the body is whole.

        Raises:
            RpcError: It is not whole.
            OSError: As the class does.
        """
        unpack = self._unpack
        if unpack is not None and (not unpack.eof or unpack.unused_data):
            raise _bad("the packed body is cut, or something follows it")
        if self._reader is None:
            self._end_file()
        elif not self._reader.over:
            raise _bad("the body ends within a part")
        elif not self._written:
            raise _bad("no part of the body is named file")
        return self._written

    def abandon(self) -> None:
        """Leave nothing of a file that is not whole. Idempotent."""
        if self._file is not None:
            self._file.abandon()
            self._file = None

    def _unpacked(self, data: bytes) -> Iterator[bytes]:
        """Yield what a piece of the body is unpacked, a bounded piece at a time."""
        if self._unpack is None:
            yield data
            return
        piece = b"more"
        while data or len(piece) >= _PIECE:
            if self._unpack.eof and data:
                raise _bad("something follows the packed body")
            try:
                piece = self._unpack.decompress(data, _PIECE)
            except zlib.error as exc:
                raise _bad("the body is not gzip") from exc
            yield piece
            data = self._unpack.unconsumed_tail

    def _take_parts(self, reader: MultipartReader, data: bytes) -> None:
        with _as_rpc():
            for found in reader.feed(data):
                if isinstance(found, Part):
                    self._begin_part(found)
                elif isinstance(found, PartEnd):
                    self._end_file()
                elif self._file is not None:
                    self._file.write(found)

    def _begin_part(self, part: Part) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _bad(f"more than {_MAX_PARTS} parts")
        if part.name != "file":
            return
        place = self._roots.locate(self._path or part.filename or "")
        if any(place.path == written["path"] for written in self._written):
            raise _bad(f"two parts are for {place.path}")
        self._file = _File(self._roots, place)

    def _end_file(self) -> None:
        if self._file is not None:
            self._written.append(self._file.keep())
            self._file = None


class _File:
    """A file that is being written."""

    def __init__(self, roots: Roots, place: Place) -> None:
        self._place = place
        self._fd = -1
        self._spot = find(roots, place, follow=True, make=True)
        self._temporary = f".upload-{os.urandom(8).hex()}"
        try:
            mode = self._mode_now()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._fd = os.open(self._temporary, flags, dir_fd=self._spot.fd, mode=0o666)
            if mode is not None:
                os.fchmod(self._fd, mode)
        except BaseException:
            self.abandon()
            raise

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(self._fd, left) :]

    def keep(self) -> dict[str, Any]:
        try:
            self._mode_now()
            os.rename(
                self._temporary,
                self._spot.name,
                src_dir_fd=self._spot.fd,
                dst_dir_fd=self._spot.fd,
            )
        finally:
            self.abandon()
        path = self._place.path
        return {"path": path, "name": self._place.parts[-1], "type": "file"}

    def abandon(self) -> None:
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._spot.fd)
            os.close(self._fd)
            self._fd = -1
        self._spot.close()

    def _mode_now(self) -> int | None:
        """Return the mode of the file that is replaced, None if there is none."""
        try:
            mode = self._spot.stat().st_mode
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no file, but something else"
            raise _bad(f"{self._place.path} is {kind}")
        return stat.S_IMODE(mode)


@contextmanager
def _as_rpc() -> Iterator[None]:
    """Tell callers what is wrong with the form of their body."""
    try:
        yield
    except MultipartError as exc:
        raise _bad(str(exc)) from exc


def _bad(message: str) -> RpcError:
    return RpcError("invalid_argument", message)


def _unpacker(encoding: str) -> Any:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name != "gzip":
        raise _bad(f"the encoding {name} is not supported")
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
