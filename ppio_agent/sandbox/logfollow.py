"""Reading an agent's log while it is written, through the files that move on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Final

from .logview import (
    FILES,
    LARGEST_PAGE,
    LogEntry,
    LogQuery,
    Numbering,
    bounds,
    open_files,
    parse_entry,
    read_log,
)

__all__ = ["LogFollower"]

_PIECE: Final = 1 << 16
# A line of 64 KiB takes six times that if each byte of it is escaped.
_LONGEST: Final = 1 << 20


class LogFollower:
    """The entries of a log from its oldest on, each once, as they come.

    Args:
        folder: Gives the folder with the log files, which may be moved; None as long
            as there is none.
        since: Instant, in milliseconds, from which on entries are wanted; some older
            ones may come, too, and with other numbers.

    Thread safety: one thread at a time.
    """

    def __init__(self, folder: Callable[[], Path | None], *, since: int = 0) -> None:
        self._folder = folder
        self._since = since
        self._numbering = Numbering()
        self._file: BufferedReader | None = None
        self._number: int | None = None  # of the file
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
        """Move to the present end and return the last entries; to be called first.

        They are as many as a page has, see `read_log`.
        """
        folder = self._folder()
        if folder is not None:
            newest = read_log(folder, LogQuery(limit=max(count, 1), backward=True))
            if newest:
                self._since = max(self._since, newest[-1].at)
        found: deque[tuple[int, LogEntry]] = deque()
        size = 0
        while (entries := self.read()) is not None:
            for entry in entries:
                found.append(entry)
                size += len(entry[1].line)
                while len(found) > count or size > LARGEST_PAGE:
                    size -= len(found.popleft()[1].line)
        return list(found)

    def _next_piece(self) -> bytes:
        while True:
            data = self._file.read(_PIECE) if self._file is not None else b""
            if data:
                return data
            found = self._newer()
            if found is None:
                return b""
            number, newer = found
            # It is full, but may have been written to since it was read to its end.
            data = self._file.read(_PIECE) if self._file is not None else b""
            if data:
                newer.close()
                return data
            self.close()
            if self._since:
                newer.seek(bounds(newer, self._since)[0])
            self._number, self._file = number, newer

    def _newer(self) -> tuple[int, BufferedReader] | None:
        """Return the file that follows the present one, None if that is the newest."""
        folder = self._folder()
        if folder is None:
            return None
        with contextlib.suppress(OSError):
            # Mostly there is none: one call of the system a look.
            if (folder / FILES[-1]).stat().st_ino == self._number:
                return None
        newer: tuple[int, BufferedReader] | None = None
        files = iter(open_files(folder).items())
        for number, file in files:
            if number == self._number:
                file.close()
                break
            if newer is not None:
                newer[1].close()
            newer = number, file
        for _, older in files:
            older.close()
        return newer  # if the present one is gone, or there was none, the oldest

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file, self._number, self._rest = None, None, b""
