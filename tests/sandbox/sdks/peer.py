"""A published package in a process of its own, which does what a test asks for."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppio_agent.sandbox import SandboxPlatform
from tests.peers import needs_peer

__all__ = ["Peer"]

_FOLDER = Path(__file__).parent


class Peer:
    """One process of a published package, with the variables of a platform.

    Args:
        package: Which; a name of `tests.peers`.
        script: Its functions are what can be asked for.
        platform: Where it finds the API; a context manager, the process ends with it.
        env: More variables.
    """

    def __init__(
        self,
        package: str,
        script: str,
        platform: SandboxPlatform,
        env: Mapping[str, str] | None = None,
    ) -> None:
        python = needs_peer(package)
        self.platform = platform
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with it
        self._process = subprocess.Popen(
            [
                python,
                _FOLDER / "driver.py",
                _FOLDER / "scripts" / f"{script}.py",
            ],
            env={"PATH": os.environ["PATH"], **platform.env(), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def do(self, name: str, **given: Any) -> Any:
        """Have a function of the script called, and return what it returns.

        Raises:
            AssertionError: It raised; the text is its traceback.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": name, "given": given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"it has ended: {self._said()}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process, self._log:
            pass
