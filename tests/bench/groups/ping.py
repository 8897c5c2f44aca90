"""Health checks while handlers hold all that a server has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.bench.environments import PEERS, Unavailable
from tests.bench.load.wire import JSON, SSE
from tests.bench.plan import Plan
from tests.bench.processes import measured_by, serving
from tests.bench.report import Side
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_SLOTS = 100
_SETTINGS = {
    "ours": {"max_concurrency": _SLOTS, "max_queue": _SLOTS},
    "plain": {"threads": _SLOTS},
}
_WHOM = ("ours", "plain", *PEERS)


def measure(plan: Plan) -> Found:
    """Measure checks while calls block and as many wait, and while streams block."""
    # Streams have a pause of a length that one loop over all of them still ends.
    streams = {"chunks": int(plan.held / 0.05), "pause": 0.05}
    return _measure(
        plan, "calls", handler="block", held=2 * _SLOTS, body={"seconds": plan.held}
    ) | _measure(
        plan, "streams", handler="stream", held=_SLOTS, body=streams, accept=SSE
    )


def _measure(
    plan: Plan,
    what: str,
    *,
    handler: str,
    held: int,
    body: Mapping[str, Any],
    accept: str = JSON,
) -> dict[tuple[str, str], Side]:
    def checks(who: str) -> Mapping[str, Any]:
        # A server of its own for each turn: the last one's calls still run in it.
        with serving([who], handler, _SETTINGS) as fleet:
            found = measured_by(
                "pings",
                fleet[who].port,
                held=held,
                body=body,
                accept=accept,
                seconds=plan.held - 0.5,
                limit=plan.patience,
            )
        if who == "ours" and handler == "block" and not found["queue_full"]:
            raise Unavailable("the queue was not full")
        return found

    turns = in_turns(_WHOM, checks, rounds=plan.few)
    return {
        (f"ping/{what}/{name}", who): turns[who].side(f"{name}_ms", capped=True)
        for who in _WHOM
        for name in ("p50", "p99")
    }
