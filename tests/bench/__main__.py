"""`python -m tests.bench`: measure, print one table, write it into the docs.

Ours and what stands beside it take turns (A B A B), each in processes of its own, and
medians are compared: on a shared machine only ratios within one run mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.support import wait_until

from .report import Row, insert, table

_ROOT = Path(__file__).parents[2]
_HERE = Path(__file__).parent
_PEER = _ROOT / ".bench" / "peer"
_PAGE = _ROOT / "docs" / "performance.md"
# The peer serves with uvicorn, which it does not require itself.
_PEER_NEEDS = ("ppio-sandbox==2.1.0", "uvicorn", "starlette")
_CONNECTIONS = (1, 8, 64)


@frozen(kw_only=True)
class _Plan:
    rounds: int
    seconds: float
    calls: int


_FULL = _Plan(rounds=5, seconds=3.0, calls=3000)
_QUICK = _Plan(rounds=1, seconds=0.7, calls=500)


def _peer_python() -> Path:
    """Return the interpreter of the peer's own environment, made at first use."""
    python = _PEER / "bin" / "python"
    ready = _PEER / ".ready"
    if not ready.exists():
        print(f"making the peer's environment in {_PEER.relative_to(_ROOT)} …")
        subprocess.run([sys.executable, "-m", "venv", _PEER], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *_PEER_NEEDS], check=True)
        ready.touch()
    return python


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    if process.poll() is not None:
        raise SystemExit(f"{process.args!r} ended with status {process.returncode}")
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _serving(script: str, python: Path | str = sys.executable) -> Iterator[int]:
    """Run a server script in a process of its own; yield its port."""
    port = _free_port()
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(
        [str(python), str(_HERE / script), str(port)],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: _listens(process, port), timeout=30, what=f"{script} listens"
        )
        yield port
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _run(module: str, *arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{module}", *map(str, arguments)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _load(port: int, connections: int, seconds: float) -> float:
    found = _run("load", port, "--connections", connections, "--seconds", seconds)
    if found["failures"]:
        raise SystemExit(f"{found['failures']} answers were not 200: {found}")
    rate: float = found["requests_per_second"]
    return rate


def _server_rows(plan: _Plan) -> list[Row]:
    rows = []
    with (
        _serving("serve_ours.py") as ours,
        _serving("serve_web.py") as web,
        _serving("serve_peer.py", _peer_python()) as peer,
    ):
        for connections in _CONNECTIONS:
            rates: dict[int, list[float]] = {ours: [], web: [], peer: []}
            for _ in range(plan.rounds):
                for port, found in rates.items():
                    found.append(_load(port, connections, plan.seconds))
            many = f"{connections} connection{'s' if connections > 1 else ''}"
            rows += [
                Row(
                    what=f"served echo agent, requests/s, {many}",
                    ours=rates[ours],
                    theirs=rates[peer],
                    beside="the peer's served agent",
                    target=">= 3.5",
                ),
                Row(
                    what=f"web layer alone, requests/s, {many}",
                    ours=rates[web],
                    theirs=rates[peer],
                    beside="the peer's served agent",
                ),
            ]
    return rows


def _client_rows(plan: _Plan) -> list[Row]:
    costs: dict[str, list[float]] = {"transport": [], "requests": []}
    with _serving("serve_fixed.py") as port:
        for _ in range(plan.rounds):
            for way, found in costs.items():
                answer = _run("client_cost", way, port, "--calls", plan.calls)
                found.append(answer["cpu_us"])
    return [
        Row(
            what="client, CPU us a call on a kept connection",
            ours=costs["transport"],
            theirs=costs["requests"],
            beside="`requests.Session.post`",
            smaller_is_better=True,
            target="<= 0.5",
        )
    ]


_PARTS = {"client": _client_rows, "server": _server_rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", choices=sorted(_PARTS), help="one part only")
    parser.add_argument(
        "--no-write", action="store_true", help="leave docs/performance.md as it is"
    )
    options = parser.parse_args(arguments)
    plan = _QUICK if options.quick else _FULL
    parts = [options.only] if options.only else sorted(_PARTS, reverse=True)
    rows = [row for part in parts for row in _PARTS[part](plan)]
    command = "make bench" if not options.quick else "python -m tests.bench --quick"
    note = (
        f"Made by `{command}`: medians of {plan.rounds} in turns, {plan.seconds:g} s or"
        f" {plan.calls:,} calls each; {os.cpu_count()} cores, {platform.system()},"
        f" Python {platform.python_version()}."
    )
    text = table(rows, note=note)
    print(text)
    if options.only is None and not options.no_write:
        _PAGE.write_text(insert(_PAGE.read_text("utf-8"), text), "utf-8")
        print(f"\nwritten to {_PAGE.relative_to(_ROOT)}")


if __name__ == "__main__":
    main()
