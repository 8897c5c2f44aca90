"""What callers ask of `process.Process`, read from their messages. Pure."""

from __future__ import annotations

import re
import signal
from typing import Any, NamedTuple

from ppio_agent.sandbox.supervisor.program import ExitStatus

from .rpc import Message, RpcError

__all__ = [
    "Selector",
    "StartRequest",
    "end_event",
    "names_agent",
    "parse_input",
    "parse_selector",
    "parse_signal",
    "parse_start",
]

_BASH = ("bash", "/bin/bash", "/usr/bin/bash")
_SIGNALS = {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL}


class StartRequest(NamedTuple):
    """What a caller wants started.

    Attributes:
        argv: Program and arguments.
        envs: Set over the environment of the sandbox.
        cwd: Where; None is the home folder.
        tag: A name for the process; None without one.
        stdin: Whether its input stays open.
    """

    argv: list[str]
    envs: dict[str, str]
    cwd: str | None
    tag: str | None
    stdin: bool

    @property
    def config(self) -> dict[str, Any]:
        """What `List` tells of it."""
        config: dict[str, Any] = {"cmd": self.argv[0]}
        if self.argv[1:]:
            config["args"] = self.argv[1:]
        if self.envs:
            config["envs"] = self.envs
        if self.cwd is not None:
            config["cwd"] = self.cwd
        return config


class Selector(NamedTuple):
    """Which process: by its id, or by its tag."""

    pid: int | None
    tag: str | None

    def __str__(self) -> str:
        if self.pid is not None:
            return f"process with pid {self.pid}"
        return f"process with tag {self.tag!r}"


def parse_start(body: Message) -> StartRequest:
    """Read the message of a `Start`.

    Raises:
        RpcError: It is not of that kind, or asks for what is not there.
    """
    if body.has("pty"):
        raise _no_pty()
    process = body.child("process")
    cmd = process.text("cmd")
    if not cmd:
        raise RpcError("invalid_argument", "$.process.cmd: expected a program")
    envs = process.mapping("envs")
    if any(not name or "=" in name for name in envs):
        raise RpcError("invalid_argument", "$.process.envs: bad name of a variable")
    return StartRequest(
        argv=[cmd, *process.texts("args")],
        envs=envs,
        cwd=process.text("cwd") or None,
        tag=body.text("tag") if body.has("tag") else None,
        stdin=body.flag("stdin", default=True),
    )


def parse_selector(body: Message) -> Selector:
    """Read which process is meant.

    Raises:
        RpcError: It is not said.
    """
    process = body.child("process")
    if process.has("pid"):
        return Selector(process.number("pid"), None)
    if process.has("tag"):
        return Selector(None, process.text("tag"))
    raise RpcError("invalid_argument", "$.process: expected pid or tag")


def parse_signal(body: Message) -> int:
    """Read which signal is to be sent.

    Raises:
        RpcError: It is another than SIGTERM and SIGKILL.
    """
    return body.one_of("signal", _SIGNALS)


def parse_input(body: Message) -> bytes:
    """Read what is to be written to a process.

    Raises:
        RpcError: There is nothing, or it is for a terminal.
    """
    given = body.child("input")
    if given.has("pty"):
        raise _no_pty()
    if not given.has("stdin"):
        raise RpcError("invalid_argument", "$.input: expected stdin")
    return given.data("stdin")


def names_agent(argv: list[str], entrypoint: str) -> bool:
    """Whether a command is the one by which clients in the field start the agent."""
    options = " ".join(argv[1:-1])
    return (
        argv[0] in _BASH
        and re.fullmatch(r"(-l )?-l?c", options) is not None
        and argv[-1] == f"cd /app && sudo -E python {entrypoint}"
    )


def end_event(status: ExitStatus) -> dict[str, Any]:
    """Return how callers are told of a process's end."""
    text = str(status)
    event: dict[str, Any] = {
        "exitCode": -1 if status.code is None else status.code,
        "exited": status.code is not None,
        "status": text,
    }
    if status.code != 0:
        event["error"] = text
    return event


def _no_pty() -> RpcError:
    return RpcError("unimplemented", "pty is not supported by the local platform")
