"""Streams: many that block, one that is fast, and how long chunks are held back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.bench.environments import PEERS
from tests.bench.plan import Plan
from tests.bench.processes import measured_by, serving
from tests.bench.report import Side
from tests.bench.turns import Found, Turns, in_turns

__all__ = ["measure_blocking", "measure_chunks"]

_WHOM = ("ours", *PEERS)
_CHUNKS, _PAUSE = 10, 0.1


def measure_blocking(plan: Plan) -> Found:
    """Measure how long 20 and 100 streams that block take when asked for at once."""
    found: dict[tuple[str, str], Side] = {}
    for count, limit in ((20, plan.limit), (100, plan.patience)):
        turns = _in_turns(
            _WHOM,
            "stream",
            rounds=plan.few,
            streams=count,
            body={"chunks": _CHUNKS, "pause": _PAUSE},
            expect=_CHUNKS,
            limit=limit,
        )
        key = f"streams/{count}"
        found |= {(key, who): turns[who].side("wall", capped=True) for who in _WHOM}
        found[key, "ideal"] = Side(values=(_CHUNKS * _PAUSE,))
    return found


def measure_chunks(plan: Plan) -> Found:
    """Measure chunks a second of one stream, and the delays of paced chunks."""
    turns = _in_turns(
        _WHOM,
        "stream",
        rounds=plan.rounds,
        body={"chunks": plan.chunks, "pause": 0},
        expect=plan.chunks,
        limit=plan.patience,
    )
    found = {("chunks", who): turns[who].side("rate") for who in _WHOM}
    # The peers do not serve 100 streams at once, so that theirs would tell nothing.
    for readers, whom, pause in ((1, _WHOM, 0.005), (100, ("ours",), 0.2)):
        turns = _in_turns(
            whom,
            "stamped",
            rounds=plan.few,
            streams=readers,
            body={"seconds": plan.paced, "pause": pause},
            stamped=True,
            limit=plan.paced + 2.0,
        )
        for name in ("p99", "max"):
            key = f"delay/{readers}/{name}"
            found |= {(key, who): turns[who].side(f"delay_{name}_ms") for who in whom}
    return found


def _in_turns(
    whom: Sequence[str], handler: str, *, rounds: int, **load: Any
) -> dict[str, Turns]:
    with serving(whom, handler) as fleet:
        return in_turns(
            whom,
            lambda who: measured_by("streams", fleet[who].port, **load),
            rounds=rounds,
        )
