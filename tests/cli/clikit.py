"""Running commands: in this process against the tests' platform, or as programs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

__all__ = ["AGENT", "Command", "Done", "line", "start"]

AGENT = """
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request):
        prompt = request["prompt"]
        if prompt == "fail":
            raise RuntimeError("the agent is not amused")
        if prompt == "bytes":
            return b"no JSON"
        if prompt == "stream":
            return iter(["one", "two"])
        print("asked", prompt)
        return f"you said {prompt}"

    if __name__ == "__main__":
        app.run()
"""


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Done]


def start(*argv: str, data_dir: Path) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    return subprocess.Popen(
        [sys.executable, "-m", "ppio_agent.cli", *argv],
        env={**kept, "PPIO_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())
