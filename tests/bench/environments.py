"""What stands beside us: servers and clients, each peer in its own environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from attrs import frozen

from tests.peers import Unavailable, interpreter

__all__ = [
    "CLIENTS",
    "MAILBOXES",
    "PEERS",
    "ROOT",
    "SERVERS",
    "Program",
    "Unavailable",
]

ROOT = Path(__file__).parents[2]


@frozen(kw_only=True)
class Program:
    """A server or a client: which program, run by which interpreter.

    Attributes:
        script: Its file in `servers/`; of a client the name of its adapter.
        title: What the table calls it.
        environment: Name of its environment in `tests.peers`; None is the one that
            runs the benchmark.
    """

    script: str
    title: str
    environment: str | None = None

    def python(self) -> Path:
        """Return the interpreter, after making the environment if need be.

        Raises:
            Unavailable: It cannot be made.
        """
        if self.environment is None:
            return Path(sys.executable)
        return interpreter(self.environment)


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
            environment="ppio-2",
        ),
        "fast": Program(
            script="peer.py",
            title="`ppio-sandbox` 2.1.0",
            environment="ppio-2-uvloop",
        ),
        "actors": Program(script="actors.py", title="our actors"),
        "fastapi": Program(
            script="fastapi_echo.py",
            title="FastAPI 0.165.0, uvicorn 0.54.0",
            environment="fastapi",
        ),
        "fastapi fast": Program(
            script="fastapi_echo.py",
            title="the same with uvloop and httptools",
            environment="fastapi-uvloop",
        ),
        "bedrock": Program(
            script="bedrock.py",
            title="`bedrock-agentcore` 1.25.0",
            environment="bedrock",
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
            environment="ppio-2",
        ),
        "ppio 1": Program(
            script="ppio",
            title="`ppio-sandbox` 1.1.3, its session",
            environment="ppio-1",
        ),
        "httpx": Program(
            script="httpx",
            title="`httpx.Client` 0.28.1",
            environment="openai",
        ),
        "openai": Program(
            script="openai",
            title="`openai` 3.54.0",
            environment="openai",
        ),
    }
)
"""The clients that people use today, and ours."""

MAILBOXES: Mapping[str, Program] = MappingProxyType(
    {
        "ours": Program(script="ours", title="our actors"),
        "pool": Program(script="ours", title="our actors, on their own threads"),
        "busy": Program(script="ours", title="our actors beside two busy threads"),
        "pykka": Program(script="pykka", title="Pykka 4.5.0", environment="actors"),
        "thespian": Program(
            script="thespian",
            title="Thespian 4.0.1, `simpleSystemBase`",
            environment="actors",
        ),
        "asyncio": Program(
            script="asyncio", title="an `asyncio` task per actor, called from threads"
        ),
        "pingpong": Program(
            script="pingpong", title="two threads and two `SimpleQueue`s"
        ),
        "executor": Program(
            script="executor", title="`ThreadPoolExecutor(1)`, futures"
        ),
        "sqlite": Program(script="sqlite", title="a bare loop of 1 KB commits"),
        "dbos": Program(
            script="dbos",
            title="DBOS 3.4.0 on SQLite, an empty workflow",
            environment="dbos",
        ),
    }
)
"""Ways to call actors, and what their floors are."""
