"""What a supervisor is told first: the sandbox it is to be."""

from __future__ import annotations

import math
import os
import select
import socket
from collections.abc import Mapping
from typing import NamedTuple

from .channel import ChannelError, receive_one

__all__ = ["Boot", "choose_cpus", "hold_platform", "read_boot"]


class Boot(NamedTuple):
    """The first message: what the sandbox is.

    Attributes:
        sandbox_id: Value of the marker.
        env: Whole environment of its processes.
        home: Home folder.
        app: The template's files.
        log: Path of the agent's log.
        entrypoint: The agent's program below `app`; None without one.
        python: Interpreter that runs it.
        port: The port it is asked to listen on.
        start_timeout: Seconds in which it is expected to.
        memory_bytes: Limit of all processes together.
        cpus: How many CPUs may be used.
        access_token: Of envd; None is no check.
    """

    sandbox_id: str
    env: Mapping[str, str]
    home: str
    app: str
    log: str
    entrypoint: str | None
    python: str
    port: int
    start_timeout: float
    memory_bytes: int
    cpus: float
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


def hold_platform(pid: int) -> int | None:
    """Return a handle that is readable when the platform, the parent, has ended.

    None where the system has no such handles: the end of the line tells it there.

    Raises:
        SystemExit: It has ended already.
    """
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        handle = None
    # Asked last: while it is the parent nobody else has its pid.
    if os.getppid() != pid:
        raise SystemExit("the platform has ended")
    return handle


def read_boot(line: socket.socket, platform: int | None) -> Boot:
    """Wait for the first message, and take nothing that comes behind it.

    Args:
        line: The line to the platform.
        platform: Handle of its process, for a fork of it may hold the line open.

    Raises:
        ChannelError: There is none, or it is not of that kind.
        SystemExit: The platform has ended.
    """
    if platform is not None:
        ready, _, _ = select.select([line.fileno(), platform], [], [])
        if platform in ready:
            raise SystemExit("the platform has ended")
    message = receive_one(line)
    try:
        return Boot(**message["boot"])
    except (KeyError, TypeError) as exc:
        raise ChannelError("the first message does not say what to be") from exc
