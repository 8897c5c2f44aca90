"""Files by the digest of their content: equal ones are kept once, and never change."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final

from ppio_agent._util.ids import new_id

__all__ = ["BlobStore"]

_CHUNK: Final = 1 << 20
# As in linux/fs.h; to other systems it says nothing.
_FICLONE: Final = 0x40049409


class BlobStore:
    """Blobs under `root/ab/abcd…`, by SHA-256.

    A blob is written under a temporary name, synced and renamed, so one that has its
    name is whole, whenever the process or the machine stops.

    Thread safety: thread-safe; see `keep_only`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        # Guards the two below, and makes one step of looking whether a file is held and
        # removing it.
        self._lock = threading.Lock()
        self._holders = 0
        self._held: set[str] = set()  # names of files
        # Whether copies may share blocks with blobs, as on Btrfs and XFS.
        self._clones = True
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep what is added in the block from `keep_only`, until the block ends.

        What others hold as it begins, or meanwhile, is kept for as long, too.
        """
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders:
                    self._held.clear()

    def add(self, source: BinaryIO) -> tuple[str, int]:
        """Keep what can be read from `source`; return its digest and size.

        Args:
            source: A binary file at its beginning; seekable.
        """
        digest, size = _measure(source)
        if self.hold(digest):
            return digest, size
        source.seek(0)
        temporary = self._root / f"new-{new_id()}"
        self._hold(temporary.name)
        try:
            with temporary.open("xb") as out:
                digest, size = _measure(source, out)
                out.flush()
                os.fsync(out.fileno())
            temporary.chmod(0o400)
            self._hold(digest)  # it may be another now
            path = self._path(digest)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return digest, size

    def add_bytes(self, data: bytes) -> str:
        """Keep `data`; return its digest."""
        return self.add(BytesIO(data))[0]

    def read(self, digest: str) -> bytes:
        """Return the content of a blob."""
        return self._path(digest).read_bytes()

    def copy(self, digest: str, to: Path, *, executable: bool = False) -> None:
        """Write a copy of a blob; its folder must exist."""
        # Never a hard link: whoever has the copy may write to it.
        source = self._path(digest)
        if not self._clone(source, to):
            shutil.copyfile(source, to)
        to.chmod(0o755 if executable else 0o644)

    def _clone(self, source: Path, to: Path) -> bool:
        """Let a copy share its blocks with a blob until it is written to.

        Returns:
            Whether it does; once the file system cannot, no more is tried.
        """
        if not self._clones:
            return False
        with source.open("rb") as blob, to.open("wb") as copy:
            try:
                fcntl.ioctl(copy, _FICLONE, blob.fileno())
            except OSError:
                self._clones = False
                return False
        return True

    def keep_only(self, digests: Set[str]) -> int:
        """Remove all other blobs and leftovers, save those held; return how many.

        Args:
            digests: What is referred to. While others use the store it is looked up,
                and this called, in one block of `holding`.
        """
        removed = 0
        for entry in self._root.iterdir():
            found = list(entry.iterdir()) if entry.is_dir() else [entry]
            for path in found:
                if path.name in digests:
                    continue
                # One that is gone was a write that is just done.
                with self._lock, suppress(FileNotFoundError):
                    if path.name not in self._held:
                        path.unlink()
                        removed += 1
        return removed

    def hold(self, digest: str) -> bool:
        """Keep a blob, as if it were added; return whether it is there."""
        self._hold(digest)
        return self._path(digest).exists()

    def _hold(self, name: str) -> None:
        with self._lock:
            if self._holders:
                self._held.add(name)

    def _path(self, digest: str) -> Path:
        return self._root / digest[:2] / digest


def _measure(source: BinaryIO, out: BinaryIO | None = None) -> tuple[str, int]:
    """Return digest and size of what is read, written to `out` on the way."""
    hasher = sha256()
    size = 0
    while chunk := source.read(_CHUNK):
        hasher.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    return hasher.hexdigest(), size
