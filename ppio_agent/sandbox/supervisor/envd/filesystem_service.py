"""`filesystem.Filesystem` of envd: look at, make, move, list and remove files.

What may take long is done in slices; see `run_in_slices`.

Source: platform.md section 9.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ppio_agent._util.trees import OPEN_FOLDER, removal

from .roots import Place, Roots
from .rpc import Message, RpcError
from .slices import Steps
from .trees import carry
from .walk import Spot, find

__all__ = ["FilesystemService"]

_MAX_DEPTH = 16
_MAX_ENTRIES = 10_000
_TYPES = {stat.S_IFREG: "FILE_TYPE_FILE", stat.S_IFDIR: "FILE_TYPE_DIRECTORY"}

Json = dict[str, Any]


class FilesystemService:
    """Does with the files of the sandbox what callers ask.

    Every method raises `RpcError` for what it refuses, and `OSError` for what the
    system refuses.

    Args:
        roots: Which files those are.

    Thread safety: one thread at a time.
    """

    def __init__(self, roots: Roots) -> None:
        self._roots = roots

    def stat(self, body: Message) -> Json:
        """Answer `Stat`: the entry, a link as what it is and leads to."""
        place = self._place(body, "path")
        with self._find(place, follow=False) as spot:
            return {"entry": self._entry(spot.stat(), spot, place)}

    def make_dir(self, body: Message) -> Json:
        """Answer `MakeDir`: a new folder, and those above it."""
        place = self._place(body, "path")
        with self._find(place, follow=True, make=True) as spot:
            try:
                if spot.name == ".":
                    raise FileExistsError
                os.mkdir(spot.name, dir_fd=spot.fd)
            except FileExistsError as exc:
                raise RpcError(
                    "already_exists", f"{place.path} already exists"
                ) from exc
            return {"entry": self._entry(spot.stat(), spot, place)}

    def move(self, body: Message) -> Steps[Json]:
        """Answer `Move`: a file that is in the way is replaced, a folder is not."""
        source = self._place(body, "source")
        target = self._place(body, "destination")
        self._refuse_root(source)
        yield
        with self._find(source, follow=False) as old:
            old.stat()
            with self._find(target, follow=False, make=True) as new:
                with suppress(FileNotFoundError):
                    self._make_way(old, new, target)
                try:
                    os.rename(old.name, new.name, src_dir_fd=old.fd, dst_dir_fd=new.fd)
                except OSError as exc:
                    if exc.errno != errno.EXDEV:
                        raise
                    yield from carry(old, new)
                return {"entry": self._entry(new.stat(), new, target)}

    def list_dir(self, body: Message) -> Steps[bytes]:
        """Answer `ListDir`: entries by name, each folder before what it holds.

        Returns:
            The answer in JSON: there is too much of it to be put so at once.
        """
        depth = body.number("depth") or 1
        if depth > _MAX_DEPTH:
            raise RpcError("invalid_argument", f"$.depth: at most {_MAX_DEPTH}")
        place = self._place(body, "path")
        found: list[str] = []
        with self._find(place, follow=True) as spot:
            if not stat.S_ISDIR(spot.stat().st_mode):
                raise RpcError("invalid_argument", f"{place.path} is not a folder")
            fd = spot.open(OPEN_FOLDER)
        for _ in self._list(fd, place, depth, found):
            yield
        return f'{{"entries":[{",".join(found)}]}}'.encode()

    def remove(self, body: Message) -> Steps[Json]:
        """Answer `Remove`: a file, a link or a whole tree."""
        place = self._place(body, "path")
        self._refuse_root(place)
        with self._find(place, follow=False) as spot:
            yield from removal(spot.fd, spot.name)
        return {}

    def _place(self, body: Message, name: str) -> Place:
        return self._roots.locate(body.text(name))

    def _find(self, place: Place, *, follow: bool, make: bool = False) -> Spot:
        if self._roots.confined and not follow:
            # A link that leads out is refused as such, even where it is not followed.
            try:
                find(self._roots, place, follow=True).close()
            except OSError:
                pass
            except RpcError as exc:
                if exc.code == "permission_denied":  # else it leads nowhere
                    raise
        return find(self._roots, place, follow=follow, make=make)

    def _refuse_root(self, place: Place) -> None:
        if place.path in self._roots.kept:
            raise RpcError("permission_denied", f"{place.path} has to stay")

    def _make_way(self, old: Spot, new: Spot, target: Place) -> None:
        """Refuse to replace a folder, and anything by a folder."""
        there, comes = new.stat(), old.stat()
        if os.path.samestat(there, comes):
            return
        if stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(comes.st_mode):
            raise RpcError("already_exists", f"{target.path} already exists")

    def _list(
        self, fd: int, place: Place, depth: int, found: list[str]
    ) -> Iterator[None]:
        """Add what is in a folder, whose handle is closed in the end."""
        try:
            names = []
            with os.scandir(fd) as there:
                for each in there:
                    names.append(each.name)
                    if len(found) + len(names) > _MAX_ENTRIES:
                        raise _too_many(place)
                    yield
            for name in sorted(names):
                yield
                below = place._replace(parts=(*place.parts, name))
                entry = self._listed(fd, name, below)
                if entry is None:
                    continue
                if len(found) == _MAX_ENTRIES:
                    raise _too_many(place)
                found.append(json.dumps(entry, separators=(",", ":")))
                is_folder = entry["permissions"].startswith("d")
                inner = _open_folder(fd, name) if is_folder and depth > 1 else None
                if inner is not None:
                    yield from self._list(inner, below, depth - 1, found)
        finally:
            os.close(fd)

    def _listed(self, fd: int, name: str, place: Place) -> Json | None:
        """Return the entry of a name, or None if it is gone meanwhile."""
        spot = Spot(fd, name, place.path)
        try:
            return self._entry(spot.stat(), spot, place)
        except FileNotFoundError:
            return None

    def _entry(self, status: os.stat_result, spot: Spot, place: Place) -> Json:
        """Return the `EntryInfo` of what is at a spot."""
        path = _plain(place.path)
        kind = _TYPES.get(stat.S_IFMT(status.st_mode))
        entry: Json = {
            "name": posixpath.basename(path) or "/",
            "type": kind or "FILE_TYPE_UNSPECIFIED",
            "path": path,
            "size": str(status.st_size),
            "mode": stat.S_IMODE(status.st_mode),
            "permissions": stat.filemode(status.st_mode),
            "owner": _known(status.st_uid, os.getuid()),
            "group": _known(status.st_gid, os.getgid()),
            "modifiedTime": _instant(status.st_mtime_ns),
        }
        if stat.S_ISLNK(status.st_mode):
            entry.update(self._led_to(spot, place))
        return entry

    def _led_to(self, link: Spot, place: Place) -> Json:
        """Return what a link adds: the kind of its target, as in the cloud, and where.

        Of a link that leads nowhere, or out, no more than its text.
        """
        try:
            with self._find(place, follow=True) as spot:
                kind = _TYPES.get(stat.S_IFMT(spot.stat().st_mode))
                target = spot.path
        except (OSError, RpcError):
            kind = "FILE_TYPE_SYMLINK"
            target = os.readlink(link.name, dir_fd=link.fd)
        return {
            "type": kind or "FILE_TYPE_UNSPECIFIED",
            "symlinkTarget": _plain(target),
        }


def _open_folder(fd: int, name: str) -> int | None:
    """Open a folder to list it, or return None if that is not allowed any more."""
    try:
        return os.open(name, OPEN_FOLDER, dir_fd=fd)
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return None


def _too_many(place: Place) -> RpcError:
    return RpcError(
        "invalid_argument",
        f"{place.path}: more than {_MAX_ENTRIES} entries; list a folder below it",
    )


def _plain(path: str) -> str:
    """Return a name that can be sent, also of one that is not text."""
    return os.fsencode(path).decode("utf-8", "replace")


def _known(number: int, own: int) -> str:
    """Return the name of a user or a group, as far as it is known inside."""
    if number == own:
        return "user"
    return "root" if number == 0 else str(number)


def _instant(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 10**9)
    # The years that a timestamp can hold; a program may have set any.
    instant = time.gmtime(min(max(seconds, -62135596800), 253402300799))
    year, *others = instant[:6]
    return "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}.{:09d}Z".format(
        year, *others, rest
    )
