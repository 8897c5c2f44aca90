"""A supervisor that is the first process of its own namespaces.

All that is in the sandbox runs as the user that the supervisor is, too. That it cannot
be traced, read or ended by them is seen to here, before it starts any of them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
from collections.abc import Collection
from functools import partial

from .main import main as supervise
from .marker import Marker
from .spawn import become_opaque
from .tree import MARKER

__all__ = ["counts_by_namespace", "main"]

_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_ASIDE = 64
_MAX_PROCESSES = 256


def main(fd: int, alive: int, fresh: Collection[str] | None = None) -> None:
    """Supervise one sandbox until it has ended; in a fork, be its agent.

    Args:
        fd: The listening socket at which the platform has called.
        alive: A pipe that nobody writes: its end tells those outside that the sandbox
            has ended, and so it is kept open, but by no program of the sandbox.
        fresh: The modules that this interpreter had loaded when it had started, if it
            is to load what agents load, too, and to say so on its standard output.

    Raises:
        OSError: It would not be protected.
    """
    # Read while that is allowed.
    marker = None if fresh is None else Marker(os.environ[MARKER])
    become_opaque()
    _leave_keyring()
    if counts_by_namespace(os.uname().release):
        resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))
    # A first process gets, from inside, only signals that it handles.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.fcntl(alive, fcntl.F_DUPFD_CLOEXEC, _ASIDE)
    os.close(alive)
    if fresh is None:
        supervise(fd)
        return
    from .forked import preload, run

    warm = preload(fresh)
    _say_loaded()
    run(partial(supervise, fd, warm, marker))


def _say_loaded() -> None:
    os.write(1, b".")
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


def _leave_keyring() -> None:
    """Give up the keys of the session in which the platform was started.

    A kernel without keys refuses, and nothing is to be done.
    """
    keyctl = _KEYCTL.get(os.uname().machine)
    if keyctl is not None:
        ctypes.CDLL(None).syscall(keyctl, _KEYCTL_JOIN_SESSION_KEYRING, None)


def counts_by_namespace(release: str) -> bool:
    """Return whether a kernel counts the processes of a user in each namespace alone.

    An older one would count those of the platform's user on the whole machine.
    """
    major, _, rest = release.partition(".")
    minor = rest.partition(".")[0]
    return major.isdigit() and minor.isdigit() and (int(major), int(minor)) >= (5, 14)
