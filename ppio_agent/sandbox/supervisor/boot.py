"""What a supervisor is told first: the sandbox it is to be, and then its secrets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["OWN_MEMORY", "Boot", "Secrets", "choose_cpus"]

OWN_MEMORY = 64 * 1024 * 1024
"""What a supervisor may take, above what it has at its start, on the platform's account."""


class Boot(NamedTuple):
    """The first message: what the sandbox is.

    Attributes:
        sandbox_id: Value of the marker.
        orphan_grace: Seconds it is kept without a platform.
        env: Whole environment of its processes.
        home: Home folder.
        app: The template's files.
        tmp: Folder for temporary files.
        confined: Whether those three, known inside as `/home/user`, `/app` and `/tmp`,
            are all of the files that may be asked for; otherwise a path means what
            it says.
        log: Path of the agent's log.
        entrypoint: The agent's program below `app`; None without one.
        python: Interpreter that runs it.
        port: The port it is asked to listen on.
        start_timeout: Seconds in which it is expected to.
        memory_bytes: Limit of all processes together.
        cpus: How many CPUs may be used.
        command_deadline: `enforce` kills a command at the time limit of its caller.
        pinned: Whether that many CPUs are chosen for it, for nothing else keeps it to
            them.
    """

    sandbox_id: str
    orphan_grace: float
    env: Mapping[str, str]
    home: str
    app: str
    tmp: str
    confined: bool
    log: str
    entrypoint: str | None
    python: str
    port: int
    start_timeout: float
    memory_bytes: int
    cpus: float
    command_deadline: str = "off"
    pinned: bool = True


class Secrets(NamedTuple):
    """The second message: what nobody inside may know.

    It is read when the agent has been started, which may be a fork of the supervisor
    and have all of its memory.

    Attributes:
        adoption: What a platform says to take the sandbox over.
        access_token: Of envd; None is no check.
    """

    adoption: str
    access_token: str | None


def choose_cpus(cpus: float) -> tuple[int, ...]:
    """Return which CPUs to run on; empty for all. Sandboxes begin at different ones."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    count = math.ceil(cpus)
    if count >= len(allowed):
        return ()
    first = os.getpid() % len(allowed)
    return tuple((allowed + allowed)[first : first + count])
