"""Other programs that serve an app, or stand in front of one, as real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.serving.shapes import KEY
from tests.serving.support import Http
from tests.support import SLOW, wait_until

__all__ = ["KEY_HEADERS", "ROOT", "Caller", "Host", "documented", "gunicorn", "hosting"]

ROOT = Path(__file__).parents[2]
KEY_HEADERS = {"X-API-Key": KEY, "X-PPIO-Session-Id": "s1"}


class Caller(Http):
    """Calls the app of `shapes` with its key, on a server of whatever kind."""

    def open(
        self, method: str, path: str, body: Any = None, headers: Any = None
    ) -> Any:
        return super().open(method, path, body, {**KEY_HEADERS, **(headers or {})})


@frozen
class Host:
    """A process that listens on a port of loopback.

    Attributes:
        process: Its main process.
        port: Where it listens.
        log: File of its standard error.
    """

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def http(self) -> Caller:
        """Calls it."""
        return Caller(self)

    def said(self, text: str) -> int:
        """Return how often `text` is in its log."""
        return self.log.read_text().count(text)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(20 * SLOW)


@contextmanager
def hosting(
    command: list[str],
    folder: Path,
    *,
    says: str,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Host]:
    """Start a process, and stop it in the end.

    Args:
        command: Its command line.
        folder: Where its log and its socket files go.
        says: Pattern of the line of its log that tells the port.
        environ: Further environment.
    """
    log = folder / "host.log"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    own = {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder), **(environ or {})}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**kept, **own},
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        pattern = re.compile(says)
        wait_until(
            lambda: pattern.search(log.read_text()) or process.poll() is not None,
            timeout=20,
            what=f"{command[0]} to listen",
        )
        found = pattern.search(log.read_text())
        assert found is not None, log.read_text()
        yield Host(process, int(found[1]), log)
        if process.poll() is None:
            process.terminate()
            process.wait(20 * SLOW)
    finally:
        # Its children as well, of which one that hangs would outlive it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def gunicorn(
    target: str, folder: Path, *options: str, **environ: str
) -> Iterator[Host]:
    """Serve `module:app` by gunicorn with threads."""
    command = [
        sys.executable, "-m", "gunicorn", "--worker-class", "gthread",
        "--bind", "127.0.0.1:0", *options, target,
    ]  # fmt: skip
    says = r"Listening at: http://127\.0\.0\.1:(\d+)"
    with hosting(command, folder, says=says, environ=environ) as host:
        yield host


def documented(marker: str) -> str:
    """Return the block of the page on deployment that begins with `marker`."""
    page = (ROOT / "docs/deployment.md").read_text()
    return page[page.index(f"\n{marker}\n") + 1 :].partition("```")[0]
