"""Servers and loads in processes of their own, and single calls to a server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.support import wait_until

from .environments import CLIENTS, MAILBOXES, ROOT, SERVERS, Unavailable

__all__ = [
    "Fleet",
    "Served",
    "call",
    "measured_by",
    "measured_client",
    "measured_mailbox",
    "serving",
    "started",
]

_HERE = Path(__file__).parent
_LOGS = ROOT / ".bench" / "logs"
_START = 30.0


@frozen
class Served:
    """A running server.

    Attributes:
        port: Where it listens.
        process: Its process.
        log: What it wrote.
    """

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Do nothing while it runs.

        Raises:
            Unavailable: It has ended.
        """
        if self.process.poll() is not None:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            raise Unavailable(f"the server ended: {(lines or ['no output'])[-1][:200]}")


class Fleet:
    """Servers that run at the same time, by name; some may be missing."""

    def __init__(self, found: Mapping[str, Served | Unavailable]) -> None:
        self._found = found

    def __getitem__(self, who: str) -> Served:
        found = self._found[who]
        if isinstance(found, Unavailable):
            raise found
        found.check()
        return found


@contextlib.contextmanager
def started(
    who: str, handler: str, settings: Mapping[str, Any] | None = None
) -> Iterator[Served]:
    """Start a server, and do not wait for it; it is killed in the end.

    Raises:
        Unavailable: There is no environment for it.
    """
    program = SERVERS[who]
    python, port = program.python(), _free_port()
    _LOGS.mkdir(parents=True, exist_ok=True)
    # Settings of the caller's must not change what is compared.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    script = _HERE / "servers" / program.script
    log = _LOGS / f"{who}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python, script, str(port), handler, json.dumps(dict(settings or {}))],
            cwd=ROOT,
            env=kept,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield Served(port, process, log)
    finally:
        # Killed: it has nothing to save, and its handlers may block for long.
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(
    whom: Iterable[str],
    handler: str,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Fleet]:
    """Run servers with one handler; those that cannot run do not stop the others.

    Args:
        whom: Names of servers.
        handler: Which of the handlers they serve.
        settings: Settings by the server's name.
    """
    found: dict[str, Served | Unavailable] = {}
    with contextlib.ExitStack() as stack:
        for who in whom:
            try:
                running = started(who, handler, (settings or {}).get(who))
                found[who] = stack.enter_context(running)
            except Unavailable as error:
                found[who] = error
        for who, server in found.items():
            if isinstance(server, Served):
                try:
                    _wait_for(server)
                except Unavailable as error:
                    found[who] = error
        yield Fleet(found)


def _wait_for(server: Served) -> None:
    def listens() -> bool:
        server.check()
        try:
            socket.create_connection(("127.0.0.1", server.port), 1.0).close()
        except OSError:
            return False
        return True

    try:
        wait_until(listens, timeout=_START)
    except AssertionError:
        raise Unavailable(f"does not listen within {_START:g} s") from None


def call(
    port: int, method: str, path: str, body: Any = None, *, timeout: float = 10.0
) -> tuple[int, Any]:
    """Send one request; return status and decoded body.

    Raises:
        OSError: There is no answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def measured_by(module: str, *arguments: object, **options: Any) -> dict[str, Any]:
    """Run a module of `load/` in a process of its own; return what it found.

    Args:
        module: Its name.
        arguments: Its arguments.
        options: Its options: `warm_up=1` is `--warm-up 1`, True a flag, a mapping JSON.

    Raises:
        Unavailable: It failed.
    """
    words = [str(argument) for argument in arguments]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return _found_by([sys.executable, "-m", f"tests.bench.load.{module}", *words])


def measured_client(
    who: str, *, what: str, port: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure one client in a process of its own; return what was found.

    Args:
        who: Name of the client.
        what: What it does, as `clients/measure.py` calls it.
        port: Of the server.
        options: How it does it.

    Raises:
        Unavailable: There is no environment for it, or it failed.
    """
    program = CLIENTS[who]
    script = _HERE / "clients" / "measure.py"
    words = [program.script, str(port), what, json.dumps(dict(options))]
    return _found_by([program.python(), script, *words])


def measured_mailbox(
    who: str, *, what: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Measure one way to call actors in a process of its own; return what was found.

    Args:
        who: Its name.
        what: What is measured, as `mailboxes/measure.py` calls it.
        options: How.

    Raises:
        Unavailable: There is no environment for it, or it failed.
    """
    program = MAILBOXES[who]
    script = _HERE / "mailboxes" / "measure.py"
    words = [program.script, what, json.dumps(dict(options))]
    return _found_by([program.python(), script, *words])


def _found_by(command: Sequence[str | Path]) -> dict[str, Any]:
    # Settings of the caller's must not change what is compared.
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    done = subprocess.run(
        command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Unavailable(f"the load failed: {lines[-1][:200]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
