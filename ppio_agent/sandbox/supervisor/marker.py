"""The mark of a process that becomes part of a sandbox after it was started."""

from __future__ import annotations

import ctypes

from .tree import MARKER

__all__ = ["Marker"]

_ENV_START = 47  # of the fields of /proc/self/stat from the state on


class Marker:
    """The sandbox's id in the environment that others see of this process.

    `/proc/<pid>/environ` shows the memory in which the environment was handed to the
    program; a fork has its own copy, in which a value of the same length may be put.

    Args:
        value: What is there now.

    Raises:
        RuntimeError: It is not where it should be.
    """

    def __init__(self, value: str) -> None:
        name = f"{MARKER}=".encode()
        with open("/proc/self/environ", "rb") as file:
            offset = file.read().find(name + value.encode())
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        self._length = len(value)
        self._address = int(fields[_ENV_START]) + offset + len(name)
        if offset < 0 or ctypes.string_at(self._address, len(value)) != value.encode():
            raise RuntimeError("the environment of this process is not where it was")

    def write(self, sandbox_id: str) -> None:
        """Mark this process.

        Raises:
            ValueError: The id has another length.
        """
        if len(sandbox_id) != self._length or not sandbox_id.isascii():
            raise ValueError(f"{sandbox_id!r} is no id of a sandbox")
        ctypes.memmove(self._address, sandbox_id.encode(), len(sandbox_id))
