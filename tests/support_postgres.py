"""A PostgreSQL server of the tests."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

from tests.support import ending_with_us, needs_program, wait_until

__all__ = ["PostgresServer"]

_SETTINGS = {
    "autovacuum": "off",
    "deadlock_timeout": "50ms",
    "fsync": "off",  # nothing of it has to outlast the machine
    "full_page_writes": "off",
    "listen_addresses": "",
    "max_connections": "60",
    "shared_buffers": "16MB",
    "timezone": "UTC",
}
_ACCOUNT = "postgres"  # of Debian's package: the server refuses to run as root


class PostgresServer:
    """A server on a socket in a folder of its own, where everybody is let in.

    It starts in about a second, so one serves all tests of a process: each takes a
    `url` of its own, thus a schema that nobody else uses.
    """

    def __init__(self) -> None:
        self._program = needs_program("postgres")
        self._schemas = itertools.count(1)
        self._folder = Path(tempfile.mkdtemp(prefix="ppio-pg-"))
        self._identity: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._identity = {"user": _ACCOUNT, "group": _ACCOUNT, "extra_groups": []}
            shutil.chown(self._folder, _ACCOUNT, _ACCOUNT)
        try:
            self._run(
                "initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync",
                "--username=ppio", f"--pgdata={self._data}",
            )  # fmt: skip
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        path = Path(self._program).with_name(program)
        subprocess.run(
            [path, *arguments],
            check=True, cwd=self._folder, stdout=subprocess.DEVNULL, **self._identity,
        )  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *ending_with_us("QUIT"),
                    *(self._program, "-D", self._data, "-k", self._folder),
                    *settings,
                ],
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                **self._identity,
            )  # fmt: skip
        wait_until(self._answers, timeout=20.0, what="postgres answers")

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            return False
        return True

    def stop(self) -> None:
        """End it with all its connections, as a crash does; `start` recovers it."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(20)

    def close(self) -> None:
        """End it for good."""
        if hasattr(self, "_process") and self._process.poll() is None:
            self.stop()
        shutil.rmtree(self._folder)

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Run one statement and return its rows."""
        with psycopg.connect(
            host=str(self._folder), user="ppio", dbname="postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []

    def url(self) -> str:
        """Return the URL of a store of actors that nobody else uses."""
        host = quote(str(self._folder), safe="")
        schema = f"test_{next(self._schemas)}"
        return f"postgresql+psycopg://ppio@/postgres?host={host}&schema={schema}"
