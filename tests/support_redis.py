"""A Redis server of the tests."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import redis

from tests.support import ending_with_us, needs_program, wait_until

__all__ = ["RedisServer"]


class RedisServer:
    """A Redis server for one module of tests, on a socket in `folder`.

    Args:
        folder: Of its own; a short path, as sockets want it.
        options: More words of its command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._program = needs_program("redis-server")
        self._folder = folder
        self._options = options
        self.path = folder / "s"
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *ending_with_us("KILL"),
                self._program, "--port", "0", "--unixsocket", str(self.path),
                "--save", "", "--dir", str(self._folder), "--daemonize", "no",
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        # Before its first answer it makes its files, on a disk that may be busy.
        wait_until(self._answers, timeout=20.0, what="redis-server answers")

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20.0)
            if client.connect_ex(str(self.path)) != 0:
                return False
            client.sendall(b"PING\r\n")
            return bool(client.recv(64))

    def begin_cluster(self) -> None:
        """Begin to be all of a cluster, with `--cluster-enabled yes`: for two seconds."""
        with self.client() as client:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)

    def wait_for_cluster(self) -> None:
        """Wait until what `begin_cluster` began is done."""
        with self.client() as client:
            wait_until(
                lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
            )

    def client(self, db: int = 0) -> redis.Redis:
        """Return a client, to be closed."""
        return redis.Redis.from_url(self.url(db))

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def url(self, db: int = 0) -> str:
        return f"unix://{self.path}?db={db}"
