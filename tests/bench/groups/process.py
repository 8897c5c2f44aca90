"""What a server process costs: time to start, memory when idle."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping
from typing import Any

from tests.bench.environments import PEERS, Unavailable
from tests.bench.memory import proportional_mib
from tests.bench.plan import Plan
from tests.bench.processes import Served, call, started
from tests.bench.report import Side
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_WHOM = ("ours", "flask", *PEERS)
_LIMIT = 30.0
_LOOK = 0.002


def measure(plan: Plan) -> Found:
    """Measure from the start of the process to the first health check, then memory."""
    in_turns(_WHOM, _start, rounds=1)  # so that all have their `.pyc` files
    turns = in_turns(_WHOM, _start, rounds=plan.rounds)
    found: dict[tuple[str, str], Side] = {}
    for who in _WHOM:
        found["start", who] = turns[who].side("start_ms")
        found["memory", who] = turns[who].side("memory_mib")
    return found


def _start(who: str) -> Mapping[str, Any]:
    began = time.monotonic()
    with started(who, "echo", {"flask": True} if who == "flask" else {}) as server:
        _await_ping(server, began + _LIMIT)
        took = time.monotonic() - began
        status, _ = call(server.port, "POST", "/invocations", {"prompt": "hello"})
        if status != 200:
            raise Unavailable(f"the first call was answered with {status}")
        memory = proportional_mib(server.process.pid)
    return {"start_ms": took * 1000, "memory_mib": memory}


def _await_ping(server: Served, end: float) -> None:
    tick = threading.Event()
    while time.monotonic() < end:
        server.check()
        try:
            if call(server.port, "GET", "/ping", timeout=1.0)[0] == 200:
                return
        except (OSError, http.client.HTTPException):
            tick.wait(_LOOK)
    raise Unavailable(f"no health check was answered within {_LIMIT:g} s")
