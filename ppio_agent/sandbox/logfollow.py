"""Reading an agent's log while it is written, through the files that move on."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Final

from .logview import FILES, LogEntry, Numbering, open_log, parse_entry

__all__ = ["LogFollower"]

_PIECE: Final = 1 << 16
# A line of 64 KiB takes six times that if each byte of it is escaped.
_LONGEST: Final = 1 << 20


class LogFollower:
    """The entries of a log from its oldest on, each once, as they come.

    Args:
        folder: Gives the folder with the log files, which may be moved; None as long
            as there is none.

    Thread safety: one thread at a time.
    """

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder
        self._numbering = Numbering()
        self._file: FileIO | None = None
        self._rest = b""

    def read(self) -> list[tuple[int, LogEntry]] | None:
        """Return the next entries, each with its number; None if all are read.

        At most about 64 KiB of them; none of those read may be whole.
        """
        data = self._next_piece()
        if not data:
            return None
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= _LONGEST else b""
        found = (parse_entry(line) for line in lines)
        return [(self._numbering.of(entry), entry) for entry in found if entry]

    def last(self, count: int) -> list[tuple[int, LogEntry]]:
        """Read to the present end and return the last entries."""
        found: deque[tuple[int, LogEntry]] = deque(maxlen=count)
        while (entries := self.read()) is not None:
            found.extend(entries)
        return list(found)

    def _next_piece(self) -> bytes:
        while True:
            data = self._file.read(_PIECE) if self._file is not None else b""
            if data:
                return data
            newer = self._newer()
            if newer is None:
                return b""
            # It is full, but may have been written to since it was read to its end.
            data = self._file.read(_PIECE) if self._file is not None else b""
            if data:
                newer.close()
                return data
            self.close()
            self._file = newer

    def _newer(self) -> FileIO | None:
        """Return the file that follows the present one, None if that is the newest."""
        folder = self._folder()
        if folder is None:
            return None
        present = None if self._file is None else os.fstat(self._file.fileno()).st_ino
        newer: FileIO | None = None
        # From the newest on: files move towards older names while they are looked at.
        for name in reversed(FILES):
            with contextlib.suppress(OSError):
                file = open_log(folder / name)
                if os.fstat(file.fileno()).st_ino == present:
                    file.close()
                    return newer
                if newer is not None:
                    newer.close()
                newer = file
        return newer  # the present one is gone, or there was none

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file, self._rest = None, b""
