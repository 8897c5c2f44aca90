"""A running program of the sandbox: its output is read for as long as it lives.

Nobody who reads the output can hold it back: what a listener does not take is lost to
the listener, never a reason for the program to wait, and a pipe is never closed under
it.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import NamedTuple, Protocol

from .loop import READ, Loop
from .spawn import Child

__all__ = ["ExitStatus", "Listener", "Program"]

_CHUNK = 65536


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
        self._listeners: list[Listener] = []
        self._pipes = {"stdout": child.stdout, "stderr": child.stderr}
        for stream, fd in self._pipes.items():
            loop.watch(fd, READ, partial(self._ready, stream, fd))

    def attach(self, listener: Listener) -> None:
        """Tell `listener` of all output from now on, and of the end."""
        self._listeners.append(listener)

    def detach(self, listener: Listener) -> None:
        """Tell `listener` no more. Idempotent."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def reaped(self, wait_status: int) -> None:
        """Take note that the program has ended.

        Its children may still hold the pipes: what they write is read on, and told to
        listeners that stay attached.
        """
        if self._stdin is not None:
            os.close(self._stdin)
            self._stdin = None
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
