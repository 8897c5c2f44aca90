"""A Redis server of the tests."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

from tests.support import needs_program, wait_until

__all__ = ["RedisServer"]


class RedisServer:
    """A Redis server for one module of tests, on a socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._program = needs_program("redis-server")
        self._folder = folder
        self.path = folder / "s"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                self._program, "--port", "0", "--unixsocket", str(self.path),
                "--save", "", "--dir", str(self._folder), "--daemonize", "no",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self._answers, what="redis-server listens")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.path)) == 0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def url(self, db: int = 0) -> str:
        return f"unix://{self.path}?db={db}"
