"""Carry whole trees, by handles and step by step; see `run_in_slices`."""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress

from ppio_agent._util.trees import Climber, removal

from .rpc import RpcError
from .slices import Steps
from .walk import Spot

__all__ = ["carry"]

_PIECE = 1024 * 1024
# A pipe would be waited for, a terminal could become ours.
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def carry(old: Spot, new: Spot) -> Steps[None]:
    """Move a file or a tree to another file system, where it appears as a whole.

    Args:
        old: What is moved.
        new: What it becomes; a file that is there is replaced.

    Raises:
        RpcError: There is something in it that is no file, folder or link.
        OSError: It cannot be read or written; nothing has moved then.
    """
    temporary = f".move-{os.urandom(8).hex()}"
    try:
        yield from _copy(old.fd, old.name, new.fd, temporary)
        os.rename(temporary, new.name, src_dir_fd=new.fd, dst_dir_fd=new.fd)
    except Exception:
        with suppress(FileNotFoundError):
            yield from removal(new.fd, temporary)
        raise
    yield from removal(old.fd, old.name)


def _copy(source: int, name: str, target: int, new_name: str) -> Steps[None]:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    yield
    if not stat.S_ISDIR(status.st_mode):
        yield from _copy_leaf(status, source, name, target, new_name)
        return
    os.mkdir(new_name, 0o700, dir_fd=target)
    with (
        closing(Climber(source, name)) as old,
        closing(Climber(target, new_name)) as new,
    ):
        yield from _copy_tree(old, new)


def _copy_tree(old: Climber, new: Climber) -> Steps[None]:
    """Copy what is in the folder where `old` is to where `new` is; both leave it."""
    # What is still to be copied of each folder on the way.
    left = [(yield from _names(old.fd))]
    while left:
        yield
        if not left[-1]:
            left.pop()
            status = os.fstat(old.fd)
            old.up()
            _copy_status(status, *new.up())
            continue
        name = left[-1].pop()
        status = os.stat(name, dir_fd=old.fd, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=new.fd)
            old.down(name)
            new.down(name)
            left.append((yield from _names(old.fd)))
        else:
            yield from _copy_leaf(status, old.fd, name, new.fd, name)


def _names(folder: int) -> Steps[list[str]]:
    names = []
    with os.scandir(folder) as entries:
        for entry in entries:
            yield
            names.append(entry.name)
    return names


def _copy_leaf(
    status: os.stat_result, source: int, name: str, target: int, new_name: str
) -> Steps[None]:
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), new_name, dir_fd=target)
    elif stat.S_ISREG(status.st_mode):
        yield from _copy_file(source, name, target, new_name)
    else:
        raise _stays(name)
    _copy_status(status, target, new_name)


def _copy_status(status: os.stat_result, target: int, name: str) -> None:
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, name: str, target: int, new_name: str) -> Steps[None]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(name, _OPEN_FILE, dir_fd=source)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # it was swapped meanwhile
            raise _stays(name)
        new_fd = os.open(new_name, flags, 0o600, dir_fd=target)
        try:
            while data := os.read(fd, _PIECE):
                left = memoryview(data)
                while left:
                    left = left[os.write(new_fd, left) :]
                yield
        finally:
            os.close(new_fd)
    finally:
        os.close(fd)


def _stays(name: str) -> RpcError:
    return RpcError("invalid_argument", f"{name} cannot leave its file system")
