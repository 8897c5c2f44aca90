"""A running program of the sandbox: its output is read for as long as it lives.

Nobody who reads the output can hold it back: what a listener does not take is lost to
the listener, never a reason for the program to wait, and a pipe is never closed under
it.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from .loop import READ, WRITE, Loop
from .spawn import Child

__all__ = ["ExitStatus", "Listener", "Program"]

_CHUNK = 65536

Taken = Callable[[int], object]


class ExitStatus(NamedTuple):
    """How a program ended: by an exit code or by a signal."""

    code: int | None
    signal: int | None

    @classmethod
    def of(cls, wait_status: int) -> ExitStatus:
        """Return what a status of `waitpid` says."""
        code = os.waitstatus_to_exitcode(wait_status)
        return cls(None, -code) if code < 0 else cls(code, None)

    def __str__(self) -> str:
        if self.signal is None:
            return f"exit status {self.code}"
        name = signal.strsignal(self.signal) or f"number {self.signal}"
        return f"signal: {name.lower()}"


class Listener(Protocol):
    """Who is told of a program's output and end."""

    def output(self, stream: str, data: bytes) -> None:
        """Take output of `stdout` or `stderr`."""

    def ended(self, status: ExitStatus) -> None:
        """Take note of the end; all output it left was given before."""


class Program:
    """A started child, its pipes, and those who listen to it.

    Args:
        loop: Where its pipes are watched.
        child: What was started; its descriptors are owned from now on.

    Thread safety: one thread at a time.
    """

    def __init__(self, loop: Loop, child: Child) -> None:
        self.pid = child.pid
        self._loop = loop
        self._stdin = child.stdin
        self._input: deque[tuple[memoryview, Taken]] = deque()
        self._input_over = child.stdin is None
        self._listeners: list[Listener] = []
        self._pipes = {"stdout": child.stdout, "stderr": child.stderr}
        if child.stdin is not None:
            os.set_blocking(child.stdin, False)
        for stream, fd in self._pipes.items():
            loop.watch(fd, READ, partial(self._ready, stream, fd))

    def attach(self, listener: Listener) -> None:
        """Tell `listener` of all output from now on, and of the end."""
        self._listeners.append(listener)

    def detach(self, listener: Listener) -> None:
        """Tell `listener` no more. Idempotent."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    @property
    def pending_input(self) -> int:
        """Bytes of input that the program has not taken yet."""
        return sum(len(left) for left, _ in self._input)

    def write(self, data: bytes, taken: Taken) -> bool:
        """Give the program input, behind what it was given before.

        Args:
            data: The input.
            taken: Told once how many bytes of it the program's pipe did not take; not
                called if the answer is False.

        Returns:
            False if the input is closed.
        """
        if self._stdin is None or self._input_over:
            return False
        self._input.append((memoryview(data), taken))
        if len(self._input) == 1:
            self._feed(self._stdin)
        return True

    def close_stdin(self) -> None:
        """Let the program read the end of its input after all of it. Idempotent."""
        self._input_over = True
        if not self._input:
            self._drop_input()

    def _feed(self, fd: int) -> None:
        while self._input:
            left, taken = self._input[0]
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:
                break
            except OSError:  # it has closed its end
                self._drop_input()
                return
            if left:
                self._input[0] = (left, taken)
                break
            self._input.popleft()
            taken(0)
        if self._input:
            self._loop.watch(fd, WRITE, lambda _: self._feed(fd))
            return
        self._loop.unwatch(fd)
        if self._input_over:
            self._drop_input()

    def _drop_input(self) -> None:
        """Close the input, whatever is still to be written."""
        if self._stdin is not None:
            self._loop.unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = None
        while self._input:
            left, taken = self._input.popleft()
            taken(len(left))

    def reaped(self, wait_status: int) -> None:
        """Take note that the program has ended.

        Its children may still hold the pipes: what they write is read on, and told to
        listeners that stay attached.
        """
        self._drop_input()
        for stream, fd in list(self._pipes.items()):
            # A bound, for a child that writes without end would keep us here.
            for _ in range(16):
                if not self._read(stream, fd):
                    break
        status = ExitStatus.of(wait_status)
        for listener in list(self._listeners):
            listener.ended(status)

    def _ready(self, stream: str, fd: int, _: int) -> None:
        self._read(stream, fd)

    def _read(self, stream: str, fd: int) -> bool:
        """Read once; return whether there may be more at once."""
        if stream not in self._pipes:
            return False
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        if not data:
            del self._pipes[stream]
            self._loop.unwatch(fd)
            os.close(fd)
            return False
        for listener in list(self._listeners):
            listener.output(stream, data)
        return True
