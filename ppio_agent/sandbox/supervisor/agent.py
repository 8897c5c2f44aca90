"""The agent of a sandbox: started, watched until it listens, reported when it ends."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from ppio_agent.sandbox.logs import AgentLog

from .loop import READ, Loop, Timer
from .program import ExitStatus, Program
from .spawn import READY_FD, Child, Command

__all__ = ["Agent"]

_FIRST_PROBE = 0.005
_PROBE_GROWTH = 1.2
_LAST_PROBE = 0.1
# After the time in which it was expected: it may still come.
_LATE_PROBE = 1.0


class Agent:
    """Runs one program at a time as the agent, and says how it is.

    The exit of the agent does not end the sandbox; it may be started again.

    Args:
        loop: Where it waits.
        command: The agent's program.
        spawn: Starts a command with a pipe as `READY_FD`.
        adopt: Makes the program of a started child, so that its end becomes known.
        listens: Whether a process of the sandbox listens on the agent's port.
        report: Told each change, as the `agent` message of the channel.
        log: Where its output goes.
        start_timeout: Seconds during which its port is looked at.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        command: Command,
        spawn: Callable[[Command], Child],
        adopt: Callable[[Child], Program],
        listens: Callable[[], bool],
        report: Callable[[Mapping[str, Any]], None],
        log: AgentLog,
        start_timeout: float,
    ) -> None:
        self._loop = loop
        self._command = command
        self._spawn = spawn
        self._adopt = adopt
        self._listens = listens
        self._report = report
        self._log = log
        self._start_timeout = start_timeout
        self._phase = "none"
        self._told: Mapping[str, Any] | None = None
        self._program: Program | None = None
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._ready_pipe: int | None = None
        self._probe: Timer | None = None
        self._probe_until = 0.0

    @property
    def program(self) -> Program | None:
        """What runs as the agent now."""
        return self._program

    def start(self, env: Mapping[str, str] | None = None) -> Program:
        """Start the agent, which must not run.

        Args:
            env: Set over the agent's own environment.

        Raises:
            OSError: Its program could not be started.
        """
        self._log.start()
        self._started_at, self._ready_at = time.time(), None
        ready = {"PPIO_READY_FD": str(READY_FD)}
        command = self._command._replace(
            env={**self._command.env, **(env or {}), **ready}
        )
        try:
            child = self._spawn(command)
        except OSError as exc:
            self._log.note(f"the agent could not be started: {exc}")
            self._tell("exited", code=127)
            raise
        self._program = program = self._adopt(child)
        program.attach(self)
        self._tell("starting")
        self._watch_ready(child.ready)
        return program

    def confirm_ready(self) -> None:
        """Take note that the agent is known to listen."""
        if self._phase == "starting":
            self._ready_at = time.time()
            self._stop_watching()
            self._tell("ready")

    def output(self, stream: str, data: bytes) -> None:
        """Log what the agent says."""
        self._log.feed(stream, data)

    def ended(self, status: ExitStatus) -> None:
        """Report the agent's end."""
        self._program = None
        self._stop_watching()
        self._log.finish()
        self._tell("exited", code=status.code, signal=status.signal)

    def tell_again(self) -> None:
        """Report what was reported last, for it is somebody else who is told now."""
        if self._told is not None:
            self._report(self._told)

    def _tell(
        self, phase: str, *, code: int | None = None, signal: int | None = None
    ) -> None:
        self._phase = phase
        self._told = {
            "event": "agent",
            "phase": phase,
            "exit_code": code,
            "signal": signal,
            "started_at": self._started_at,
            "ready_at": self._ready_at,
            "log_tail": self._log.tail if phase == "exited" else "",
            "pid": None if self._program is None else self._program.pid,
        }
        self._report(self._told)

    def _watch_ready(self, pipe: int | None) -> None:
        self._ready_pipe = pipe
        if pipe is not None:
            self._loop.watch(pipe, READ, self._read_ready)
        self._probe_until = self._loop.now() + self._start_timeout
        self._probe_in(_FIRST_PROBE)

    def _read_ready(self, _: int) -> None:
        if self._ready_pipe is None:
            return
        if os.read(self._ready_pipe, 1):
            self.confirm_ready()
        else:  # closed unused: the agent does not know of it, its port is looked at
            self._close_ready()

    def _probe_in(self, delay: float) -> None:
        def probe() -> None:
            if self._listens():
                self.confirm_ready()
            else:
                late = self._loop.now() >= self._probe_until
                longest = _LATE_PROBE if late else _LAST_PROBE
                self._probe_in(min(delay * _PROBE_GROWTH, longest))

        self._probe = self._loop.call_later(delay, probe)

    def _stop_watching(self) -> None:
        self._close_ready()
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    def _close_ready(self) -> None:
        if self._ready_pipe is not None:
            self._loop.unwatch(self._ready_pipe)
            os.close(self._ready_pipe)
            self._ready_pipe = None
