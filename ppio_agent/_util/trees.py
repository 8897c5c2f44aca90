"""Go through whole trees by handles: of any depth, and never through a link.

However deep a tree is, few descriptors are open at a time, no call is nested, and no
path is longer than one name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator
from contextlib import suppress

__all__ = ["OPEN_FOLDER", "Climber", "let_in", "removal"]

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a folder to list it, and no link to one."""


class Climber:
    """A handle that goes down into folders, and up again the way it came.

    Args:
        folder: Handle of what holds the first folder; it stays open while this is used.
        name: Name of the first folder there.
        force: Whether to open the modes of folders to their owner on the way.

    Attributes:
        fd: The folder where it is.
    """

    def __init__(self, folder: int, name: str, *, force: bool = False) -> None:
        self._top = folder
        self._force = force
        # Names of the folders it went into, and what held each.
        self._way: list[tuple[str, tuple[int, int]]] = []
        self.fd = -1
        self._enter(name, folder)

    def down(self, name: str) -> None:
        """Go into a folder.

        Raises:
            OSError: There is none that may be entered.
        """
        self._enter(name, self.fd)

    def up(self) -> tuple[int, str]:
        """Leave the folder; return a handle of what holds it, and its name there.

        Raises:
            OSError: Somebody has moved it away meanwhile.
        """
        name, identity = self._way.pop()
        above = os.open("..", OPEN_FOLDER, dir_fd=self.fd) if self._way else -1
        self._replace(above)
        if above < 0:
            return self._top, name
        if _identity(above) != identity:
            raise OSError(f"{name} was moved away")
        return above, name

    @property
    def inside(self) -> bool:
        """Whether it has not left the first folder yet."""
        return bool(self._way)

    def close(self) -> None:
        """Give the handle back. Idempotent."""
        self._replace(-1)

    def _enter(self, name: str, folder: int) -> None:
        fd = let_in(name, folder) if self._force else _open(name, folder)
        self._way.append((name, _identity(folder)))
        self._replace(fd)

    def _replace(self, fd: int) -> None:
        old, self.fd = self.fd, fd
        if old >= 0:
            os.close(old)


def removal(folder: int, name: str) -> Generator[None, None, None]:
    """Remove a file, or a folder from its leaves on; each step is an entry.

    Folders that are closed to their owner are opened first.

    Args:
        folder: Handle of what holds it.
        name: Its name there.

    Raises:
        OSError: It is not there, or something in it cannot be removed.
    """
    status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    yield
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=folder)
        return
    climber = Climber(folder, name, force=True)
    try:
        while climber.inside:
            yield  # for a folder that is empty has no step of its own
            inner = yield from _remove_files(climber.fd)
            # Somebody else may be at it, too.
            with suppress(FileNotFoundError):
                if inner is not None:
                    climber.down(inner)
                else:
                    above, emptied = climber.up()
                    os.rmdir(emptied, dir_fd=above)
    finally:
        climber.close()


def _remove_files(folder: int) -> Generator[None, None, str | None]:
    """Remove files up to the first folder, whose name is returned; None: all."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield
            if entry.is_dir(follow_symlinks=False):
                return entry.name
            with suppress(FileNotFoundError):
                os.unlink(entry.name, dir_fd=folder)
    return None


def let_in(name: str, folder: int) -> int:
    """Open a folder, and first its modes to its owner if need be.

    Args:
        name: Its name.
        folder: Handle of what holds it.

    Raises:
        OSError: There is none, or it is somebody else's.
    """
    try:
        fd = _open(name, folder)
    except PermissionError:
        _open_modes(name, folder)
        fd = _open(name, folder)
    with suppress(PermissionError):  # somebody else's: what it allows may do
        if os.fstat(fd).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(fd, stat.S_IRWXU)
    return fd


def _open(name: str, folder: int) -> int:
    return os.open(name, OPEN_FOLDER, dir_fd=folder)


def _open_modes(name: str, folder: int) -> None:
    if os.chmod in os.supports_follow_symlinks:
        os.chmod(name, stat.S_IRWXU, dir_fd=folder, follow_symlinks=False)
        return
    # Linux: a handle that needs no right to the folder, and is no link's.
    fd = os.open(name, OPEN_FOLDER | os.O_PATH, dir_fd=folder)
    try:
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
    finally:
        os.close(fd)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
