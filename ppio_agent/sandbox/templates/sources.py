"""Where a template comes from: a folder, or an uploaded archive of one."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, Final, Protocol

from attrs import field, frozen

from ppio_agent.exceptions import ValidationError

from .manifest import MANIFEST_NAME, manifest_error
from .snapshot import MAX_FILES, Candidate, Ignore

__all__ = ["ArchiveSource", "FolderSource", "Source"]

_DOCKERIGNORE: Final = ".dockerignore"
_MAX_SMALL_FILE: Final = 1024 * 1024
_MAX_MEMBERS: Final = 4 * MAX_FILES


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
    """An open tar archive whose members were read without fault."""

    _tar: tarfile.TarFile
    _members: tuple[tarfile.TarInfo, ...] = field(repr=False)

    @property
    def manifest_path(self) -> str:
        """Where the manifest is in it."""
        return MANIFEST_NAME

    @classmethod
    @contextmanager
    def open(cls, archive: IO[bytes], *, max_bytes: int) -> Iterator[ArchiveSource]:
        """Open a gzipped tar archive for reading.

        Args:
            archive: The file; seekable.
            max_bytes: Most its members may hold together.

        Raises:
            ValidationError: It is not such an archive, or too large.
        """
        try:
            with tarfile.open(fileobj=archive, mode="r:gz") as tar:
                yield cls(tar, tuple(_members(tar, max_bytes)))
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise ValidationError("the body is not a gzipped tar archive") from error

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
        for member in self._members:
            path = member.name.removeprefix("./").rstrip("/")
            if path not in ("", "."):
                yield self._candidate(member, path)

    def _candidate(self, member: tarfile.TarInfo, path: str) -> Candidate:
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
            open=partial(self._open, member),
        )

    def _open(self, member: tarfile.TarInfo) -> BinaryIO:
        found = self._tar.extractfile(member)
        assert found is not None  # noqa: S101 - only regular members get here
        return found  # type: ignore[return-value]  # typeshed: IO[bytes]

    def _small_file(self, name: str) -> bytes | None:
        for member in self._members:
            if member.name.removeprefix("./") == name and member.isreg():
                with self._open(member) as found:
                    return found.read(_MAX_SMALL_FILE)
        return None


def _members(tar: tarfile.TarFile, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    size = 0
    for count, member in enumerate(tar, start=1):
        size += member.size
        if count > _MAX_MEMBERS or size > max_bytes:
            raise ValidationError(
                f"the archive holds more than {max_bytes >> 20} MiB"
                f" or {_MAX_MEMBERS} entries"
            )
        yield member


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise manifest_error([(name, line, "is not UTF-8")]) from error
