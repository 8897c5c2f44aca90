"""An agent's output as lines in a file that never grows without end.

`<root>/logs/agent.log` holds one JSON object a line: `t`, milliseconds since the epoch;
`stream`, `stdout` or `stderr`; `line`, the text. `t` never falls, and at most 500 lines
and 512 KiB have the same one, so that who reads by it, page by page, gets past any
instant. Three files of 10 MiB are kept, the older ones as `agent.log.1` and
`agent.log.2`.

The module is imported by each supervisor and therefore needs the standard library only.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from io import FileIO
from json.encoder import encode_basestring

__all__ = ["AgentLog", "LineSplitter", "RotatingFile", "Tail"]

_MAX_LINE = 64 * 1024
_MAX_FILE = 10 * 1024 * 1024
_FILES = 3
_TAIL = 4 * 1024
_ADD = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
    | os.O_CLOEXEC
)
# Of one instant.
_MOST_LINES = 500
_MOST_BYTES = 512 * 1024


class LineSplitter:
    """Cuts output into lines of bounded length. Pure.

    Args:
        max_line: Bytes after which a line is split.

    Thread safety: one thread at a time.
    """

    def __init__(self, max_line: int = _MAX_LINE) -> None:
        self._max_line = max_line
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the lines they completed.

        Bytes that are not UTF-8 are replaced; the ends of lines are left out.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        found: list[str] = []
        for line in lines:
            *pieces, last = self._split(line)
            found += map(_text, pieces)
            found.append(_text(last.removesuffix(b"\r")))
        *pieces, self._rest = self._split(rest)
        return [*found, *map(_text, pieces)]

    def finish(self) -> list[str]:
        """Return what is left, for the output has ended."""
        rest, self._rest = self._rest, b""
        return [_text(rest)] if rest else []

    def _split(self, line: bytes) -> list[bytes]:
        """Return pieces of at most `max_line` bytes, no character cut if it is whole."""
        pieces = []
        while len(line) > self._max_line:
            end = self._max_line
            while end > self._max_line - 4 and end > 1 and line[end] & 0xC0 == 0x80:
                end -= 1
            pieces.append(line[:end])
            line = line[end:]
        return [*pieces, line]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


class Tail:
    """The last bytes of some output.

    Args:
        size: How many bytes are kept.
    """

    def __init__(self, size: int = _TAIL) -> None:
        self._size = size
        self._data = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        self._data = (self._data + data[-self._size :])[-self._size :]

    @property
    def text(self) -> str:
        """What is kept, as text; bytes that are no text are left out."""
        return self._data.decode("utf-8", "ignore")


class RotatingFile:
    """A file to which whole records are added; full ones move aside.

    An output that cannot be written (disk full) is dropped: the program whose output it
    is must not stop for that. Nor is it written to anything but a file, whatever that
    program puts in its place.

    Args:
        path: The newest file.
        max_bytes: Size at which a new one is begun.
        files: How many are kept, the newest included.

    Thread safety: one thread at a time.
    """

    def __init__(
        self, path: str, *, max_bytes: int = _MAX_FILE, files: int = _FILES
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._file: FileIO | None = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Add records as one piece, in a new file if they do not fit."""
        try:
            if self._file is None or self._size + len(data) > self._max_bytes:
                self._next_file(len(data))
            if self._file is not None:
                self._size += self._file.write(data)
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; a later `write` opens it again. Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_file(self, size: int) -> None:
        self.close()
        file, found = _open(self._path)
        if found and found + size > self._max_bytes:
            file.close()
            for number in range(self._files - 1, 0, -1):
                older = f"{self._path}.{number}"
                newer = f"{self._path}.{number - 1}" if number > 1 else self._path
                if os.path.lexists(newer):
                    os.replace(newer, older)
            file, found = _open(self._path)
        self._file, self._size = file, found


def _open(path: str) -> tuple[FileIO, int]:
    """Open a file to add to it; return it and its size.

    Raises:
        OSError: It cannot be opened, or is no file: a link is not followed, and no
            reader of a pipe waited for.
    """
    fd = os.open(path, _ADD, 0o666)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise OSError(f"{path} is not a file")
    return FileIO(fd, "ab"), about.st_size


class AgentLog:
    """The log of one agent: lines in files, and the last of its output in memory.

    Args:
        path: Where `agent.log` is.
        wall_clock: Seconds since the epoch.

    Thread safety: one thread at a time.
    """

    def __init__(self, path: str, wall_clock: Callable[[], float] = time.time) -> None:
        self._file = RotatingFile(path)
        self._wall_clock = wall_clock
        self._splitters: dict[str, LineSplitter] = {}
        self._tail = Tail()
        self._last = 0  # instant of the last line, how many lines have it, how long
        self._count = 0
        self._size = 0

    @property
    def tail(self) -> str:
        """The last 4 KiB of output since `start`."""
        return self._tail.text

    def start(self) -> None:
        """Begin a new run of the agent, with an empty tail."""
        self.finish()
        self._tail = Tail()

    def feed(self, stream: str, data: bytes) -> None:
        """Take output as it came.

        Args:
            stream: `stdout` or `stderr`.
            data: Any bytes.
        """
        self._tail.feed(data)
        splitter = self._splitters.setdefault(stream, LineSplitter())
        self._write(stream, splitter.feed(data))

    def note(self, line: str) -> None:
        """Add a line of the platform's own, also to the tail."""
        data = f"{line}\n".encode()
        self._tail.feed(data)
        # Not to the end of a line that the agent has begun.
        self._write("stderr", LineSplitter().feed(data))

    def finish(self) -> None:
        """Write what is left of unfinished lines."""
        for stream, splitter in self._splitters.items():
            self._write(stream, splitter.finish())

    def close(self) -> None:
        """Finish, and close the file."""
        self.finish()
        self._file.close()

    def _write(self, stream: str, lines: list[str]) -> None:
        if lines:
            now = int(self._wall_clock() * 1000)
            texts = (encode_basestring(line).encode() for line in lines)
            records = (
                b'{"t": %d, "stream": "%b", "line": %b}\n'
                % (self._instant(now, len(text)), stream.encode(), text)
                for text in texts
            )
            self._file.write(b"".join(records))

    def _instant(self, now: int, size: int) -> int:
        """Return the instant of the next line: `now`, or the next with room for it."""
        full = self._count == _MOST_LINES or self._size + size > _MOST_BYTES
        if now > self._last or full:
            self._last = max(now, self._last + 1)
            self._count = self._size = 0
        self._count += 1
        self._size += size
        return self._last
