"""Reading what agents wrote: the files of `logs` as entries, filtered."""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from functools import partial
from io import BufferedReader, FileIO
from itertools import islice
from pathlib import Path
from typing import Final

from attrs import frozen

from ppio_agent.wire.json import Json
from ppio_agent.wire.times import format_time

__all__ = [
    "FILES",
    "LARGEST_FILE",
    "LEVELS",
    "LogEntry",
    "LogQuery",
    "Numbering",
    "open_log",
    "parse_entry",
    "read_log",
    "select_entries",
]

LEVELS: Final = ("debug", "info", "warn", "error")
"""From the least to the most serious."""

FILES: Final = ("agent.log.2", "agent.log.1", "agent.log")
"""Names of the files of a log, the oldest first."""

LARGEST_FILE: Final = 20 << 20
"""Size of a file of a log, in bytes, that none has: twice what is written to one."""

_STREAMS: Final = ("stdout", "stderr")
# A line of 64 KiB takes six times that if each byte of it is escaped.
_LONGEST_LINE: Final = 1 << 20
_LONGEST_AGE: Final = 253402300799999  # the last millisecond of the year 9999


@frozen(kw_only=True)
class LogEntry:
    """One line that an agent wrote.

    Attributes:
        at: Milliseconds since the epoch.
        level: `debug`, `info`, `warn` or `error`.
        line: The text.
        stream: `stdout` or `stderr`.
    """

    at: int
    level: str
    line: str
    stream: str

    @property
    def timestamp(self) -> str:
        """The instant, as the wire shows it."""
        seconds = datetime.fromtimestamp(self.at / 1000, timezone.utc)
        return format_time(seconds)

    def to_dict(self) -> dict[str, Json]:
        """Return the entry as the control plane shows it."""
        return {
            "timestamp": self.timestamp,
            "level": self.level,
            "message": self.line,
            "fields": {"stream": self.stream},
        }


@frozen(kw_only=True)
class LogQuery:
    """Which entries are wanted.

    Attributes:
        start: Milliseconds since the epoch where the reading begins; None: where the
            direction begins.
        limit: Most entries.
        backward: Read towards the past.
        level: Least level.
        search: Text that the line must contain.
    """

    start: int | None = None
    limit: int = 1000
    backward: bool = False
    level: str = "debug"
    search: str = ""

    def fits(self, entry: LogEntry) -> bool:
        """Whether an entry is wanted."""
        if self.start is not None:
            before = entry.at < self.start
            if entry.at != self.start and before is not self.backward:
                return False
        if LEVELS.index(entry.level) < LEVELS.index(self.level):
            return False
        return self.search in entry.line


class Numbering:
    """Gives each entry of a log a number that is the same whoever reads it again.

    Numbers rise; they are the entry's time in microseconds, or the next free one. Of
    entries of one millisecond all have to be there for the same result.

    Example:
        >>> numbering = Numbering()
        >>> numbering.of(LogEntry(at=7, level="info", line="a", stream="stdout"))
        7000
        >>> numbering.of(LogEntry(at=7, level="info", line="b", stream="stdout"))
        7001
    """

    def __init__(self) -> None:
        self._last = -1

    def of(self, entry: LogEntry) -> int:
        """Return the number of the next entry."""
        self._last = max(self._last + 1, entry.at * 1000)
        return self._last


def open_log(path: Path) -> FileIO:
    """Open a log file as what it is: written by those in the sandbox, if they like.

    Raises:
        OSError: There is none, or something else has been put in its place.
    """
    # Neither a link to a file of the host is followed nor a pipe waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = FileIO(os.open(path, flags), "rb")
    about = os.fstat(file.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_FILE:
        file.close()
        raise OSError(f"{path} is not a log file")
    return file


def parse_entry(raw: bytes) -> LogEntry | None:
    """Return the entry of a line of a log file; None if it is not one."""
    try:
        found = json.loads(raw)
        at, line, stream = found["t"], found["line"], found["stream"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # a torn last line, or one that an agent has put there
    if type(at) is not int or not 0 <= at <= _LONGEST_AGE:
        return None
    if not isinstance(line, str) or stream not in _STREAMS:
        return None
    if not line.isascii():
        line = line.encode("utf-8", "replace").decode()  # halves of characters
    return LogEntry(at=at, level=_level_of(line), line=line, stream=stream)


def _level_of(line: str) -> str:
    if not line.startswith("{"):
        return "info"
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return "info"
    level = str(found.get("level", "info")).lower() if isinstance(found, dict) else ""
    level = {"warning": "warn", "critical": "error", "fatal": "error"}.get(level, level)
    return level if level in LEVELS else "info"


def select_entries(entries: Iterable[LogEntry], query: LogQuery) -> list[LogEntry]:
    """Return the wanted ones of `entries`, which are in the order of their time."""
    wanted = (entry for entry in entries if query.fits(entry))
    if not query.backward:
        return list(islice(wanted, query.limit))
    return list(reversed(deque(wanted, maxlen=query.limit)))


def read_log(folder: Path) -> Iterator[LogEntry]:
    """Yield all entries in the log files of `folder`, oldest first."""
    for name in FILES:
        try:
            file = BufferedReader(open_log(folder / name))
        except OSError:
            continue  # not written yet, or moved on while we look
        with file:
            for raw in iter(partial(file.readline, _LONGEST_LINE), b""):
                entry = parse_entry(raw)
                if entry is not None:
                    yield entry
