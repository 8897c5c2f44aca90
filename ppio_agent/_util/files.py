"""Files that are replaced as a whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from .ids import new_id

__all__ = ["UNFINISHED", "replace_file"]

UNFINISHED = ".new"
"""Ending of what `replace_file` leaves beside a file if it is killed meanwhile."""


def replace_file(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file; whoever reads it finds the former one or this one, whole.

    That holds after a crash of the machine, too: the content is on its disk before it
    has the name.

    Args:
        path: The file; its folder is there.
        content: All that is to be in it.
        mode: Its mode.

    Raises:
        OSError: It cannot be written; what was there is as it was.
    """
    temporary = path.with_name(f"{path.name}.{new_id()}{UNFINISHED}")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
