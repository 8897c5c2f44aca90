"""Control groups of sandboxes: limits that the kernel keeps, and an end for all inside.

Each sandbox has one, made before its supervisor is told what it is to be, so that all
that comes of it is in there. Whether there can be groups is decided once, when the
platform starts: if so, a sandbox that gets none is not started.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from ppio_agent._util.clock import Deadline
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.boot import OWN_MEMORY

from .base import SandboxSpec
from .delegation import HOME, Place, folder_of, look

__all__ = ["ControlGroup", "ControlGroups", "find_group", "limits", "open_groups"]

_log = logging.getLogger(__name__)

_PERIOD: Final = 100_000
_LEAST_QUOTA: Final = 1_000
# Threads count as well, of which an agent may have many: it bounds what a sandbox makes
# before it is found to have more processes than it may.
_MOST_TASKS: Final = 1024
_END_LIMIT: Final = 5.0
_BACK_LIMIT: Final = 1.0
_LOOK_EVERY: Final = 0.002
# In the place of a sandbox's id.
_OPEN: Final = "open"
# Looks for processes that were started while others were moved.
_MOVES: Final = 5


def limits(memory_bytes: int, cpus: float) -> Mapping[str, str]:
    """Return what is written into the files of a sandbox's group. Pure.

    Args:
        memory_bytes: Of its processes; what its supervisor may take comes on top.
        cpus: How many it may use.
    """
    quota = max(_LEAST_QUOTA, round(cpus * _PERIOD))
    return {
        "memory.max": str(memory_bytes + OWN_MEMORY),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": f"{quota} {_PERIOD}",
        "pids.max": str(_MOST_TASKS),
    }


class ControlGroup:
    """The group of one sandbox.

    Args:
        path: Its folder.
        rmdir: Removes an empty one.

    Thread safety: one thread at a time, but for `kill` and `lift`.
    """

    def __init__(self, path: Path, rmdir: Callable[[Path], object] = os.rmdir) -> None:
        self.path = path
        self._rmdir = rmdir

    def add(self, pid: int) -> None:
        """Move a process into it; what that starts from now on is in it, too.

        Raises:
            ProcessLookupError: It has ended.
            OSError: It is not let in.
        """
        (self.path / "cgroup.procs").write_text(str(pid))

    @property
    def limits_cpus(self) -> bool:
        """Whether it limits the use of processors."""
        return (self.path / "cpu.max").exists()

    def was_full(self) -> bool:
        """Return whether the kernel has ended processes in it for their memory."""
        try:
            text = (self.path / "memory.events").read_text()
        except OSError:
            return False
        counts = dict(line.split() for line in text.splitlines())
        return counts.get("oom_kill", "0") != "0"

    def lift(self) -> None:
        """Let what is in it use any processor, as to end it asks its supervisor first."""
        with suppress(OSError):  # it is gone
            if self.limits_cpus:
                (self.path / "cpu.max").write_text("max")

    def kill(self) -> None:
        """Kill all processes in it, those that are just being made included."""
        with suppress(OSError):  # it is gone
            if (self.path / "cgroup.kill").exists():
                (self.path / "cgroup.kill").write_text("1")
                return
            # Before Linux 5.14: until one look finds nobody.
            for file in self.path.rglob("cgroup.procs"):
                for process in map(tree.named, map(int, file.read_text().split())):
                    if process is not None:
                        tree.send(process, signal.SIGKILL)

    def end(
        self,
        deadline: Deadline | None = None,
        *,
        empty: Callable[[], object] | None = None,
    ) -> bool:
        """Kill all that is in it and remove it. Idempotent.

        Args:
            deadline: When to give up; None: after 5 s.
            empty: What is done with those in it; None: they are killed.

        Returns:
            Whether it is gone, which it is with its last process.

        Blocking: some milliseconds; until `deadline` at most.
        """
        deadline, never = deadline or Deadline.after(_END_LIMIT), threading.Event()
        while self.path.exists():
            (empty or self.kill)()
            with suppress(OSError):  # somebody is still in it
                # Whoever may have made groups below it owns nothing of them.
                for folder, _, _ in os.walk(self.path, topdown=False):
                    self._rmdir(Path(folder))
                return True
            if deadline.expired:
                return False
            never.wait(_LOOK_EVERY)
        return True


class ControlGroups:
    """The groups of a platform's sandboxes.

    Args:
        place: Where they are.
        owner: Whose they are, for platforms may share a place.
        rmdir: Removes an empty one.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        place: Place,
        owner: str,
        *,
        rmdir: Callable[[Path], object] = os.rmdir,
    ) -> None:
        self._place = place
        self._prefix = f"ppio-{owner}-"
        self._rmdir = rmdir

    def begin(self) -> None:
        """Have them made in the place: move who is in it, and hand limits down.

        An empty one stays until `close`: it shows others that the place is in use.

        Raises:
            OSError: There can be none; all is as it was.
        """
        base, home = self._place.path, self._place.path / HOME
        try:
            self._group(_OPEN).end()  # of one that was killed
            if self._place.pids:
                home.mkdir(exist_ok=True)
                _move(base, home)
            self._hand_down("+")
            self._make(_OPEN, limits(OWN_MEMORY, 1.0))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Put the place back as it was, if no group is left there. Idempotent.

        Platforms may close in any order: the last one does it. A place without a group
        for platforms was divided before there was one, and stays so.

        Blocking: some milliseconds; 6 s at most.
        """
        base, home = self._place.path, self._place.path / HOME
        self._group(_OPEN).end()
        if not home.exists() or any(base.glob("ppio-*-*")):
            return
        with suppress(OSError):  # it was not handed down, or others need it
            self._hand_down("-")
        with suppress(OSError):  # so nobody can be in the place
            # Sandboxes that were kept ready may still be on their way out.
            back = partial(_move, home, base)
            ControlGroup(home, self._rmdir).end(Deadline.after(_BACK_LIMIT), empty=back)

    def _hand_down(self, sign: str) -> None:
        words = " ".join(f"{sign}{name}" for name in sorted(self._place.controllers))
        (self._place.path / "cgroup.subtree_control").write_text(words)

    def make(self, spec: SandboxSpec) -> ControlGroup:
        """Make the group of a sandbox, with its limits.

        Raises:
            OSError: It cannot be made; nothing of it is left.
        """
        memory_bytes = spec.memory_mb * 1024 * 1024
        return self._make(spec.sandbox_id, limits(memory_bytes, spec.cpus))

    def _make(self, sandbox_id: str, settings: Mapping[str, str]) -> ControlGroup:
        group = self._group(sandbox_id)
        group.path.mkdir()
        try:
            for name, value in settings.items():
                if name.partition(".")[0] not in self._place.controllers:
                    continue
                # Not every kernel counts what is swapped out.
                if name != "memory.swap.max" or (group.path / name).exists():
                    (group.path / name).write_text(value)
        except BaseException:
            group.end()
            raise
        return group

    def _group(self, sandbox_id: str) -> ControlGroup:
        path = self._place.path / f"{self._prefix}{sandbox_id}"
        return ControlGroup(path, self._rmdir)

    def sweep(self, live: Container[str]) -> None:
        """End what a platform that crashed has left, but for sandboxes that live on.

        Blocking: some milliseconds; 5 s at most, however many there are.
        """
        paths = self._place.path.glob(f"{self._prefix}*")
        left = [
            ControlGroup(path, self._rmdir)
            for path in paths
            if (name := path.name.removeprefix(self._prefix)) != _OPEN
            and name not in live
        ]
        for group in left:
            _log.warning("control group %s was left behind and is removed", group.path)
            group.kill()
        deadline = Deadline.after(_END_LIMIT)
        for group in left:
            if not group.end(deadline):
                _log.error("the control group %s cannot be removed", group.path)


def find_group(
    sandbox_id: str,
    pid: int,
    *,
    folder_of: Callable[[int], Path | None] = folder_of,
    rmdir: Callable[[Path], object] = os.rmdir,
) -> ControlGroup | None:
    """Return the group that a sandbox was put into by whatever platform.

    Args:
        sandbox_id: The sandbox.
        pid: Its supervisor.
        folder_of: Gives the folder of a process's group.
        rmdir: Removes an empty one.
    """
    folder = folder_of(pid)
    if folder is None or not folder.match(f"ppio-*-{sandbox_id}"):
        return None
    return ControlGroup(folder, rmdir)


def _move(source: Path, target: Path) -> None:
    for _ in range(_MOVES):
        pids = (source / "cgroup.procs").read_text().split()
        for pid in pids:
            with suppress(ProcessLookupError):
                (target / "cgroup.procs").write_text(pid)
        if not pids:
            break


def open_groups(
    data_dir: Path,
    *,
    find: Callable[[], Place | str] = look,
    rmdir: Callable[[Path], object] = os.rmdir,
) -> ControlGroups | None:
    """Return the groups for sandboxes of a platform; None where there can be none.

    They are to be closed when all sandboxes have ended.

    Args:
        data_dir: The platform's, which names its groups.
        find: Finds where they can be.
        rmdir: Removes an empty one.
    """
    place = find()
    if isinstance(place, Place):
        owner = hashlib.sha256(os.fsencode(os.path.realpath(data_dir))).hexdigest()[:8]
        groups = ControlGroups(place, owner, rmdir=rmdir)
        try:
            groups.begin()
        except OSError as error:
            place = f"{place.path} cannot be divided: {error}"
        else:
            _log.info("sandboxes are limited by control groups in %s", place.path)
            return groups
    _log.info("limits of sandboxes are sampled, not kept by control groups: %s", place)
    return None
