"""Sandboxes as plain processes of this user: a convenience, not a security boundary.

Each has a supervisor process that owns everything in it, started here by exec.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.supervisor.tree import MARKER

from .base import OnAgent, OnLost, SandboxSpec
from .layout import Layout
from .process_sandbox import ProcessSandbox

__all__ = ["ProcessBackend"]

_START_LIMIT = 10.0
_SEND_LIMIT = 5
_TAIL = 4096

# Isolated and without `site`: neither the environment nor the files of the user change
# what a supervisor is, and it starts in half the time.
_BOOTSTRAP = (
    "import sys; sys.path += sys.argv[3:];"
    " from ppio_agent.sandbox.supervisor.main import main;"
    " main(*map(int, sys.argv[1:3]))"
)
_NEEDED = ("ppio_agent", "h11", "attrs", "psutil")


class ProcessBackend:
    """Starts sandboxes as processes of this user; a `Backend`.

    Thread safety: thread-safe.
    """

    name = "process"

    def __init__(self) -> None:
        # Guards _running and _closed.
        self._lock = threading.Lock()
        self._running: dict[ProcessSandbox, int] = {}
        self._closed = False
        self._numbers = itertools.count(1)

    def start(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> ProcessSandbox:
        """Start a sandbox and its agent; see `Backend.start`."""
        layout = Layout(root=spec.root.absolute())
        try:
            layout.write(sys.executable)
            sandbox, port = self._launch(spec, layout, on_agent, on_lost)
        except OSError as exc:
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} could not be started: {exc}"
            ) from exc
        boot = _boot(spec, layout, port)
        thread_name = f"ppio-sandbox-{next(self._numbers)}"
        try:
            up = sandbox.start(boot, timeout=_START_LIMIT, thread_name=thread_name)
        except BaseException:  # an interrupt leaves no sandbox that nobody holds
            sandbox.begin_kill(0.0)
            raise
        if not up:
            sandbox.kill(0.0)
            raise SandboxStartError(
                f"the supervisor of sandbox {spec.sandbox_id} did not come up:"
                f" {_tail(layout.supervisor_log)}"
            )
        return sandbox

    def close(self) -> None:
        """Kill, without grace, whatever still runs. Idempotent."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        for sandbox in running:
            sandbox.begin_kill(0.0)
        for sandbox in running:
            sandbox.kill(0.0)

    def _launch(
        self, spec: SandboxSpec, layout: Layout, on_agent: OnAgent, on_lost: OnLost
    ) -> tuple[ProcessSandbox, int]:
        with ExitStack() as on_error:
            ours, theirs = socket.socketpair()
            on_error.callback(ours.close)
            with theirs:
                process = _exec_supervisor(theirs.fileno(), spec.sandbox_id, layout)
            on_error.callback(process.wait)
            on_error.callback(process.kill)
            # A supervisor that does not read must not hold its callers for ever.
            limit = struct.pack("ll", _SEND_LIMIT, 0)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            sandbox = ProcessSandbox(
                spec,
                process,
                ours,
                on_agent=on_agent,
                on_lost=on_lost,
                on_gone=self._forget,
            )
            with self._lock:
                if self._closed:
                    raise SandboxStartError("the backend is closed")
                port = _free_port(taken=set(self._running.values()))
                self._running[sandbox] = port
            on_error.pop_all()
        return sandbox, port

    def _forget(self, sandbox: ProcessSandbox) -> None:
        with self._lock:
            self._running.pop(sandbox, None)


def _exec_supervisor(
    fd: int, sandbox_id: str, layout: Layout
) -> subprocess.Popen[bytes]:
    # Told whose child it is: it cannot ask when the platform may have ended since.
    told = [str(fd), str(os.getpid()), *_import_paths()]
    arguments = ["-I", "-S", "-c", _BOOTSTRAP, *told]
    with open(layout.supervisor_log, "ab") as stderr:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=layout.root,
            # The marker lets a sweep find a supervisor, too.
            env={MARKER: sandbox_id, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=(fd,),
            start_new_session=True,
        )


def _boot(spec: SandboxSpec, layout: Layout, port: int) -> Mapping[str, Any]:
    """Return the fields of the supervisor's `Boot`."""
    return {
        "sandbox_id": spec.sandbox_id,
        "env": dict(layout.environment(spec, port=port)),
        "home": str(layout.home),
        "app": str(layout.app),
        "log": str(layout.agent_log),
        "entrypoint": spec.entrypoint,
        "python": sys.executable,
        "port": port,
        "start_timeout": spec.start_timeout,
        "memory_bytes": spec.memory_mb * 1024 * 1024,
        "cpus": spec.cpus,
        "access_token": spec.access_token,
    }


def _free_port(taken: set[int]) -> int:
    """Return a loopback port that nobody has, not even a sandbox yet to listen."""
    with ExitStack() as held:
        while True:
            sock = held.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            if port not in taken:
                return port


@cache
def _import_paths() -> tuple[str, ...]:
    """Return the folders from which a supervisor imports what it needs."""
    specs = map(importlib.util.find_spec, _NEEDED)
    origins = (spec.origin for spec in specs if spec is not None and spec.origin)
    return tuple(dict.fromkeys(str(Path(origin).parents[1]) for origin in origins))


def _tail(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
