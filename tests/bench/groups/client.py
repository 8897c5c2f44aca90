"""What clients make of a server that costs next to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import frozen

from tests.bench.plan import Plan
from tests.bench.processes import measured_client, serving
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_READY = 0.3


@frozen
class _Task:
    """One thing that clients are measured at.

    Attributes:
        key: What it is called among the measurements.
        what: What `clients/measure.py` calls it.
        whom: Which clients can do it.
        number: Which of the numbers found is the figure.
        options: How it is done.
        slow: Whether it takes long.
        where: Against which server.
    """

    key: str
    what: str
    whom: tuple[str, ...]
    number: str
    options: Mapping[str, Any]
    slow: bool = False
    where: str = "stage"


def _tasks(plan: Plan) -> list[_Task]:
    ppio = ("ppio", "ppio 1")
    every = ("ours", *ppio, "httpx", "requests", "openai")
    streaming = ("ours", "ppio", "requests", "openai")
    calls = plan.calls
    found = [_Task("client/cost", "cost", every, "cpu_us", {"calls": calls})]
    for wide in (1, 8, 32, 64):
        options = {"calls": calls, "wide": wide}
        whom = ("ours", "ppio", "httpx", "requests")
        found.append(_Task(f"client/rate/{wide}", "rate", whom, "rate", options))
    for wide in (64, 200):
        options = {"calls": 1000, "wide": wide, "delay": 0.05}
        whom = ("ours", "ppio", "httpx")
        key = f"client/batch/{wide}"
        found.append(_Task(key, "batch", whom, "seconds", options))
    pool = {"calls": 64, "wide": 16, "delay": 0.1}
    found.append(_Task("client/pool", "batch", ("ours",), "seconds", pool))
    many = {"count": plan.chunks}
    found.append(_Task("client/events", "events", streaming, "rate", many))
    large = ("ours", "requests", "openai")
    found.append(_Task("client/large", "large", large, "seconds", {}, slow=True))
    for chunked in (True, False):
        key = f"client/first/{'chunked' if chunked else 'until close'}"
        options = {"chunked": chunked}
        found.append(_Task(key, "first", streaming, "ms", options))
    silent = {"seconds": plan.silence}
    found.append(_Task("client/close", "close", large, "ms", silent, slow=True))
    ready = {"ready": _READY}
    found.append(_Task("client/ready", "ready", ("ours",), "ms", ready, where="late"))
    return found


def measure(plan: Plan) -> Found:
    """Measure cost, rate, batches, streams, closing and readiness."""
    found = {}
    with serving(["stage", "late"], "echo", {"late": {"ready": _READY}}) as fleet:
        for task in _tasks(plan):
            turns = in_turns(
                task.whom,
                partial(
                    measured_client,
                    what=task.what,
                    port=fleet[task.where].port,
                    options=task.options,
                ),
                rounds=plan.few if task.slow else plan.rounds,
            )
            for who in task.whom:
                side = turns[who].side(task.number, capped=task.what == "close")
                found[task.key, who] = side
    return found
