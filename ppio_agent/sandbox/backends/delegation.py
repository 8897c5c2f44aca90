"""Whether this process may divide its control group among sandboxes, and where.

Only version 2 is meant: one tree of groups, in which processes are in the leaves alone,
and each group has one owner. Nothing is changed here.

Source: cgroup-v2 of the kernel's administration guide; systemd's CGROUP_DELEGATION.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

from ppio_agent.sandbox.supervisor import tree

__all__ = [
    "HOME",
    "Group",
    "Place",
    "decide",
    "folder_of",
    "group_path",
    "locate",
    "look",
    "mounts",
]

HOME: Final = "ppio-platform"
"""Name of the group that the platform itself is in, beside those of its sandboxes."""

_WANTED: Final = frozenset({"memory", "cpu", "pids"})
_UNITS: Final = (".service", ".scope", ".slice")
_MARKS: Final = ("trusted.delegate", "user.delegate")
_MOUNT: Final = re.compile(r"(?:[^ ]+ ){3}([^ ]+) ([^ ]+) .* - cgroup2 ")
_ASK_LIMIT: Final = 2.0


@frozen(kw_only=True)
class Place:
    """A group that is divided among sandboxes.

    Attributes:
        path: Its folder.
        controllers: What can be limited below it.
        pids: Processes in it, which have to move into one below it first.
    """

    path: Path
    controllers: frozenset[str]
    pids: tuple[int, ...] = ()


@frozen(kw_only=True)
class Group:
    """What is seen of a group.

    Attributes:
        path: Its folder.
        system: Whether it is that of the whole system.
        delegated: Whether it is this user's to divide.
        controllers: What can be limited below it.
        pids: Processes in it.
    """

    path: Path
    system: bool = False
    delegated: bool = False
    controllers: frozenset[str] = frozenset()
    pids: tuple[int, ...] = ()


def mounts(text: str) -> list[tuple[str, Path]]:
    """Return which groups are seen where: the uppermost one, and its folder. Pure.

    Args:
        text: Of `/proc/<pid>/mountinfo`.
    """
    found = map(_MOUNT.match, text.split("\n"))
    return [(_plain(each[1]), Path(_plain(each[2]))) for each in found if each]


def _plain(name: str) -> str:
    """Return a name as it is, not as the kernel lists it."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), name)


def group_path(text: str) -> str | None:
    """Return the path of a process's group; None if it is in none. Pure.

    Args:
        text: Of `/proc/<pid>/cgroup`.
    """
    lines = (line for line in text.split("\n") if line.startswith("0::/"))
    return next((line[3:] for line in lines), None)


def locate(path: str, seen: Iterable[tuple[str, Path]]) -> Path | None:
    """Return the folder of a group; None if it is not among those seen. Pure."""
    for root, folder in sorted(seen, key=lambda each: -len(each[0])):
        prefix = root.rstrip("/")
        if path == root or path.startswith(f"{prefix}/"):
            return folder / path[len(prefix) :].lstrip("/")
    return None


def decide(own: Group, above: Group | None, ours: Collection[int]) -> Place | str:
    """Return which group to divide, or why there is none. Pure.

    Args:
        own: The group of this process.
        above: The one above it, if it is seen and may be this program's, too.
        ours: Which processes may be moved: this one and those below it.
    """
    if own.system:
        return "this program is in the group of the whole system"
    divided = own
    if not own.delegated:
        if above is None or not above.delegated:
            return f"{own.path} is not delegated to this user"
        divided = above
    # The own group may have none: they are handed down when the one above is divided.
    if "memory" not in divided.controllers:
        return f"{divided.path} has no memory controller"
    if not set(divided.pids) <= set(ours):
        return f"other programs are in {divided.path}"
    usable = divided.controllers & _WANTED
    return Place(path=divided.path, controllers=usable, pids=divided.pids)


def look(
    proc: Path = Path("/proc"), *, says: Callable[[Path], bool] | None = None
) -> Place | str:
    """Return which group this process may divide, or why there is none.

    Args:
        proc: Where the system tells about processes.
        says: Whether systemd says that the group with a folder is delegated; None
            asks it.

    Blocking: some milliseconds; 2 s at most, if systemd is asked and does not answer.
    """
    folder = folder_of("self", proc)
    if folder is None:
        return "this system shows no control groups of version 2"
    try:
        own, above = _see(folder, says or _systemd_says), None
        # What is above a unit of systemd is systemd's own.
        is_unit = folder.name.endswith(_UNITS)
        if not (own.delegated or is_unit) and _is_group(folder.parent):
            above = _see(folder.parent, says or _systemd_says)
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}"
    parents = {pid: entry.parent for pid, entry in tree.table().items()}
    pid = os.getpid()
    return decide(own, above, {pid, *tree.descendants(pid, parents)})


def folder_of(pid: int | str, proc: Path = Path("/proc")) -> Path | None:
    """Return the folder of a process's group; None if it has ended, or has none."""
    try:
        path = group_path(os.fsdecode((proc / str(pid) / "cgroup").read_bytes()))
        seen = mounts(os.fsdecode((proc / "self" / "mountinfo").read_bytes()))
    except OSError:
        return None
    return None if path is None else locate(path, seen)


def _see(folder: Path, says: Callable[[Path], bool]) -> Group:
    controllers = frozenset((folder / "cgroup.controllers").read_text().split())
    pids = tuple(map(int, (folder / "cgroup.procs").read_text().split()))
    topmost = not _is_group(folder.parent)
    # The one group without events is that of the whole system.
    system = topmost and not (folder / "cgroup.events").exists()
    delegated = not system and _writable(folder)
    if delegated and not topmost:
        # Of the administrator all groups can be written, of other users theirs.
        handed = os.geteuid() != 0 and not _writable(folder.parent)
        delegated = handed or says(folder)
    return Group(
        path=folder,
        system=system,
        delegated=delegated,
        controllers=controllers,
        pids=pids,
    )


def _is_group(folder: Path) -> bool:
    return (folder / "cgroup.procs").exists()


def _writable(folder: Path) -> bool:
    files = ("", "cgroup.procs", "cgroup.subtree_control")
    return all(os.access(folder / name, os.W_OK) for name in files)


def _systemd_says(folder: Path) -> bool:
    for mark in _MARKS:
        try:
            if os.getxattr(folder, mark) == b"1":
                return True
        except OSError:
            continue
    return os.geteuid() != 0 and _user_manager_says(folder.name)


def _user_manager_says(unit: str) -> bool:
    """Ask the service manager of this user, which marks no groups."""
    if not unit.endswith(_UNITS):
        return False
    command = ["systemctl", "--user", "show", "--property=Delegate", "--value", unit]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_ASK_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == b"yes"
