"""Agents served by a process of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving.support import HttpAt
from tests.support import wait_until
from tests.support_net import free_port

__all__ = ["Process", "listens", "run_script", "running"]


class Process(HttpAt):
    """One server process, spoken to by HTTP."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        super().__init__(port)
        self.process = process

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait_ended(self, timeout: float = 20.0) -> tuple[int, float]:
        """Return its exit status, and the seconds that took."""
        began = time.monotonic()
        return self.process.wait(timeout), time.monotonic() - began


@contextmanager
def running(command: list[str], port: int, **environ: str) -> Iterator[Process]:
    """Start a process; when it listens, yield it."""
    process = subprocess.Popen(
        command, env={**os.environ, **environ}, stderr=subprocess.PIPE
    )
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, timeout=15)
        yield Process(process, port)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@contextmanager
def run_script(script: Path, **environ: str) -> Iterator[Process]:
    """Run an agent's file, which calls `app.run()`, on a free port."""
    port = free_port()
    environ = {"PPIO_AGENT_PORT": str(port), **environ}
    with running([sys.executable, str(script)], port, **environ) as process:
        yield process


def listens(port: int) -> bool:
    """Whether a port of loopback takes connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
