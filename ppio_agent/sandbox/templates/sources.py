"""Where a template comes from: a folder, or an uploaded archive of one."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final, Protocol

from attrs import field, frozen

from ppio_agent.exceptions import ValidationError

from .manifest import MANIFEST_NAME, manifest_error
from .snapshot import MAX_FILES, Candidate, Ignore

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["ArchiveSource", "FolderSource", "Source"]

_DOCKERIGNORE: Final = ".dockerignore"
_MAX_SMALL_FILE: Final = 1024 * 1024
_MAX_MEMBERS: Final = 4 * MAX_FILES
_CHUNK: Final = 1 << 20
# Of one member, and of all: what comes before its content, long names included.
_MAX_HEADER: Final = 64 << 10
_MAX_HEADERS: Final = 128 << 20
_MAX_NAMES: Final = 8 << 20
_DIGITS: Final = re.compile(rb"[0-9]{256}")  # longer than a name may be
_NO_ARCHIVE: Final = "the body is not a gzipped tar archive"


class Source(Protocol):
    """Something that holds the files of a template."""

    @property
    def manifest_path(self) -> str:
        """Where the manifest is in it."""

    def manifest_text(self) -> str:
        """Return the manifest.

        Raises:
            TemplateManifestError: There is none, or it is not text.
        """

    def ignore(self) -> Ignore:
        """Return what of it is left out."""

    def candidates(self) -> Iterator[Candidate]:
        """Yield everything in it, folders before what they hold."""


@frozen
class FolderSource:
    """A folder with a manifest.

    Args:
        folder: The folder.
        manifest: The manifest, a file in it.
    """

    folder: Path
    manifest: Path

    @classmethod
    def of(cls, path: Path) -> FolderSource:
        """Return the source that a path stands for: a folder, or its manifest."""
        if path.is_dir():
            return cls(path, path / MANIFEST_NAME)
        return cls(path.parent, path)

    @property
    def manifest_path(self) -> str:
        """Where the manifest is in it."""
        return self.manifest.name

    def manifest_text(self) -> str:
        """Return the manifest; see `Source.manifest_text`."""
        where = str(self.manifest)
        try:
            # Opening a pipe would wait for whoever writes to it.
            if not stat.S_ISREG(self.manifest.stat().st_mode):
                raise manifest_error([(where, 0, "is not a regular file")])
            return _decoded(self.manifest.read_bytes(), where)
        except OSError as error:
            reason = error.strerror or "cannot be read"
            raise manifest_error([(where, 0, reason.lower())]) from error

    def ignore(self) -> Ignore:
        """Return what of it is left out."""
        path = self.folder / _DOCKERIGNORE
        text = path.read_bytes()[:_MAX_SMALL_FILE] if path.is_file() else b""
        return Ignore(text.decode("utf-8", "replace"))

    def candidates(self) -> Iterator[Candidate]:
        """Yield everything in it, folders before what they hold."""
        ignore = self.ignore()
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            with os.scandir(self.folder / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
            for entry in found:
                path = f"{prefix}{entry.name}"
                candidate = _of_entry(entry, path)
                if candidate.kind != "folder":
                    yield candidate
                elif not ignore.prunes(path):
                    yield candidate
                    waiting.append(f"{path}/")


def _of_entry(entry: os.DirEntry[str], path: str) -> Candidate:
    if entry.is_symlink():
        return Candidate(path=path, kind="link", link=os.readlink(entry.path))
    if entry.is_dir(follow_symlinks=False):
        return Candidate(path=path, kind="folder")
    if not entry.is_file(follow_symlinks=False):
        return Candidate(path=path, kind="other")
    status = entry.stat(follow_symlinks=False)
    return Candidate(
        path=path,
        kind="file",
        size=status.st_size,
        executable=bool(status.st_mode & stat.S_IXUSR),
        open=partial(_open_file, entry.path),
    )


def _open_file(path: str) -> BinaryIO:
    return Path(path).open("rb")


@frozen
class ArchiveSource:
    """An unpacked tar archive whose members were all looked at without fault."""

    _found: tuple[Candidate, ...] = field(repr=False)

    @property
    def manifest_path(self) -> str:
        """Where the manifest is in it."""
        return MANIFEST_NAME

    @classmethod
    @contextmanager
    def open(
        cls, archive: IO[bytes], *, max_bytes: int, folder: Path
    ) -> Iterator[ArchiveSource]:
        """Open a gzipped tar archive for reading.

        Args:
            archive: The file at its beginning; read once.
            max_bytes: Most its members may hold together.
            folder: Where it is unpacked, into a file without a name.

        Raises:
            ValidationError: It is not such an archive, or too large.
        """
        # Unpacked once, so that its files may be read in any order.
        with tempfile.TemporaryFile(dir=folder) as unpacked:
            _unpack(archive, unpacked, max_bytes)
            yield cls(_members(unpacked, max_bytes))

    def manifest_text(self) -> str:
        """Return the manifest; see `Source.manifest_text`."""
        data = self._small_file(MANIFEST_NAME)
        if data is None:
            raise manifest_error([(MANIFEST_NAME, 0, "is not in the archive")])
        return _decoded(data, MANIFEST_NAME)

    def ignore(self) -> Ignore:
        """Return what of it is left out."""
        data = self._small_file(_DOCKERIGNORE) or b""
        return Ignore(data.decode("utf-8", "replace"))

    def candidates(self) -> Iterator[Candidate]:
        """Yield everything in it, in its order."""
        return iter(self._found)

    def _small_file(self, name: str) -> bytes | None:
        for found in self._found:
            if found.path == name and found.open is not None:
                with found.open() as content:
                    return content.read(_MAX_SMALL_FILE)
        return None


def _unpack(archive: IO[bytes], unpacked: IO[bytes], max_bytes: int) -> None:
    size = 0
    packed = gzip.GzipFile(fileobj=archive)
    while True:
        try:
            chunk = packed.read(_CHUNK)
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValidationError(_NO_ARCHIVE) from error
        size += len(chunk)
        if size > max_bytes + _MAX_HEADERS:
            raise _too_large(max_bytes)
        if not chunk:
            return
        unpacked.write(chunk)


class _Headers:
    """What `tarfile` reads of an archive to learn what is in it, within limits.

    It takes the length of a long name or of a pax header from the archive, and reads
    that much at once.
    """

    def __init__(self, unpacked: IO[bytes]) -> None:
        self._file = unpacked
        self._left = _MAX_HEADERS
        self._left_of_member = _MAX_HEADER
        self.seek, self.tell = unpacked.seek, unpacked.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        self._left_of_member -= size
        if size < 0 or self._left < 0 or self._left_of_member < 0:
            raise ValidationError(
                f"the archive has a header of more than {_MAX_HEADER >> 10} KiB,"
                f" or headers of more than {_MAX_HEADERS >> 20} MiB"
            )
        data = self._file.read(size)
        # The expressions of older releases take time with the square of such a run.
        if _DIGITS.search(data):
            raise ValidationError("the archive has a header with an endless number")
        return data

    def next_member(self) -> None:
        self._left_of_member = _MAX_HEADER


def _members(unpacked: IO[bytes], max_bytes: int) -> tuple[Candidate, ...]:
    unpacked.seek(0)
    headers = _Headers(unpacked)
    found: list[Candidate] = []
    size = names = 0
    try:
        tar = tarfile.TarFile(fileobj=headers)  # type: ignore[arg-type]  # all it uses
        while (member := tar.next()) is not None:
            # What is not looked at is not kept either, whatever there is of it.
            tar.members.clear()  # type: ignore[attr-defined]  # unknown to typeshed
            tar.pax_headers = {}
            headers.next_member()
            size += _size_of(member)
            names += len(member.name) + len(member.linkname)
            if size > max_bytes or len(found) >= _MAX_MEMBERS or names > _MAX_NAMES:
                raise _too_large(max_bytes)
            found.append(_candidate(member, unpacked))
    except ValidationError:
        raise
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise ValidationError(_NO_ARCHIVE) from error
    return tuple(c for c in found if c.path not in ("", "."))


def _too_large(max_bytes: int) -> ValidationError:
    return ValidationError(
        f"the archive holds more than {max_bytes >> 20} MiB, {_MAX_MEMBERS} entries"
        f" or {_MAX_NAMES >> 20} MiB of names"
    )


def _size_of(member: tarfile.TarInfo) -> int:
    if member.issparse():
        raise ValidationError("the archive has sparse members: pack it without them")
    if member.size < 0:
        raise ValidationError(_NO_ARCHIVE)
    return member.size


def _candidate(member: tarfile.TarInfo, unpacked: IO[bytes]) -> Candidate:
    path = member.name.removeprefix("./").rstrip("/")
    if member.isdir():
        return Candidate(path=path, kind="folder")
    if member.issym():
        return Candidate(path=path, kind="link", link=member.linkname)
    if not member.isreg():
        return Candidate(path=path, kind="other")
    return Candidate(
        path=path,
        kind="file",
        size=member.size,
        executable=bool(member.mode & stat.S_IXUSR),
        open=partial(_open_part, unpacked, member.offset_data, member.size),
    )


def _open_part(unpacked: IO[bytes], start: int, size: int) -> BinaryIO:
    return io.BufferedReader(_Part(unpacked, start, size))


class _Part(io.RawIOBase):
    """Part of a file, as a file."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        self._file.seek(self._start + self._at)
        data = self._file.read(min(len(view), max(self._size - self._at, 0)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise manifest_error([(name, line, "is not UTF-8")]) from error
