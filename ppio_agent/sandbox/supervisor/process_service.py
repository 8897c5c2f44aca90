"""`process.Process` of envd: start a program, stream what it says, tell how it ended.

Source: platform.md section 9.
"""

from __future__ import annotations

import binascii
import errno
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ppio_agent.exceptions import WireError
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, FrameReader, encode_frame

from .agent import Agent
from .http import Connection, Request
from .loop import Loop, Timer
from .program import ExitStatus, Program
from .spawn import Child, Command

__all__ = ["ProcessService", "RpcError", "StartRequest", "names_agent", "parse_start"]

_MAX_DATA = 32 * 1024
_MAX_BACKLOG = 1024 * 1024
_KEEPALIVE = 90.0
_BASH = ("bash", "/bin/bash", "/usr/bin/bash")
_REASONS = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EAGAIN: "resource_exhausted",
    errno.ENOMEM: "resource_exhausted",
    errno.EMFILE: "resource_exhausted",
}


class RpcError(Exception):
    """A call fails with this Connect code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class StartRequest(NamedTuple):
    """What a caller wants started.

    Attributes:
        argv: Program and arguments.
        envs: Set over the environment of the sandbox.
        cwd: Where; None is the home folder.
        stdin: Whether its input stays open.
    """

    argv: list[str]
    envs: dict[str, str]
    cwd: str | None
    stdin: bool


def parse_start(payload: bytes) -> StartRequest:
    """Read the message of a `Start`. Pure.

    Raises:
        RpcError: It is not a message of that kind, or asks for what is not there.
    """
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise RpcError("invalid_argument", "the message is not JSON") from exc
    body = _field(message, "$", dict)
    if body.get("pty") is not None:
        raise RpcError("unimplemented", "pty is not supported by the local platform")
    process = _field(body.get("process"), "$.process", dict)
    cmd = _text(process.get("cmd"), "$.process.cmd")
    if not cmd:
        raise RpcError("invalid_argument", "$.process.cmd: expected a program")
    args = _field(process.get("args") or [], "$.process.args", list)
    envs = _field(process.get("envs") or {}, "$.process.envs", dict)
    for name in envs:
        if not name or "=" in _text(name, "$.process.envs"):
            raise RpcError("invalid_argument", "$.process.envs: bad name of a variable")
    cwd = process.get("cwd")
    stdin = body.get("stdin")
    return StartRequest(
        argv=[cmd, *(_text(arg, "$.process.args") for arg in args)],
        envs={name: _text(value, "$.process.envs") for name, value in envs.items()},
        cwd=_text(cwd, "$.process.cwd") or None if cwd is not None else None,
        stdin=True if stdin is None else _field(stdin, "$.stdin", bool),
    )


def _field(value: Any, path: str, kind: type) -> Any:
    if not isinstance(value, kind):
        raise RpcError("invalid_argument", f"{path}: expected {kind.__name__}")
    return value


def _text(value: Any, path: str) -> str:
    text: str = _field(value, path, str)
    if "\0" in text:
        raise RpcError("invalid_argument", f"{path}: holds a zero byte")
    return text


def names_agent(argv: list[str], entrypoint: str) -> bool:
    """Whether a command is the one by which clients in the field start the agent."""
    options = " ".join(argv[1:-1])
    return (
        argv[0] in _BASH
        and re.fullmatch(r"(-l )?-l?c", options) is not None
        and argv[-1] == f"cd /app && sudo -E python {entrypoint}"
    )


class ProcessService:
    """Starts programs in the sandbox and streams them to callers.

    Args:
        loop: Where streams wait.
        env: The environment of the sandbox.
        home: Where programs start by default, and what relative paths are below.
        app: What `/app` means.
        agent: The agent, and its entrypoint; None without one.
        spawn: Starts a command; told whether its input stays open.
        adopt: Makes the program of a started child.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        env: Mapping[str, str],
        home: str,
        app: str,
        agent: tuple[Agent, str] | None,
        spawn: Callable[[Command, bool], Child],
        adopt: Callable[[Child], Program],
    ) -> None:
        self._loop = loop
        self._env = env
        self._home = home
        self._app = app
        self._agent = agent
        self._spawn = spawn
        self._adopt = adopt

    def start(self, request: Request, connection: Connection) -> None:
        """Answer `Start`: a stream of the program's events until it has ended."""
        content_type = request.headers.get("content-type", "").partition(";")[0]
        if content_type.strip().lower() != STREAM_CONTENT_TYPE:
            headers = {"accept-post": STREAM_CONTENT_TYPE}
            connection.reply(415, headers=headers)
            return
        connection.begin(200, {"content-type": STREAM_CONTENT_TYPE})
        try:
            wanted = parse_start(_only_frame(request.body))
            interval = _interval(request.headers.get("keepalive-ping-interval"))
            program = self._program(wanted)
        except RpcError as exc:
            connection.write(_end_frame(exc.code, exc.message))
            connection.end()
            return
        EventStream(self._loop, connection, program, keepalive=interval).begin()

    def _program(self, wanted: StartRequest) -> Program:
        """Return the program asked for: started now, or the agent that runs already."""
        try:
            if self._agent is not None and names_agent(wanted.argv, self._agent[1]):
                agent = self._agent[0]
                return agent.program or agent.start(wanted.envs)
            env = {**self._env, **wanted.envs}
            command = Command(wanted.argv, env, self._folder(wanted.cwd))
            return self._adopt(self._spawn(command, wanted.stdin))
        except OSError as exc:
            code = _REASONS.get(exc.errno or 0, "invalid_argument")
            message = f"{wanted.argv[0]} could not be started: {exc.strerror}"
            raise RpcError(code, message) from exc

    def _folder(self, cwd: str | None) -> str:
        if cwd is None:
            return self._home
        if cwd == "/app" or cwd.startswith("/app/"):
            folder = self._app + cwd.removeprefix("/app")
        elif cwd == "/home/user" or cwd.startswith("/home/user/"):
            folder = self._home + cwd.removeprefix("/home/user")
        else:
            folder = os.path.join(self._home, cwd)
        if not os.path.isdir(folder):
            raise RpcError("invalid_argument", f"cwd {cwd!r} does not exist")
        return folder


class EventStream:
    """What one caller is told of one program.

    The program lives on when the caller leaves, and is not held back by one that does
    not read: past 1 MiB unread the stream ends.
    """

    def __init__(
        self, loop: Loop, connection: Connection, program: Program, *, keepalive: float
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._program = program
        self._keepalive = keepalive
        self._timer: Timer | None = None
        self._last_sent = 0.0

    def begin(self) -> None:
        """Say that the program runs, and tell all of it from now on."""
        self._connection.on_gone = self._stop
        self._send({"start": {"pid": self._program.pid}})
        self._program.attach(self)
        self._keep_alive()

    def output(self, stream: str, data: bytes) -> None:
        """Pass output on, in frames of bounded size."""
        for start in range(0, len(data), _MAX_DATA):
            if self._connection.backlog > _MAX_BACKLOG:
                self._finish(
                    "resource_exhausted", "the caller does not read the output"
                )
                return
            piece = binascii.b2a_base64(data[start : start + _MAX_DATA], newline=False)
            self._send({"data": {stream: piece.decode("ascii")}})

    def ended(self, status: ExitStatus) -> None:
        """Pass the end on."""
        text = str(status)
        event: dict[str, Any] = {
            "exitCode": -1 if status.code is None else status.code,
            "exited": status.code is not None,
            "status": text,
        }
        if status.code != 0:
            event["error"] = text
        self._send({"end": event})
        self._finish()

    def _send(self, event: Mapping[str, Any]) -> None:
        payload = json.dumps({"event": event}, separators=(",", ":")).encode()
        self._last_sent = self._loop.now()
        self._connection.write(encode_frame(payload))

    def _keep_alive(self) -> None:
        """Send something whenever nothing was sent for the interval."""
        left = self._last_sent + self._keepalive - self._loop.now()
        if left <= 0:
            self._send({"keepalive": {}})
            left = self._keepalive
        self._timer = self._loop.call_later(left, self._keep_alive)

    def _finish(self, code: str | None = None, message: str = "") -> None:
        self._stop()
        self._connection.write(_end_frame(code, message))
        self._connection.end()

    def _stop(self) -> None:
        self._program.detach(self)
        if self._timer is not None:
            self._timer.cancel()


def _only_frame(body: bytes) -> bytes:
    if body[:1] == b"\x01":
        raise RpcError("unimplemented", "compressed messages are not supported")
    reader = FrameReader()
    try:
        frames = reader.feed(body)
    except WireError as exc:
        raise RpcError("invalid_argument", str(exc)) from exc
    if len(frames) != 1 or reader.pending:
        raise RpcError("invalid_argument", "expected one message")
    return frames[0].payload


def _end_frame(code: str | None, message: str = "") -> bytes:
    end = {} if code is None else {"error": {"code": code, "message": message}}
    return encode_frame(json.dumps(end, separators=(",", ":")).encode(), end=True)


def _interval(value: str | None) -> float:
    if value is None or not re.fullmatch(r"[0-9]{1,6}", value.strip()):
        return _KEEPALIVE
    return float(value) or _KEEPALIVE
