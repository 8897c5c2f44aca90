"""The lines about actors. Pure; a part of `rows`.

The targets are those of the specification of actors and of speed.
"""

from __future__ import annotations

from .lines import Beside, Line, own, ratio

__all__ = ["ACTORS"]


def _asked(actors: int, threads: int) -> str:
    over = "one actor" if actors == 1 else "1,000 actors"
    by = "one thread" if threads == 1 else f"{threads} threads"
    return f"asks/s, {over}, {by}"


_ASKS = [
    Line(
        f"actors/ask/{actors}/{threads}",
        _asked(actors, threads),
        (
            *([Beside("pingpong", ratio(">=", 2.0))] if actors == threads == 1 else []),
            Beside("pykka", ratio(">=", 6.0)),
            Beside("asyncio", ratio(">=", 15.0)),
            Beside("thespian"),
        ),
    )
    for actors in (1, 1000)
    for threads in (1, 4)
]

_DURABLE = [
    Line(
        f"actors/durable/{sync}/{threads}",
        f"durable turns/s of 1 KB, SQLite `{sync}`, {threads} caller{'s' * (threads > 1)}",
        (
            Beside("sqlite", ratio(">=", 0.4 if threads == 1 else 1.0)),
            *(
                [Beside("dbos", ratio(">=", 20.0))]
                if (sync, threads) == ("normal", 1)
                else []
            ),
        ),
    )
    for sync in ("normal", "full")
    for threads in (1, 32)
]

_HTTP = [
    Line(
        f"actors/http/{connections}",
        f"HTTP echo runs/s, {connections} connection{'s' * (connections > 1)}",
        (Beside("fastapi", ratio(">=", least)), Beside("fastapi fast")),
        ours="actors",
    )
    for connections, least in ((1, 1.5), (8, 1.2), (32, 1.5))
]

ACTORS: tuple[Line, ...] = (
    *_ASKS,
    Line(
        "actors/ask/1/1",
        "asks/s through the runtime's own threads",
        [Beside("pingpong", ratio(">=", 0.4))],
        ours="pool",
    ),
    Line(
        "actors/ask/1/1",
        "asks/s beside two CPU-bound threads",
        [Beside("alone", ratio(">=", 0.2))],
        ours="busy",
    ),
    Line(
        "actors/flight",
        "500 requests in flight, one actor, answers/s",
        (
            Beside("executor", ratio(">=", 3.0)),
            Beside("pykka"),
            Beside("asyncio"),
        ),
    ),
    Line(
        "actors/idle",
        "bytes per idle actor, of 100,000 (Pykka: of 2,000)",
        (Beside(None, own("<=", 600.0)), Beside("pykka"), Beside("asyncio")),
    ),
    Line(
        "actors/created",
        "100,000 actors created, s",
        [Beside(None, own("<=", 1.0))],
    ),
    Line(
        "actors/touched",
        "bytes more per actor after one turn, its result kept",
        [Beside(None, own("<=", 1024.0))],
    ),
    Line(
        "actors/talk",
        "memory of a conversation of 128 turns of 100 B, KiB",
        [Beside(None, own("<=", 64.0))],
    ),
    Line(
        "actors/progress",
        "a step of progress to a waiting watcher, p50, ms",
        [Beside(None, own("<=", 1.0))],
    ),
    *_DURABLE,
    Line(
        "actors/growth",
        "time of durable turn 1,000 of a conversation, to turn 10",
        [Beside(None, own("<=", 1.5))],
    ),
    *_HTTP,
)
