"""Where the folders of a sandbox are, and what a path of a caller means. Pure.

A caller names files as they are called in the cloud: `/home/user`, `/app` and `/tmp`.
Where the sandbox has its own view of the file system a path is what it says. Where it
has not (the process backend) those three are folders of the host, named by either
spelling, and nothing else is there at all.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from .rpc import RpcError

__all__ = ["Place", "Root", "Roots"]

_MAX_PATH = 4096


class Root(NamedTuple):
    """A folder below which callers may go.

    Attributes:
        name: What callers call it.
        host: Where it is.
    """

    name: str
    host: str


class Place(NamedTuple):
    """A path below a root.

    Attributes:
        root: The root.
        parts: The names below it; empty for the root itself.
    """

    root: Root
    parts: tuple[str, ...]

    @property
    def path(self) -> str:
        """The path as callers know it."""
        return posixpath.join(self.root.name, *self.parts)

    @property
    def host(self) -> str:
        """The path of the same file for a program that starts now."""
        return posixpath.join(self.root.host, *self.parts)


class Roots(NamedTuple):
    """The folders of one sandbox.

    Attributes:
        home: What relative paths are below, as callers know it.
        roots: The folders.
        kept: Folders that must not be moved or removed.
        confined: Whether there is a way out that must not be taken.
    """

    home: str
    roots: tuple[Root, ...]
    kept: frozenset[str]
    confined: bool

    @classmethod
    def of(cls, *, home: str, app: str, tmp: str, confined: bool) -> Roots:
        """Return the roots of a sandbox; see `Boot` for the arguments."""
        if not confined:
            kept = frozenset({"/", home, app, tmp})
            return cls(home, (Root("/", "/"),), kept, confined)
        folders = {"/home/user": home, "/app": app, "/tmp": tmp}  # noqa: S108 - a name
        roots = tuple(Root(*item) for item in folders.items())
        return cls("/home/user", roots, frozenset(folders), confined)

    def locate(self, path: str) -> Place:
        """Return what a caller means by `path`.

        As in the cloud `..` is taken from the text, before any link is looked at; an
        empty path and `~` are the home folder.

        Raises:
            RpcError: It is not below a root, or is no path.
        """
        if len(path) > _MAX_PATH or "\0" in path:
            raise RpcError("invalid_argument", "the path is too long or holds zeros")
        if path == "~" or path.startswith("~/"):
            path = path[2:]
        whole = "/" + posixpath.normpath(posixpath.join(self.home, path)).lstrip("/")
        # In this order: the folders of the host may be below what a name says.
        place = self.enter(whole) or self._below(whole, 0)
        if place is None:
            raise RpcError("permission_denied", f"{path} is outside the sandbox")
        return place

    def enter(self, path: str) -> Place | None:
        """Return the place of an absolute path of the host, or None outside.

        `..` is kept: it may follow a link.
        """
        return self._below(path, 1)

    def _below(self, path: str, spelling: int) -> Place | None:
        for root in self.roots:
            top = root[spelling].rstrip("/")
            if path == top or path.startswith(f"{top}/"):
                rest = path[len(top) :].split("/")
                return Place(root, tuple(filter(None, rest)))
        return None
