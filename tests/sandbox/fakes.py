"""A backend without processes: it does what a test tells it to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from ppio_agent.exceptions import (
    SandboxPlatformError,
    SandboxStartError,
    SandboxStateError,
)
from ppio_agent.sandbox.backends.base import (
    AgentStatus,
    LostReason,
    OnAgent,
    OnLost,
    SandboxSpec,
    Usage,
)

__all__ = ["FakeBackend", "FakeClock", "FakeSandbox"]


class FakeClock:
    """A monotonic clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeSandbox:
    """One sandbox; `log` lists what was done to it."""

    def __init__(self, spec: SandboxSpec, on_agent: OnAgent, on_lost: OnLost) -> None:
        self.spec = spec
        self.agent = AgentStatus(phase="ready" if spec.entrypoint else "none")
        self.log: list[str] = []
        self.pid = 0  # of no process: what is not there is not killed
        self.alive = True
        self.paused = False
        self.on_dial: Callable[[int], socket.socket] | None = None
        self.during: dict[str, Callable[[], object]] = {}
        self.load = Usage(cpu_seconds=0.0, rss_bytes=0, processes=0)
        self._on_agent = on_agent
        self._on_lost = on_lost
        (spec.root / "logs").mkdir(parents=True, exist_ok=True)

    def _do(self, what: str) -> None:
        self.log.append(what)
        self.during.get(what, lambda: None)()
        if not self.alive:
            raise SandboxStateError(f"sandbox {self.spec.sandbox_id} is gone")

    def dial(self, port: int, timeout: float) -> socket.socket:
        del timeout
        if self.on_dial is None or not self.alive:
            raise ConnectionRefusedError(port)
        return self.on_dial(port)

    def pause(self) -> None:
        self._do("pause")
        self.paused = True

    def resume(self) -> None:
        self._do("resume")
        self.paused = False

    def adopted(self, on_agent: OnAgent, on_lost: OnLost) -> None:
        """Belong to another platform from now on."""
        self.log.append("adopt")
        self._on_agent, self._on_lost = on_agent, on_lost

    def usage(self, *, fresh: bool = True) -> Usage:
        del fresh
        self.during.get("usage", lambda: None)()
        return self.load

    def kill(self, grace: float) -> None:
        self.log.append(f"kill {grace:g}")
        self.during.get("kill", lambda: None)()
        self.alive = False

    def report(self, status: AgentStatus) -> None:
        """Tell the platform how the agent is."""
        self.agent = status
        self._on_agent(status)

    def lose(self, reason: LostReason = "crashed") -> None:
        """End unasked."""
        self.alive = False
        self._on_lost(reason)


class FakeBackend:
    """Keeps all its sandboxes in `started`; `left` are those to be taken over."""

    name = "process"

    def __init__(self) -> None:
        self.started: list[FakeSandbox] = []
        self.left: list[FakeSandbox] = []
        self.before_start: Callable[[], object] = lambda: None
        self.fails = False
        self.closed = 0
        self._lock = threading.Lock()

    def start(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> FakeSandbox:
        self.before_start()
        if self.fails:
            raise SandboxStartError("the supervisor did not come up: no room")
        sandbox = FakeSandbox(spec, on_agent, on_lost)
        with self._lock:
            self.started.append(sandbox)
        return sandbox

    def check(self, *, allow_internet: bool) -> None:
        if not allow_internet:
            raise SandboxPlatformError(
                "the fake backend cannot block network access",
                code="not_supported",
                http_status=501,
            )

    def adopt(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> FakeSandbox:
        for sandbox in self.left:
            if sandbox.spec.line == spec.line and sandbox.alive:
                sandbox.adopted(on_agent, on_lost)
                with self._lock:
                    self.started.append(sandbox)
                return sandbox
        raise SandboxStartError(f"sandbox {spec.sandbox_id} does not answer")

    @property
    def last(self) -> FakeSandbox:
        """The sandbox that was started last."""
        return self.started[-1]

    def close(self) -> None:
        self.closed += 1
        for sandbox in self.started:
            sandbox.alive = False
