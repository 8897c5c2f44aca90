"""What stands beside us: each peer in an environment of its own, made at first use."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import frozen

__all__ = ["CLIENTS", "PEERS", "ROOT", "SERVERS", "Program", "Unavailable"]

ROOT = Path(__file__).parents[2]
_ENVIRONMENTS = ROOT / ".bench"
# Why an environment could not be made; trying again would take as long each time.
_FAILED: dict[str, str] = {}
# Which `ppio-sandbox` serves with and does not require itself.
_PEER = ("ppio-sandbox==2.1.0", "uvicorn==0.54.0", "starlette==1.10.0")
_OPENAI = ("openai==3.54.0", "httpx==0.28.1")


class Unavailable(Exception):
    """Something cannot be measured; the text says why."""


@frozen(kw_only=True)
class Program:
    """A server or a client: which program, run by which interpreter.

    Attributes:
        script: Its file in `servers/`; of a client the name of its adapter.
        title: What the table calls it.
        environment: Name of its environment; None is the one that runs the benchmark.
        needs: What is installed in that.
    """

    script: str
    title: str
    environment: str | None = None
    needs: tuple[str, ...] = ()

    def python(self) -> Path:
        """Return the interpreter, after making the environment if need be.

        Raises:
            Unavailable: It cannot be made.
        """
        if self.environment is None:
            return Path(sys.executable)
        if self.environment in _FAILED:
            raise Unavailable(_FAILED[self.environment])
        folder = _ENVIRONMENTS / self.environment
        ready = folder / ".ready"
        wanted = "\n".join([platform.python_version(), *self.needs])
        if not ready.exists() or ready.read_text() != wanted:
            try:
                self._make(folder)
            except Unavailable as error:
                _FAILED[self.environment] = str(error)
                raise
            ready.write_text(wanted)
        return folder / "bin" / "python"

    def _make(self, folder: Path) -> None:
        print(f"making {folder.relative_to(ROOT)} for {', '.join(self.needs)} …")
        pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check")
        for command in (
            (sys.executable, "-m", "venv", "--clear", folder),
            (*pip, "install", "--quiet", *self.needs),
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise Unavailable(f"cannot be installed: {_last_line(done.stderr)}")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1][:200]


PEERS = ("peer", "fast", "bedrock")
"""The servers that people use today."""

_OURS = "our served agent"
SERVERS: Mapping[str, Program] = MappingProxyType(
    {
        "ours": Program(script="ours.py", title=_OURS),
        "flask": Program(script="ours.py", title=f"{_OURS}, through Flask"),
        "web": Program(script="web.py", title="our web layer alone"),
        "plain": Program(script="plain.py", title="Flask on plain waitress"),
        "fixed": Program(script="fixed.py", title="a fixed answer"),
        "stage": Program(script="stage.py", title="a platform that costs nothing"),
        "late": Program(script="stage.py", title="one whose agents start late"),
        "peer": Program(
            script="peer.py",
            title="`ppio-sandbox` 2.1.0",
            environment="peer",
            needs=_PEER,
        ),
        "fast": Program(
            script="peer.py",
            title="`ppio-sandbox` 2.1.0",
            environment="peer-uvloop",
            needs=(*_PEER, "uvloop==0.23.0", "httptools==0.9.0"),
        ),
        "bedrock": Program(
            script="bedrock.py",
            title="`bedrock-agentcore` 1.25.0",
            environment="bedrock",
            needs=("bedrock-agentcore==1.25.0", "uvicorn==0.54.0", "starlette==1.10.0"),
        ),
    }
)

CLIENTS: Mapping[str, Program] = MappingProxyType(
    {
        "ours": Program(script="ours", title="our session"),
        "requests": Program(
            script="requests",
            title="`requests`, a Session a thread, and `sseclient-py`",
        ),
        "ppio": Program(
            script="ppio",
            title="`ppio-sandbox` 2.1.0, its session",
            environment="peer",
            needs=_PEER,
        ),
        "ppio 1": Program(
            script="ppio",
            title="`ppio-sandbox` 1.1.3, its session",
            environment="peer-1",
            needs=("ppio-sandbox==1.1.3",),
        ),
        "httpx": Program(
            script="httpx",
            title="`httpx.Client` 0.28.1",
            environment="openai",
            needs=_OPENAI,
        ),
        "openai": Program(
            script="openai",
            title="`openai` 3.54.0",
            environment="openai",
            needs=_OPENAI,
        ),
    }
)
"""The clients that people use today, and ours."""
