"""The processes of one sandbox: find them, measure them, signal them.

Used by the supervisor, and by the platform when a supervisor is gone. A process is
named by its pid and its start time, so that a pid given to another process since is
never signalled. Where a process comes from is read from `/proc`; systems without it
are asked through psutil.

The tree of a sandbox is the descendants of its supervisor, which is a sub-reaper and so
never loses one, and whatever carries the sandbox's marker in its environment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

__all__ = [
    "MARKER",
    "Entry",
    "Load",
    "Process",
    "descendants",
    "freeze",
    "is_whole",
    "kill_groups",
    "kill_session",
    "marked",
    "marked_any",
    "measure",
    "members",
    "named",
    "send",
    "sweep",
    "table",
    "thaw",
    "walk",
]

MARKER = "PPIO_SANDBOX_ID"
"""Name of the environment variable that marks every process of a sandbox."""

_HAS_PROC = os.path.isdir("/proc/self/task")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PIECE = 4096
_SWEEP_PAUSE = 0.01
_FREEZE_LIMIT = 5.0
_FREEZE_PAUSE = 0.003
# States of a process that does nothing before it is told to; what waits within the
# kernel (D), as the parent of a `vfork`, stops when that ends.
_STILL = (b"T", b"t", b"D", b"Z", b"X")
# More than any sandbox may have: a walk ends even if they are made faster, and soon,
# for those that it finds take the processor from it.
_MOST = 320


# Named tuples, not attrs: the supervisor does without attrs until envd is used.
class Process(NamedTuple):
    """A process that cannot be mistaken for a later one with its pid."""

    pid: int
    started: float


class Entry(NamedTuple):
    """What the process table says of one pid."""

    parent: int
    started: float
    zombie: bool
    group: int = 0
    session: int = 0


class Load(NamedTuple):
    """What some processes use together.

    Attributes:
        cpu_seconds: CPU time so far, that of ended children they waited for included.
        rss_bytes: Resident memory.
        processes: How many they are.
        faults: How often memory was given to them, also when it was of use already:
            of processes that do nothing it stays the same.
    """

    cpu_seconds: float
    rss_bytes: int
    processes: int
    faults: int = 0


def _read(path: str, *, whole: bool = True) -> bytes:
    """Return a file of `/proc`, in few calls of the system.

    Args:
        path: Of the file.
        whole: Whether it may be more than is given at once.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = piece = os.read(fd, _PIECE)
        while piece and whole:
            piece = os.read(fd, _PIECE)
            data += piece
    finally:
        os.close(fd)
    return data


def _stat(pid: int | str) -> list[bytes] | None:
    """Return the fields of `/proc/<pid>/stat` from the state on, or None.

    Args:
        pid: Of a process, or `<pid>/task/<tid>` of a thread.
    """
    try:
        data = _read(f"/proc/{pid}/stat", whole=False)
    except OSError:
        return None
    # The program's name, in brackets, may hold blanks and brackets itself.
    return data[data.rfind(b")") + 2 :].split()


def _entry(pid: int) -> Entry | None:
    if not _HAS_PROC:
        return _psutil_table([pid]).get(pid)
    fields = _stat(pid)
    if not fields:
        return None
    return Entry(
        parent=int(fields[1]),
        started=int(fields[19]),
        zombie=fields[0] in (b"Z", b"X"),
        group=int(fields[2]),
        session=int(fields[3]),
    )


def _psutil_table(pids: Iterable[int] | None = None) -> dict[int, Entry]:
    import psutil

    entries = {}
    for pid in psutil.pids() if pids is None else pids:
        try:
            process = psutil.Process(pid)
            zombie = process.status() == psutil.STATUS_ZOMBIE
            entries[pid] = Entry(process.ppid(), process.create_time(), zombie)
        except psutil.Error:
            continue
    return entries


def table() -> dict[int, Entry]:
    """Return the processes of the machine, zombies included."""
    if not _HAS_PROC:
        return _psutil_table()
    entries = {}
    # From the newest on: who lives shortly is still there when it is looked at.
    for name in reversed(os.listdir("/proc")):
        if name.isdigit() and (entry := _entry(int(name))) is not None:
            entries[int(name)] = entry
    return entries


def descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    """Return the pids below `root`, itself left out, given each pid's parent. Pure."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    pending = [root]
    while pending:
        for pid in children.get(pending.pop(), ()):
            # A table read while pids are re-used may hold a circle.
            if pid not in found and pid != root:
                found.add(pid)
                pending.append(pid)
    return found


def _marker(pid: int) -> str | None:
    """Return the sandbox that a process's environment names, if any."""
    if not _HAS_PROC:
        import psutil

        try:
            return psutil.Process(pid).environ().get(MARKER)
        except psutil.Error:
            return None
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            data = b"\0" + file.read()
    except OSError:
        return None
    _, found, rest = data.partition(f"\0{MARKER}=".encode())
    return rest.partition(b"\0")[0].decode("ascii", "replace") if found else None


def _alive(entries: Mapping[int, Entry], pids: Iterable[int]) -> set[Process]:
    return {
        Process(pid, entries[pid].started) for pid in pids if not entries[pid].zombie
    }


def marked(sandbox_id: str) -> set[Process]:
    """Return the living processes that carry the sandbox's marker."""
    entries = table()
    return _alive(entries, (pid for pid in entries if _marker(pid) == sandbox_id))


def named(pid: int) -> Process | None:
    """Return the process that has a pid now; None if there is none."""
    entry = _entry(pid)
    return None if entry is None else Process(pid, entry.started)


def marked_any(
    sandbox_ids: Container[str], known: Iterable[Process] = ()
) -> set[Process]:
    """Return the living processes of any of these sandboxes.

    They are marked, or `known`, or below one that is. Those of another user may hide
    their mark.
    """
    entries = table()
    found = {pid for pid in entries if (_marker(pid) or "") in sandbox_ids}
    for pid, started in known:
        if pid in entries and entries[pid].started == started:
            found.add(pid)
    if found:
        parents = {pid: entry.parent for pid, entry in entries.items()}
        found = found.union(*(descendants(pid, parents) for pid in found))
    return _alive(entries, found)


def members(root: int, sandbox_id: str) -> set[Process]:
    """Return the living processes of a sandbox, its supervisor `root` left out."""
    entries = table()
    below = descendants(root, {pid: entry.parent for pid, entry in entries.items()})
    others = (pid for pid in entries.keys() - below if _marker(pid) == sandbox_id)
    return _alive(entries, below.union(others) - {root})


def _nothing(_: int) -> None:
    """Do nothing before a process is asked."""


def walk(root: int, *, before: Callable[[int], object] = _nothing) -> list[int]:
    """Return the pids below `root` by asking each process for its children.

    Costs as much as the tree is large, not as the machine is busy, but may miss a
    process while others end: good for measuring and searching, not for killing.

    Args:
        root: Left out itself.
        before: Called with each pid, `root` too, before it is asked.
    """
    found: list[int] = []
    pending = [root]
    while pending and len(found) < _MOST:
        pid = pending.pop()
        before(pid)
        children = _children(pid)
        if children is None:
            parents = {pid: entry.parent for pid, entry in table().items()}
            found = sorted(descendants(root, parents))
            for pid in found:
                before(pid)
            return found
        del children[_MOST - len(found) :]
        found += children
        pending += children
    return found


def is_whole(root: int, found: Sequence[int]) -> bool:
    """Return whether nobody is below `root` but the processes that `walk` has found.

    A walk misses a process whose parent ends when the new one, a sub-reaper above, has
    been asked and the old one has not. Here the lowest are asked first. While those
    that were found stand still they start nobody, and stay where they are. Who else is
    there hangs, with all it starts, below one of them, and can only get to hang below
    one further up, which is asked later, and last of all below the root. So it is met
    as somebody's child, unless one that was found has moved since.

    Where the system does not list children this is another look at its table, which
    may miss what it has missed before.

    Args:
        root: Where the walk began.
        found: In the order in which they were asked.
    """
    known = set(found)
    for pid in (*reversed(found), root):
        children = _children(pid)
        if children is None:
            return known.issuperset(walk(root))
        if not known.issuperset(children):
            return False
    return True


def _children(pid: int) -> list[int] | None:
    """Return the children of a process; None if the system does not list them."""
    if not _HAS_PROC:
        return None
    folder = f"/proc/{pid}/task"
    found: list[int] = []
    try:
        for thread in os.listdir(folder):
            found += map(int, _read(f"{folder}/{thread}/children").split())
    except ProcessLookupError:
        return found
    except FileNotFoundError:
        # Either the process has ended or the kernel was built without these files.
        return None if os.path.exists(f"{folder}/{pid}/stat") else found
    except OSError:
        return None
    return found


def measure(pids: Iterable[int]) -> Load:
    """Return what the processes use together now."""
    if not _HAS_PROC:
        return _psutil_measure(pids)
    ticks = pages = count = faults = 0
    for pid in pids:
        fields = _stat(pid)
        if fields:
            faults += int(fields[7])
            ticks += sum(map(int, fields[11:15]))
            pages += int(fields[21])
            count += 1
    return Load(ticks / _TICKS, pages * _PAGE, count, faults)


def _psutil_measure(pids: Iterable[int]) -> Load:
    import psutil

    load = Load(0.0, 0, 0)
    for pid in pids:
        try:
            process = psutil.Process(pid)
            cpu, rss = sum(process.cpu_times()), process.memory_info().rss
        except psutil.Error:
            continue
        load = Load(load.cpu_seconds + cpu, load.rss_bytes + rss, load.processes + 1)
    return load


def send(process: Process, signum: int) -> bool:
    """Signal a process unless it has ended, whoever has its pid now.

    Returns:
        Whether the signal was sent.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):  # not this system, or out of descriptors
        return _send_by_pid(process, signum)
    # The start time is compared while the handle is held: it cannot change owner.
    try:
        entry = _entry(process.pid)
        if entry is None or entry.started != process.started:
            return False
        signal.pidfd_send_signal(handle, signum)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _send_by_pid(process: Process, signum: int) -> bool:
    entry = _entry(process.pid)
    if entry is None or entry.started != process.started:
        return False
    try:
        os.kill(process.pid, signum)
    except OSError:
        return False
    return True


def freeze(find: Callable[[], set[Process]]) -> bool:
    """Stop all that `find` returns, until two looks in a row find nothing that moves.

    A stopped process makes no child, and lets none go on, so this ends unless processes
    are made faster than they are stopped; then all go on.

    Returns:
        Whether all are stopped.
    """
    never = threading.Event()
    end = time.monotonic() + _FREEZE_LIMIT
    told: set[Process] = set()
    quiet = 0
    while quiet < 2:
        found = find()
        restless = {each for each in found if each not in told or not _is_still(each)}
        for process in restless:
            send(process, signal.SIGSTOP)
        told |= restless
        quiet = 0 if restless else quiet + 1
        if time.monotonic() > end:
            thaw(find)
            return False
        if restless:
            never.wait(_FREEZE_PAUSE)
    return True


def thaw(find: Callable[[], set[Process]]) -> None:
    """Let all that `find` returns go on."""
    for process in find():
        send(process, signal.SIGCONT)


def _is_still(process: Process) -> bool:
    """Return whether none of a process's threads runs; one that has ended is still."""
    if not _HAS_PROC:
        import psutil

        try:
            return psutil.Process(process.pid).status() != psutil.STATUS_RUNNING
        except psutil.Error:
            return True
    folder = f"{process.pid}/task"
    try:
        threads = os.listdir(f"/proc/{folder}")
    except OSError:
        return True
    states = (_stat(f"{folder}/{thread}") for thread in threads)
    return all(not fields or fields[0] in _STILL for fields in states)


def kill_groups(root: int) -> None:
    """Kill the process groups in the session of `root`, its leader, each at once.

    Those of the processes that `walk` finds: takes no longer if there are thousands, of
    which each starts others while it is looked for.
    """
    groups = set()
    for pid in walk(root):
        with contextlib.suppress(OSError):  # it is gone
            if os.getsid(pid) == root:
                groups.add(os.getpgid(pid))
    for group in groups - {root}:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def kill_session(session: int, *, looks: int = 1) -> None:
    """Kill every process group of a session, but that of its leader, each at once.

    A chain of processes of which each makes the next one and ends is hardly ever met
    alive. Its group stays, and a signal to the group reaches whoever is in it.

    Args:
        session: Of a supervisor: nobody else's processes can be in it.
        looks: How often to look; each takes some milliseconds, and may find nobody of
            a chain if its ended processes are not kept by their reaper.
    """
    for _ in range(looks):
        entries = table().values()
        groups = {entry.group for entry in entries if entry.session == session}
        for group in groups - {session, os.getpgrp()}:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)


def sweep(find: Callable[[], set[Process]], *, timeout: float) -> set[Process]:
    """Kill all that `find` returns until it returns none.

    Returns:
        What was still there after `timeout` seconds, such as processes of another
        user; empty if all are gone.
    """
    end = time.monotonic() + timeout
    never = threading.Event()
    while remaining := find():
        for process in remaining:
            send(process, signal.SIGKILL)
        if time.monotonic() > end:
            return remaining
        never.wait(_SWEEP_PAUSE)
    return remaining
