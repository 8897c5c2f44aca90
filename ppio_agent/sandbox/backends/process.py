"""Sandboxes as plain processes of this user: a convenience, not a security boundary.

Each has a supervisor process that owns everything in it: a fork of the zygote, or, as
long as there is none, started by exec.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from ppio_agent._util.fork import no_fork
from ppio_agent.exceptions import SandboxPlatformError
from ppio_agent.sandbox.supervisor.tree import MARKER

from .base import OnAgent, OnLost, SandboxSpec
from .control_group import ControlGroups
from .handles import ChildProcess, ProcessHandle
from .holds import Blank, Holds
from .layout import Layout
from .line import call, hang_up, listen
from .startup import boot_message, supervisor_command
from .supervised import SupervisedSandbox
from .zygote_client import ZygoteClient

__all__ = ["ProcessBackend"]

_Started = TypeVar("_Started", bound=ProcessHandle | None)

_REMEMBERED_PORTS = 256
# Above those of services, and below those that kernels give, as a rule, to whoever asks
# for any, and to each connection: one of them would be gone when an agent listens late,
# or is started again.
_AGENT_PORTS = range(20_000, 32_768)
_FEW_PORTS = 1000
_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 1000


class ProcessBackend:
    """Starts sandboxes as processes of this user; a `Backend`.

    Args:
        zygote: What it has supervisors forked by; not closed with it. None: by one of
            its own.
        groups: Makes sandboxes their control groups; None: they do without.

    Thread safety: thread-safe.
    """

    name = "process"

    def __init__(
        self,
        zygote: ZygoteClient | None = None,
        *,
        groups: ControlGroups | None = None,
    ) -> None:
        self.zygote = zygote or ZygoteClient()
        self._owns_zygote = zygote is None
        self._holds = Holds(groups)
        # Guards _ports, which were given to agents that may not listen yet.
        self._lock = threading.Lock()
        self._ports: deque[int] = deque(maxlen=_REMEMBERED_PORTS)
        self._range = _agent_ports()

    def check(self, *, allow_internet: bool) -> None:
        """Refuse what this backend cannot do; see `Backend.check`."""
        if not allow_internet:
            raise SandboxPlatformError(
                "the process backend cannot block network access",
                code="not_supported",
                http_status=501,
            )

    def start(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> SupervisedSandbox:
        """Start a sandbox and its agent; see `Backend.start`."""
        layout = Layout(root=spec.root.absolute())
        port = self._free_port()
        return self._holds.start(
            spec,
            partial(self._make, spec, layout),
            boot=boot_message(
                spec,
                env=layout.environment(spec, port=port),
                home=str(layout.home),
                app=str(layout.app),
                tmp=str(layout.tmp),
                log=str(layout.agent_log),
                port=port,
                confined=True,
            ),
            on_agent=on_agent,
            on_lost=on_lost,
            complaints=layout.supervisor_log,
        )

    def adopt(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> SupervisedSandbox:
        """Take over a sandbox of another platform; see `Backend.adopt`."""
        return self._holds.adopt(spec, on_agent=on_agent, on_lost=on_lost)

    def close(self) -> None:
        """Kill, without grace, whatever still runs. Idempotent."""
        self._holds.close()
        if self._owns_zygote:
            self.zygote.close()

    def _make(self, spec: SandboxSpec, layout: Layout) -> Blank:
        layout.write(spec.python or sys.executable)
        sock, process = _launch_by(self.zygote.fork, spec, layout)
        if process is not None:
            return Blank(sock, process)
        # A new socket, for a zygote that was lost may have forked.
        hang_up(sock)
        return Blank(*_launch_by(_exec_supervisor, spec, layout))

    def _free_port(self) -> int:
        """Return a loopback port that nobody has, not even a sandbox yet to listen."""
        with self._lock:
            for _ in range(_TRIES):
                wanted = secrets.choice(self._range)
                if wanted in self._ports or not _is_free(wanted):
                    continue
                self._ports.append(wanted)
                return wanted
        raise SandboxPlatformError("no loopback port is free for an agent")


def _agent_ports() -> range:
    """Return the ports of which agents get theirs."""
    try:
        given = int(_GIVEN_PORTS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):  # not this system
        return _AGENT_PORTS
    ports = _AGENT_PORTS[: max(0, given - _AGENT_PORTS.start)]
    # Where the kernel gives nearly all of them there is no such place: a connection may
    # take the port of an agent before that listens, or between its end and its start.
    return ports if len(ports) >= _FEW_PORTS else _AGENT_PORTS


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _launch_by(
    starter: Callable[[socket.socket, str, Layout], _Started],
    spec: SandboxSpec,
    layout: Layout,
) -> tuple[socket.socket, _Started]:
    """Start a supervisor; return the line to it and its process."""
    with listen(spec.line) as listener:
        # Called before there is anybody, who so finds the platform or its end.
        sock = call(spec.line)
        try:
            process = starter(listener, spec.sandbox_id, layout)
        except BaseException:
            hang_up(sock)
            os.unlink(spec.line.path)
            raise
    return sock, process


def _exec_supervisor(
    listener: socket.socket, sandbox_id: str, layout: Layout
) -> ProcessHandle:
    fd = listener.fileno()
    with open(layout.supervisor_log, "ab") as stderr, no_fork():
        process = subprocess.Popen(
            supervisor_command("ppio_agent.sandbox.supervisor.main", fd),
            cwd=layout.root,
            # The marker lets a sweep find a supervisor, too.
            env={MARKER: sandbox_id, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(fd,),
            start_new_session=True,
        )
    return ChildProcess(process)
