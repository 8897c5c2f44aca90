"""Instant requests: how many a second, and how many the load generator could send."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from tests.bench.environments import PEERS
from tests.bench.plan import Plan
from tests.bench.processes import Fleet, measured_by, serving
from tests.bench.report import Side
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_THREADS = 16


def measure(plan: Plan) -> Found:
    """Measure requests a second at 1, 8, 64 connections, and at as many as threads."""
    found: dict[tuple[str, str], Side] = {}
    whom = ("ours", "web", *PEERS)
    with serving((*whom, "fixed"), "echo") as fleet:
        for many in (1, 8, 64):
            rates = partial(_rates, plan, fleet, connections=many)
            key = f"echo/{many}"
            sides = rates(whom, rounds=plan.rounds) | rates(["fixed"], rounds=1)
            found |= {(key, who): side for who, side in sides.items()}
    pair = ("ours", "plain")
    settings = {"ours": {"max_concurrency": _THREADS}, "plain": {"threads": _THREADS}}
    with serving(pair, "echo", settings) as fleet:
        sides = _rates(plan, fleet, pair, connections=_THREADS, rounds=plan.rounds)
        found |= {("echo/threads", who): side for who, side in sides.items()}
    return found


def _rates(
    plan: Plan, fleet: Fleet, whom: Iterable[str], *, connections: int, rounds: int
) -> dict[str, Side]:
    turns = in_turns(
        whom,
        lambda who: measured_by(
            "calls",
            fleet[who].port,
            connections=connections,
            seconds=plan.seconds,
            warm_up=plan.warm_up,
        ),
        rounds=rounds,
    )
    return {who: turns[who].side("rate") for who in turns}
