"""Agents that block for 100 ms, at many clients at once."""

from __future__ import annotations

from tests.bench.environments import PEERS
from tests.bench.plan import Plan
from tests.bench.processes import measured_by, serving
from tests.bench.report import Side
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_CLIENTS = 200
_SECONDS = 0.1


def measure(plan: Plan) -> Found:
    """Measure calls a second beside what would be ideal."""
    whom = ("ours", *PEERS)
    with serving(whom, "block", {"ours": {"max_concurrency": 256}}) as fleet:
        turns = in_turns(
            whom,
            lambda who: measured_by(
                "calls",
                fleet[who].port,
                body={"seconds": _SECONDS},
                connections=_CLIENTS,
                seconds=plan.long,
                warm_up=plan.warm_up,
                drain=plan.drain,
            ),
            rounds=plan.few,
        )
    ideal = {("block", "ideal"): Side(values=(_CLIENTS / _SECONDS,))}
    return {("block", who): turns[who].side("rate") for who in whom} | ideal
