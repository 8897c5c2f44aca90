"""A supervisor's process as its platform holds it, whoever started it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress
from typing import Protocol

__all__ = ["ChildProcess", "ForeignProcess", "PidProcess", "ProcessHandle"]


class ProcessHandle(Protocol):
    """One process, which cannot be mistaken for a later one with its pid."""

    @property
    def pid(self) -> int:
        """Its pid, as this process sees it."""

    def wait(self, timeout: float) -> bool:
        """Return whether it has ended, after at most `timeout` seconds."""

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""

    def close(self) -> None:
        """Let go of it. Idempotent."""


class ChildProcess:
    """A child of this process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """See `ProcessHandle.pid`."""
        return self._process.pid

    def wait(self, timeout: float) -> bool:
        """See `ProcessHandle.wait`; the child is reaped."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """See `ProcessHandle.kill`."""
        self._process.kill()

    def close(self) -> None:
        """See `ProcessHandle.close`."""


class _Descriptor:
    """A descriptor that is closed when the last who uses it has let go of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class ForeignProcess:
    """A process of any parent, by a pidfd.

    Args:
        pidfd: Owned from now on.

    Raises:
        ProcessLookupError: It has ended.
    """

    def __init__(self, pidfd: int) -> None:
        self._pidfd: _Descriptor | None = _Descriptor(pidfd)
        self.pid = _pid_of(pidfd)
        if self.pid <= 0:
            self.close()
            raise ProcessLookupError("the process has ended")

    def wait(self, timeout: float) -> bool:
        """See `ProcessHandle.wait`."""
        pidfd = self._pidfd  # nobody's else as long as it is held here
        if pidfd is None:
            return True
        poll = select.poll()
        poll.register(pidfd.fd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def kill(self) -> None:
        """See `ProcessHandle.kill`."""
        pidfd = self._pidfd
        if pidfd is not None:
            with suppress(OSError):  # it has ended
                signal.pidfd_send_signal(pidfd.fd, signal.SIGKILL)

    def close(self) -> None:
        """See `ProcessHandle.close`."""
        self._pidfd = None


class PidProcess:
    """A process of any parent where there are no pidfds, by pid and start time."""

    def __init__(self, pid: int) -> None:
        import psutil

        self.pid = pid
        self._process = psutil.Process(pid)

    def wait(self, timeout: float) -> bool:
        """See `ProcessHandle.wait`."""
        import psutil

        try:
            self._process.wait(timeout)
        except psutil.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """See `ProcessHandle.kill`."""
        import psutil

        with suppress(psutil.NoSuchProcess):
            self._process.kill()

    def close(self) -> None:
        """See `ProcessHandle.close`."""


def _pid_of(pidfd: int) -> int:
    """Return the pid behind a pidfd in this process's namespace; -1 if it has ended."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name == "Pid":
                return int(value)
    return -1
