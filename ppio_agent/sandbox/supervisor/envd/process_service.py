"""`process.Process` of envd: start programs, follow, feed and signal them.

Source: platform.md section 9.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ppio_agent.sandbox.supervisor.agent import Agent
from ppio_agent.sandbox.supervisor.loop import Loop
from ppio_agent.sandbox.supervisor.program import ExitStatus, Program
from ppio_agent.sandbox.supervisor.spawn import Child, Command

from .budget import Budget
from .event_stream import EventStream, fail_stream
from .http import Connection, Request
from .process_messages import (
    StartRequest,
    names_agent,
    parse_input,
    parse_selector,
    parse_signal,
    parse_start,
)
from .roots import Roots
from .rpc import Message, RpcError, as_rpc_error, only_frame, parse_message

__all__ = ["ProcessService"]

_MAX_INPUT = 8 * 1024 * 1024


class _Process(NamedTuple):
    """A live program, and what it is known by."""

    program: Program
    config: Mapping[str, Any]
    tag: str | None


class ProcessService:
    """Starts programs in the sandbox and lets callers do with them what they may.

    Args:
        loop: Where streams wait.
        env: The environment of the sandbox.
        roots: What folders of callers mean.
        agent: The agent, and its entrypoint; None without one.
        spawn: Starts a command; told whether its input stays open.
        adopt: Makes the program of a started child.
        budget: What programs are still to read counts there.
        note: Takes lines for the log of the sandbox.
        enforce_deadline: Whether a program is killed at the time limit of its caller;
            else it is a note.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        env: Mapping[str, str],
        roots: Roots,
        agent: tuple[Agent, str] | None,
        spawn: Callable[[Command, bool], Child],
        adopt: Callable[[Child], Program],
        budget: Budget,
        note: Callable[[str], object],
        enforce_deadline: bool = False,
    ) -> None:
        self._loop = loop
        self._env = env
        self._roots = roots
        self._agent = agent
        self._spawn = spawn
        self._adopt = adopt
        self._budget = budget
        self._enforce_deadline = enforce_deadline
        self._note = note
        self._started: dict[int, _Process] = {}

    # Streams

    def start(self, request: Request, body: bytes, connection: Connection) -> None:
        """Answer `Start`: a stream of the program's events until it has ended."""
        try:
            wanted = parse_start(parse_message(only_frame(body)))
            limit = _time_limit(request.headers.get("connect-timeout-ms"))
            program = self._program(wanted)
        except RpcError as exc:
            fail_stream(connection, exc)
            return
        # First the caller's: it is told of the limit, not of the end that follows.
        self._follow(program, request, limit, connection)
        if limit is not None:
            self._limit(limit, program)

    def connect(self, request: Request, body: bytes, connection: Connection) -> None:
        """Answer `Connect`: a stream of what the program does from now on."""
        try:
            program = self._find(parse_message(only_frame(body))).program
            limit = _time_limit(request.headers.get("connect-timeout-ms"))
        except RpcError as exc:
            fail_stream(connection, exc)
            return
        self._follow(program, request, limit, connection)

    def _follow(
        self,
        program: Program,
        request: Request,
        limit: float | None,
        connection: Connection,
    ) -> None:
        limit = limit if self._enforce_deadline else None
        stream = EventStream(
            self._loop, connection, program, request.headers, limit=limit
        )
        stream.begin()

    # Calls

    def list_live(self, _: Message) -> dict[str, Any]:
        """Answer `List`: the live programs that were started here, and the agent."""
        return {"processes": [_described(each) for each in self._live()]}

    def send_signal(self, body: Message) -> dict[str, Any]:
        """Answer `SendSignal`: to the program and all in its group."""
        signum = parse_signal(body)
        if signum == 0:
            raise RpcError("invalid_argument", "$.signal: expected a signal")
        program = self._find(body).program
        _signal_group(program, signum)
        if signum == signal.SIGKILL:
            self._started.pop(program.pid, None)  # gone, though not yet reaped
        return {}

    def send_input(
        self, body: Message, answer: Callable[[dict[str, Any] | RpcError], None]
    ) -> None:
        """Answer `SendInput` when the program's pipe has taken all of it."""
        data = parse_input(body)
        program = self._find(body).program
        pending = program.pending_input + len(data)
        if pending > _MAX_INPUT or self._budget.refuses(pending):
            raise RpcError("resource_exhausted", "the process does not read its input")
        self._budget.change(len(data))

        def taken(left: int) -> None:
            self._budget.change(-len(data))
            answer(_closed() if left else {})

        if not program.write(data, taken):
            self._budget.change(-len(data))
            raise _closed()

    def close_stdin(self, body: Message) -> dict[str, Any]:
        """Answer `CloseStdin`: the program reads its input's end after all of it."""
        self._find(body).program.close_stdin()
        return {}

    # Which process

    def _live(self) -> list[_Process]:
        found = list(self._started.values())
        if self._agent is not None:
            agent, entrypoint = self._agent
            config = {"cmd": "python", "args": [entrypoint], "cwd": "/app"}
            if agent.program is not None:
                found.insert(0, _Process(agent.program, config, None))
        return found

    def _find(self, body: Message) -> _Process:
        wanted = parse_selector(body)
        for process in self._live():
            if wanted in ((process.program.pid, None), (None, process.tag)):
                return process
        raise RpcError("not_found", f"{wanted} not found")

    def _program(self, wanted: StartRequest) -> Program:
        """Return the program asked for: started now, or the agent that runs already."""
        try:
            if self._agent is not None and names_agent(wanted.argv, self._agent[1]):
                agent = self._agent[0]
                return agent.program or agent.start(wanted.envs)
            env = {**self._env, **wanted.envs}
            command = Command(wanted.argv, env, self._folder(wanted.cwd))
            program = self._adopt(self._spawn(command, wanted.stdin))
        except OSError as exc:
            what = f"{wanted.argv[0]} could not be started"
            raise as_rpc_error(exc, what) from exc
        self._started[program.pid] = _Process(program, wanted.config, wanted.tag)
        program.attach(_AtEnd(lambda: self._started.pop(program.pid, None)))
        return program

    def _limit(self, seconds: float, program: Program) -> None:
        """End a program in time, or say that it should have; its caller may be gone."""

        def expire() -> None:
            if self._enforce_deadline:
                _signal_group(program, signal.SIGKILL)
                return
            # Not what it is: its arguments may hold secrets.
            self._note(
                f"process {program.pid} is past the {seconds:g} s its caller gave it:"
                " the cloud would kill it now, as command_deadline=enforce does"
            )

        program.attach(_AtEnd(self._loop.call_later(seconds, expire).cancel))

    def _folder(self, cwd: str | None) -> str:
        """Return where a program starts.

        It may go wherever it likes afterwards, so that the way is not guarded here.
        """
        try:
            folder = self._roots.locate(cwd or "").host
        except RpcError:
            folder = os.path.join(self._roots.locate("").host, cwd or "")
        if not os.path.isdir(folder):
            raise RpcError("invalid_argument", f"cwd {cwd!r} does not exist")
        return folder


class _AtEnd:
    """A `Listener` that makes one call when a program has ended."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def output(self, stream: str, data: bytes) -> None:
        """Take no note."""

    def ended(self, _: ExitStatus) -> None:
        """Make the call."""
        self._call()


def _described(process: _Process) -> dict[str, Any]:
    told = {"config": process.config, "pid": process.program.pid}
    return told if process.tag is None else {**told, "tag": process.tag}


def _signal_group(program: Program, signum: int) -> None:
    # It is not reaped yet, so that its group is still its own.
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signum)


def _closed() -> RpcError:
    return RpcError("failed_precondition", "the input of the process is closed")


def _time_limit(value: str | None) -> float | None:
    """Return the seconds that a `Connect-Timeout-Ms` allows; None without a limit."""
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,10}", value.strip()):
        raise RpcError("invalid_argument", "Connect-Timeout-Ms: expected milliseconds")
    return int(value) / 1000 or None
