"""Remove and carry whole trees, by handles and step by step; see `run_in_slices`."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from .rpc import RpcError
from .slices import Steps
from .walk import Spot

__all__ = ["OPEN_FOLDER", "carry", "remove"]

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""Flags that open a folder to list it, and no link to one."""

_PIECE = 1024 * 1024


def remove(folder: int, name: str) -> Steps[None]:
    """Remove a file, or a folder from its leaves on, without following a link.

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
    fd = os.open(name, OPEN_FOLDER, dir_fd=folder)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                # Somebody else may be at it, too.
                with suppress(FileNotFoundError):
                    yield from remove(fd, entry.name)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=folder)


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
    except BaseException:
        with suppress(FileNotFoundError):
            for _ in remove(new.fd, temporary):
                pass
        raise
    yield from remove(old.fd, old.name)


def _copy(source: int, name: str, target: int, new_name: str) -> Steps[None]:
    status = os.stat(name, dir_fd=source, follow_symlinks=False)
    yield
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), new_name, dir_fd=target)
    elif stat.S_ISREG(status.st_mode):
        yield from _copy_file(source, name, target, new_name)
    elif stat.S_ISDIR(status.st_mode):
        os.mkdir(new_name, 0o700, dir_fd=target)
        yield from _copy_entries(source, name, target, new_name)
    else:
        raise RpcError("invalid_argument", f"{name} cannot leave its file system")
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(new_name, stat.S_IMODE(status.st_mode), dir_fd=target)
    times = (status.st_atime_ns, status.st_mtime_ns)
    os.utime(new_name, ns=times, dir_fd=target, follow_symlinks=False)


def _copy_entries(source: int, name: str, target: int, new_name: str) -> Steps[None]:
    fd = os.open(name, OPEN_FOLDER, dir_fd=source)
    try:
        new_fd = os.open(new_name, OPEN_FOLDER, dir_fd=target)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield from _copy(fd, entry.name, new_fd, entry.name)
        finally:
            os.close(new_fd)
    finally:
        os.close(fd)


def _copy_file(source: int, name: str, target: int, new_name: str) -> Steps[None]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=source)
    try:
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
