"""Reading what agents wrote: the files of `logs` as entries, filtered."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from io import BufferedReader, FileIO
from itertools import chain
from json.encoder import encode_basestring
from pathlib import Path
from typing import Final

from attrs import frozen

from ppio_agent.wire.json import Json
from ppio_agent.wire.times import format_time

__all__ = [
    "FILES",
    "LARGEST_FILE",
    "LARGEST_PAGE",
    "LEVELS",
    "LogEntry",
    "LogQuery",
    "Numbering",
    "bounds",
    "open_files",
    "parse_entry",
    "read_log",
]

LEVELS: Final = ("debug", "info", "warn", "error")
"""From the least to the most serious."""

FILES: Final = ("agent.log.2", "agent.log.1", "agent.log")
"""Names of the files of a log, the oldest first."""

LARGEST_FILE: Final = 20 << 20
"""Size of a file of a log, in bytes, that none has: twice what is written to one."""

LARGEST_PAGE: Final = 1 << 20
"""Most bytes of the lines of a page, more than have the same instant (see `logs`)."""

_STREAMS: Final = ("stdout", "stderr")
# A line of 64 KiB takes six times that if each byte of it is escaped.
_LONGEST_LINE: Final = 1 << 20
_BLOCK: Final = 1 << 14
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

    Numbers rise; they are the entry's time in microseconds, or the next free one. All
    entries of its millisecond have to be there for the same result, and no more: one
    has less than a thousand (see `AgentLog`).

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


def open_files(folder: Path) -> dict[int, BufferedReader]:
    """Open the files of a log, by their numbers in the file system, the newest first.

    The caller closes them.
    """
    found: dict[int, BufferedReader] = {}
    # In this order none is missed: files move towards older names meanwhile.
    for name in reversed(FILES):
        with contextlib.suppress(OSError):  # not written yet
            file = _open(folder / name)
            number = os.fstat(file.fileno()).st_ino
            if number in found:
                file.close()
            else:
                found[number] = BufferedReader(file)
    return found


def _open(path: Path) -> FileIO:
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


def read_log(folder: Path, query: LogQuery) -> list[LogEntry]:
    """Return the wanted entries in the log files of `folder`, in the order asked for.

    They are fewer than asked for where their lines have more than `LARGEST_PAGE` bytes.
    Only the part of the files is read that may hold them.
    """
    files = list(open_files(folder).values())
    if query.backward:
        found = (_newest_first(file, query.start) for file in files)
    else:
        found = (_oldest_first(file, query.start) for file in reversed(files))
    # As it is in a file: what does not have it need not be parsed.
    text = encode_basestring(query.search)[1:-1].encode()
    raw = (line for line in chain.from_iterable(found) if text in line)
    page: list[LogEntry] = []
    room = LARGEST_PAGE
    try:
        for line in raw:
            entry = parse_entry(line)
            if entry is None or not query.fits(entry):
                continue
            room -= len(line)
            if room < 0:
                break
            page.append(entry)
            if len(page) == query.limit:
                break
        return page
    finally:
        for file in files:
            file.close()


def bounds(file: BufferedReader, at: int) -> tuple[int, int]:
    """Return two places between which the entries of a file reach the instant `at`.

    What begins before the first is older; what begins at the second, or after it, is
    not. They are about a block apart.
    """
    low, high = 0, os.fstat(file.fileno()).st_size
    end = high
    while high - low > _BLOCK:
        middle = (low + high) // 2
        file.seek(middle)
        file.readline(_LONGEST_LINE)  # the rest of one
        place = file.tell()
        entry = parse_entry(file.readline(_LONGEST_LINE))
        if entry is not None and entry.at < at:
            low = place
            continue
        high = middle
        if entry is not None:
            end = place
    return low, end


def _oldest_first(file: BufferedReader, start: int | None) -> Iterator[bytes]:
    """Return the lines of a file from about the instant `start` on."""
    file.seek(0 if start is None else bounds(file, start)[0])
    return iter(partial(file.readline, _LONGEST_LINE), b"")


def _newest_first(file: BufferedReader, start: int | None) -> Iterator[bytes]:
    """Yield the lines of a file from about the instant `start` backward."""
    end = bounds(file, (_LONGEST_AGE if start is None else start) + 1)[1]
    rest = b""
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        rest, *lines = (file.read(end - begin) + rest).split(b"\n")
        yield from reversed(lines)
        if len(rest) > _LONGEST_LINE:
            rest = b""  # what is left of it is no entry either
        end = begin
    yield rest
