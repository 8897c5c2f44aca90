"""What one call costs a client."""

from __future__ import annotations

from tests.bench.plan import Plan
from tests.bench.processes import measured_by, serving
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]


def measure(plan: Plan) -> Found:
    """Measure processor time of a call on a kept connection."""
    ways = {"ours": "transport", "requests": "requests"}
    with serving(["fixed"], "echo") as fleet:
        turns = in_turns(
            ways,
            lambda who: measured_by(
                "client_cost", ways[who], fleet["fixed"].port, calls=plan.calls
            ),
            rounds=plan.rounds,
        )
    return {("client", who): turns[who].side("cpu_us") for who in ways}
