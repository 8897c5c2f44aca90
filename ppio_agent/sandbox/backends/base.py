"""What the platform asks of a backend: start a sandbox, then hold on to it.

A backend knows processes, descriptors and limits. It knows nothing of tenants, time to
live, templates or storage, which are the platform's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from attrs import field, frozen

from ppio_agent.sandbox.supervisor.ports import AGENT_PORT, ENVD_PORT

__all__ = [
    "AGENT_PORT",
    "ENVD_PORT",
    "AgentPhase",
    "AgentStatus",
    "Backend",
    "LineAddress",
    "LostReason",
    "OnAgent",
    "OnLost",
    "RunningSandbox",
    "SandboxSpec",
    "Usage",
]

AgentPhase = Literal["none", "starting", "ready", "exited"]

LostReason = Literal["crashed", "memory"]
"""Why a sandbox ended unasked; `memory` is any limit on its processes."""


@frozen(kw_only=True)
class LineAddress:
    """Where a platform reaches a supervisor, its own or one that it takes over.

    Attributes:
        path: Of the unix socket; 107 bytes at most.
        secret: What a platform says to take the sandbox over.
    """

    path: str
    secret: str = field(repr=False)


@frozen(kw_only=True)
class SandboxSpec:
    """What a sandbox is to be.

    Attributes:
        sandbox_id: Its id; also the value of the marker `PPIO_SANDBOX_ID`.
        template_id: What it is made from.
        root: Its own folder. The caller has made it and filled `app/` in it; the
            backend adds `home/`, `tmp/`, `bin/` and `logs/`, and removes nothing.
        line: Where its supervisor is reached; the backend makes the socket, and
            removes it when the sandbox is gone.
        entrypoint: The agent's program, relative to `app/`; None is a sandbox
            without an agent.
        env: Further environment of every process in the sandbox.
        start_timeout: Seconds in which the agent is expected to listen.
        memory_mb: Memory of all its processes together, in MiB.
        cpus: CPUs it may use.
        access_token: What callers of envd must show; None is no check.
        allow_internet: Whether it may reach the network.
        orphan_grace: Seconds it outlives a platform that crashed.
        command_deadline: `enforce` kills a command at the time limit of its caller.
        python: Interpreter of the agent, and `python` inside, in an environment of
            its own; None: that of the platform.
    """

    sandbox_id: str
    template_id: str
    root: Path
    line: LineAddress
    entrypoint: str | None = None
    env: Mapping[str, str] = field(factory=dict, repr=False)
    start_timeout: float = 60.0
    memory_mb: int = 1024
    cpus: float = 1.0
    access_token: str | None = field(default=None, repr=False)
    allow_internet: bool = True
    orphan_grace: float = 0.0
    command_deadline: str = "off"
    python: str | None = None


@frozen(kw_only=True)
class AgentStatus:
    """How the agent of a sandbox is.

    Attributes:
        phase: `none` without an agent; `exited` does not end the sandbox.
        exit_code: Exit status; None while it lives or when a signal ended it.
        signal: Number of the signal that ended it, if one did.
        started_at: When its process was made.
        ready_at: When it was first seen to listen.
        log_tail: The last 4 KiB of its output; filled when it has exited.
        pid: Its process, while it lives.
    """

    phase: AgentPhase = "none"
    exit_code: int | None = None
    signal: int | None = None
    started_at: datetime | None = None
    ready_at: datetime | None = None
    log_tail: str = field(default="", repr=False)
    pid: int | None = None


@frozen(kw_only=True)
class Usage:
    """What the processes of a sandbox use, the supervisor itself left out.

    Attributes:
        cpu_seconds: CPU time so far, ended processes included; never falls.
        rss_bytes: Resident memory now.
        processes: How many there are now.
    """

    cpu_seconds: float
    rss_bytes: int
    processes: int


OnAgent = Callable[[AgentStatus], None]
OnLost = Callable[[LostReason], None]


class RunningSandbox(Protocol):
    """A hold on one sandbox whose supervisor is up.

    Thread safety: thread-safe.
    """

    @property
    def pid(self) -> int:
        """The supervisor's process."""

    @property
    def agent(self) -> AgentStatus:
        """The agent as last reported."""

    @property
    def paused(self) -> bool:
        """Whether its processes are frozen."""

    def dial(self, port: int, timeout: float) -> socket.socket:
        """Connect to a logical port: `AGENT_PORT`, `ENVD_PORT` or a real one.

        Returns:
            A connected stream socket with no timeout set, owned by the caller. Of
            family AF_UNIX for envd, else AF_INET or AF_INET6.

        Raises:
            ConnectionRefusedError: Nothing of this sandbox listens there.
            TimeoutError: No connection within `timeout` seconds.

        Blocking: at most `timeout` seconds.
        """

    def pause(self) -> None:
        """Freeze every process of the sandbox; the supervisor stays awake.

        Raises:
            SandboxStateError: The sandbox is gone or does not answer.
        """

    def resume(self) -> None:
        """Let the processes of the sandbox go on.

        Raises:
            SandboxStateError: The sandbox is gone or does not answer.
        """

    def usage(self, *, fresh: bool = True) -> Usage:
        """Measure the sandbox.

        Args:
            fresh: Whether to do so now; otherwise an idle one is not asked again, and
                what it has begun to do shows up to two seconds later.

        Raises:
            SandboxStateError: The sandbox is gone or does not answer.
        """

    def kill(self, grace: float) -> None:
        """End the sandbox: SIGTERM to all of it, SIGKILL after `grace` seconds.

        Returns when its last process, the supervisor included, is gone. Idempotent;
        a further call may shorten the grace of one under way. `on_lost` is not
        called for it.

        Blocking: about `grace` seconds at most.
        """


class Backend(Protocol):
    """Starts sandboxes.

    Thread safety: thread-safe.
    """

    @property
    def name(self) -> str:
        """The name by which configuration selects it."""

    def check(self, *, allow_internet: bool) -> None:
        """Refuse what this backend cannot do, before anything is made for it.

        Raises:
            SandboxPlatformError: 501, with what can be done instead.
        """

    def start(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> RunningSandbox:
        """Start a sandbox and its agent, and return when its supervisor is ready.

        Both callbacks run on a thread of the sandbox, one at a time. They must not
        wait for this sandbox (no `dial`, `pause`, `resume`, `usage`, `kill` of it from
        `on_agent`); they may be called before `start` has returned.

        Args:
            spec: What to start.
            on_agent: Told each change of the agent.
            on_lost: Told once when the sandbox ended unasked; by then no process
                of it is left.

        Raises:
            SandboxStartError: The supervisor did not come up; no process is left. The
                message ends with the last 4 KiB of its output.

        Blocking: at most 10 seconds.
        """

    def adopt(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> RunningSandbox:
        """Take over a sandbox that a platform has left behind; as it is, it goes on.

        Args:
            spec: What it was started as. Only its id, `line`, `root` and
                `entrypoint` count.
            on_agent: As of `start`.
            on_lost: As of `start`.

        Raises:
            SandboxStartError: Nobody answers; what may be left of it is the
                caller's to clear away.

        Blocking: at most 2 seconds.
        """

    def close(self) -> None:
        """Kill, without grace, whatever still runs. Idempotent."""
