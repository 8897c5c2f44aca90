"""How long and how often things are measured. A value."""

from __future__ import annotations

from attrs import frozen

__all__ = ["FULL", "QUICK", "Plan"]


@frozen(kw_only=True)
class Plan:
    """The sizes of one run; times are seconds.

    Attributes:
        rounds: Turns of what is quick to measure.
        few: Turns of what takes long.
        seconds: Length of a load of instant requests.
        long: Length of a load of requests that take a while.
        warm_up: Load before a load is counted.
        drain: What requests under way get at the end of a load, for the next turn's sake.
        calls: Calls of a client whose cost is measured.
        limit: When 20 streams are given up; the slowest peer needs 20.4.
        patience: When whatever else does not end is given up.
        chunks: Chunks of the one fast stream.
        paced: Length of the streams whose chunks have time stamps.
        held: How long the handlers block that hold all slots.
        silence: How long a handler is silent before its first chunk.
        settle: What live streams get until all have had a chunk.
        appends: Entries appended to one ring.
    """

    rounds: int
    few: int
    seconds: float
    long: float
    warm_up: float
    drain: float
    calls: int
    limit: float
    patience: float
    chunks: int
    paced: float
    held: float
    silence: float
    settle: float
    appends: int


FULL = Plan(
    rounds=5,
    few=3,
    seconds=0.6,
    long=2.0,
    warm_up=0.3,
    drain=5.0,
    calls=3000,
    limit=22.0,
    patience=10.0,
    chunks=10_000,
    paced=1.5,
    held=1.5,
    silence=2.0,
    settle=3.0,
    appends=1_000_000,
)
QUICK = Plan(
    rounds=1,
    few=1,
    seconds=0.3,
    long=0.8,
    warm_up=0.2,
    drain=0.0,
    calls=500,
    limit=1.7,
    patience=1.7,
    chunks=10_000,
    paced=0.5,
    held=0.8,
    silence=0.5,
    settle=1.5,
    appends=100_000,
)
