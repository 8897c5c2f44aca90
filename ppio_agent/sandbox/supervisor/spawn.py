"""Start a program of the sandbox, so that it never outlives its supervisor.

Written on `fork` and `exec` alone: the supervisor has one thread, so that a child may
run Python between the two, and does without the cost of importing `subprocess`. A child
that needs no `exec`, for all it would load is loaded already, leaves the supervisor by
`Forked`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, NoReturn, TypeVar

__all__ = [
    "READY_FD",
    "Child",
    "Command",
    "Forked",
    "Limits",
    "Start",
    "become_dumpable",
    "become_opaque",
    "become_subreaper",
    "name_process",
    "or_end",
    "spawn",
]

READY_FD = 3
"""The descriptor on which an agent says that it listens."""

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# Descriptors of a child are kept from here on until all else is closed: above those
# that it is to have, below every limit.
_ASIDE = 64

# For how long a child may take to run its program, and when it is looked at.
_START_LIMIT = 5.0
_START_LOOK = 0.05

_T = TypeVar("_T")
_libc = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    """What each process of the sandbox may use.

    Attributes:
        open_files: Descriptors.
        file_bytes: Size of a file it writes.
        cpus: The CPUs it may run on; empty leaves them as they are.
    """

    open_files: int = 4096
    file_bytes: int = 1024 * 1024 * 1024
    cpus: tuple[int, ...] = ()

    def apply(self) -> None:
        """Limit the calling process and its later children."""
        for kind, most in (
            (resource.RLIMIT_NOFILE, self.open_files),
            (resource.RLIMIT_FSIZE, self.file_bytes),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                most = min(most, hard)  # noqa: PLW2901 - never above what is allowed
            resource.setrlimit(kind, (most, most))
        if self.cpus:
            os.sched_setaffinity(0, self.cpus)


class Command(NamedTuple):
    """A program to start.

    Attributes:
        argv: Program, looked up in the `PATH` of `env`, and arguments.
        env: Its whole environment.
        cwd: Where it starts.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str


class Child(NamedTuple):
    """A started program and the supervisor's ends of its pipes.

    Attributes:
        pid: Its process, leader of its own process group.
        stdin: Where it reads from; None if that is nothing.
        stdout: Its output, not blocking.
        stderr: Its errors, not blocking.
        ready: Where it may say that it is ready, not blocking; None if not asked for.
    """

    pid: int
    stdin: int | None
    stdout: int
    stderr: int
    ready: int | None


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def become_subreaper() -> None:
    """Make this process the parent of all its descendants that lose their own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def become_dumpable() -> None:
    """Let this process be seen and traced by its user again, as any program is."""
    _prctl(_PR_SET_DUMPABLE, 1)


def become_opaque() -> None:
    """Let nobody of the same user look into this process or its forks, on Linux."""
    _prctl(_PR_SET_DUMPABLE, 0)


def name_process(name: str) -> None:
    """Give this process the name that `ps` and `top` show, of 15 letters at most."""
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


class Start(NamedTuple):
    """What a forked child needs to become a program.

    Attributes:
        command: The program.
        limits: What it may use.
        files: What is to be its descriptors 0, 1, 2 and `READY_FD`; None leaves 0 as
            it is, and gives no `READY_FD`.
        failure: Where it reports why it could not start; closed when it has.
        parent: The supervisor's process.
    """

    command: Command
    limits: Limits
    files: tuple[int | None, ...]
    failure: int
    parent: int

    def aside(self) -> Start:
        """Return it with descriptors that nobody else knows of, and so closes."""

        def move(fd: int) -> int:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE)

        files = tuple(fd if fd is None else move(fd) for fd in self.files)
        return self._replace(files=files, failure=move(self.failure))

    def settle(self) -> None:
        """Make the calling child what the program expects to find around it.

        Raises:
            OSError: It cannot be; `errno` says why.
        """
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self.parent:  # it died before the line above
            os._exit(127)
        os.setpgid(0, 0)
        # No source is overwritten before it is used: `READY_FD` is taken in the
        # supervisor (see `Supervisor`), or they are aside.
        for target, fd in enumerate(self.files):
            if fd is not None:
                os.dup2(fd, target)
        # Python ignores some signals, and whoever started the platform others.
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        self.limits.apply()
        os.chdir(self.command.cwd)


class Forked(BaseException):
    """Raised in a child that is to become a program without `exec`.

    It takes `start` up to the bottom of the stack, so that nothing of the supervisor is
    left when the program begins. Nobody on the way may catch it.
    """

    def __init__(self, start: Start) -> None:
        super().__init__("a forked child leaves its supervisor")
        self.start = start


class _Pipes:
    """Pipes between this process and a child, closed as a whole when a start fails."""

    def __init__(self) -> None:
        self._ours: list[int] = []
        self._theirs: list[int] = []

    def inward(self) -> tuple[int, int]:
        """Return (ours, theirs) of a pipe that the child writes."""
        ours, theirs = os.pipe()
        self._ours.append(ours)
        self._theirs.append(theirs)
        return ours, theirs

    def outward(self) -> tuple[int, int]:
        """Return (ours, theirs) of a pipe that the child reads."""
        theirs, ours = os.pipe()
        self._ours.append(ours)
        self._theirs.append(theirs)
        return ours, theirs

    def close_theirs(self) -> None:
        while self._theirs:
            os.close(self._theirs.pop())

    def close(self) -> None:
        self.close_theirs()
        while self._ours:
            os.close(self._ours.pop())


def spawn(
    command: Command,
    limits: Limits,
    *,
    stdin: bool = False,
    ready: bool = False,
    fork: bool = False,
) -> Child:
    """Start a program in a process group of its own.

    Args:
        command: What to start.
        limits: What it may use.
        stdin: Whether its input is a pipe that stays open; else it is empty.
        ready: Whether it gets a pipe as `READY_FD`.
        fork: Whether it does without `exec`; see `Forked`.

    Raises:
        OSError: It could not be started; `errno` says why, as in ENOENT. A child that
            was made all the same is killed, and still to be reaped.
        Forked: In the child, with `fork`.
    """
    pipes = _Pipes()
    try:
        stdout, to_stdout = pipes.inward()
        stderr, to_stderr = pipes.inward()
        failure, to_failure = pipes.inward()
        stdin_end, from_stdin = pipes.outward() if stdin else (None, None)
        ready_end, to_ready = pipes.inward() if ready else (None, None)
        files = (from_stdin, to_stdout, to_stderr, to_ready)
        start = Start(command, limits, files, to_failure, os.getpid())
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)  # no signal of the child is the supervisor's
            if fork:
                raise Forked(or_end(start.aside, to_failure))
            or_end(partial(_exec, start), to_failure)
        pipes.close_theirs()
        _raise_failure(pid, failure)
    except BaseException:
        pipes.close()
        raise
    os.close(failure)
    for fd in (stdout, stderr, ready_end):
        if fd is not None:
            os.set_blocking(fd, False)
    return Child(pid, stdin_end, stdout, stderr, ready_end)


def _raise_failure(pid: int, failure: int) -> None:
    """Wait, not for long, until the child runs its program; raise why it does not."""
    poll = select.poll()
    poll.register(failure, select.POLLIN)
    end = time.monotonic() + _START_LIMIT
    while not poll.poll(_START_LOOK * 1000):
        if time.monotonic() > end:
            number = errno.ETIMEDOUT
            break
        # Another program of the sandbox may have stopped it before it is one.
        os.kill(pid, signal.SIGCONT)
    else:
        report = os.read(failure, 64)  # its end is closed by a successful exec
        if not report:
            return
        number = int(report)
    # Whoever reaps all children takes note of its end: that cannot be waited for.
    os.kill(pid, signal.SIGKILL)
    raise OSError(number, os.strerror(number))


def or_end(step: Callable[[], _T], failure: int) -> _T:
    """Return what a step of a forked child returns.

    If it fails, the reason is reported at `failure` and the child ends: whatever it
    would do instead is the supervisor's to do.
    """
    try:
        return step()
    except OSError as exc:
        os.write(failure, b"%d" % (exc.errno or errno.EINVAL))
    except ValueError:  # a zero byte in an argument
        os.write(failure, b"%d" % errno.EINVAL)
    except BaseException:  # noqa: BLE001 - it must not run on as a second supervisor
        os.write(failure, b"%d" % errno.ECANCELED)
    os._exit(127)


def _exec(start: Start) -> NoReturn:
    start.settle()
    # All other descriptors close by themselves.
    argv = list(start.command.argv)
    os.execvpe(argv[0], argv, start.command.env)  # noqa: S606 - a shell is not wanted
