"""Find a file below a root, by handles, so that nobody can lead us out meanwhile.

Each folder on the way is opened below the one before it, and never through a link:
links are read and followed here, as long as they stay inside. `..` in a link goes back
to the handle we came by. So what was looked at is what is used, whatever programs in
the sandbox rename or link at the same time.
"""

from __future__ import annotations

import errno
import os
import posixpath
from contextlib import suppress

from ppio_agent._util.closing import Closing

from .roots import Place, Roots
from .rpc import RpcError

__all__ = ["Spot", "find"]

_MAX_LINKS = 40
# A handle by which one may go on, but not read: needs no right to list the folder.
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW


class Spot(Closing):
    """The folder that holds a file, by handle, and the name of the file in it.

    Close it, or use it as a context manager.

    Attributes:
        fd: The folder.
        name: The name; `.` if the folder itself was asked for. It is not a link if
            links were to be followed, and need not exist.
        path: Where it is, as callers know it.
    """

    def __init__(self, fd: int, name: str, path: str) -> None:
        self.fd = fd
        self.name = name
        self.path = path

    def stat(self) -> os.stat_result:
        """Return what is there.

        Raises:
            OSError: Nothing is, as in `FileNotFoundError`.
        """
        return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)

    def open(self, flags: int, mode: int = 0o666) -> int:
        """Open it, never through a link.

        Raises:
            OSError: It cannot be opened.
        """
        return os.open(self.name, flags | os.O_NOFOLLOW, mode, dir_fd=self.fd)

    def close(self) -> None:
        """Give the handle back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def find(roots: Roots, place: Place, *, follow: bool, make: bool = False) -> Spot:
    """Go to a file, which need not exist.

    Args:
        roots: Where links may lead.
        place: The file.
        follow: Whether to follow a link that is the file itself; links on the way are
            followed in any case.
        make: Whether to make folders that are missing on the way.

    Raises:
        RpcError: A link leads out, or in circles.
        OSError: A folder on the way is missing or cannot be entered.
    """
    walk = _Walk(roots, place)
    try:
        return walk.run(follow=follow, make=make)
    finally:
        walk.close()


class _Walk:
    def __init__(self, roots: Roots, place: Place) -> None:
        self._roots = roots
        self._wanted = place.path
        self._links = 0
        # Handles from the root down to where we are, and the names in between.
        self._fds: list[int] = []
        self._names: list[str] = []
        self._todo: list[str] = []
        self._start(place)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def run(self, *, follow: bool, make: bool) -> Spot:
        while self._todo:
            name = self._todo.pop()
            if name in ("", "."):
                continue
            if name == "..":
                self._back()
            elif self._todo or follow:
                target = self._link(name)
                if target is not None:
                    self._turn(target)
                elif self._todo:
                    self._enter(name, make=make)
                else:
                    return self._spot(name)
            else:
                return self._spot(name)
        return self._spot(".")

    def _spot(self, name: str) -> Spot:
        names = self._names if name == "." else [*self._names, name]
        path = posixpath.join(self._root.name, *names)
        return Spot(self._fds.pop(), name, path)

    def _start(self, place: Place) -> None:
        self.close()
        self._root = place.root
        self._fds.append(os.open(place.root.host, _FOLDER))
        self._names.clear()
        self._todo.extend(reversed(place.parts))

    def _back(self) -> None:
        if self._names:
            os.close(self._fds.pop())
            self._names.pop()
        elif self._roots.confined:
            raise self._outside()

    def _enter(self, name: str, *, make: bool) -> None:
        try:
            fd = os.open(name, _FOLDER, dir_fd=self._fds[-1])
        except FileNotFoundError:
            if not make:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=self._fds[-1])
            fd = os.open(name, _FOLDER, dir_fd=self._fds[-1])
        self._fds.append(fd)
        self._names.append(name)

    def _link(self, name: str) -> str | None:
        """Return what a link says; None if it is none, or nothing is there."""
        try:
            return os.readlink(name, dir_fd=self._fds[-1])
        except OSError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                return None
            raise

    def _turn(self, target: str) -> None:
        self._links += 1
        if self._links > _MAX_LINKS:
            raise RpcError("invalid_argument", f"{self._wanted}: too many links")
        if not target.startswith("/"):
            self._todo.extend(reversed(target.split("/")))
            return
        place = self._roots.enter(target)
        if place is None:
            raise self._outside()
        self._start(place)

    def _outside(self) -> RpcError:
        return RpcError("permission_denied", f"{self._wanted} is a link that leads out")
