"""The lines of the table: what is compared with what, and what is aimed at. Pure.

The targets are those of the specification of speed and of the agent app's.
"""

from __future__ import annotations

from collections.abc import Mapping

from .actor_rows import ACTORS
from .lines import Beside, Line, own, ratio
from .report import Row, Side

__all__ = ["LINES", "rows"]

_OTHERS = {
    "alone": "the same without them",
    "ideal": "the ideal",
    "silence": "the handler's silence",
    "plain start": "a plain start of the same program",
    "isolated": "in bubblewrap, from a filled pool",
    "one by one": "in bubblewrap, one right after another",
    "direct": "the same agent, connected to directly",
}


def _many(connections: int) -> str:
    return f"{connections} connection{'s' if connections > 1 else ''}"


_PEERS = (Beside("peer"), Beside("fast"), Beside("bedrock"))

_ECHO = [
    Line(
        f"echo/{connections}",
        f"echo agent, requests/s, {_many(connections)}",
        (
            Beside("peer", ratio(">=", 3.5)),
            Beside("fast", ratio(">", 1.0)),
            Beside("bedrock"),
            Beside("web"),
        ),
    )
    for connections in (1, 8, 64)
] + [
    Line(
        "echo/threads",
        "echo agent, requests/s, 16 clients, 16 threads",
        [Beside("plain", ratio(">=", 0.6))],
    ),
    *(
        Line(
            f"echo/{connections}",
            f"the load generator itself, requests/s, {_many(connections)}",
            [Beside("web")],
            ours="fixed",
        )
        for connections in (1, 8, 64)
    ),
]

_STREAMS = [
    Line(
        "streams/20",
        "20 blocking streams at once, s until all are done",
        (Beside("ideal", own("<=", 1.15)), *_PEERS),
    ),
    Line(
        "streams/100",
        "100 blocking streams at once, s until all are done",
        (Beside("ideal"), *_PEERS),
    ),
    Line(
        "chunks",
        "one stream of 10,000 small chunks, chunks/s",
        (Beside("peer", ratio(">=", 3.0)), Beside("fast"), Beside("bedrock")),
    ),
    Line(
        "delay/1/max",
        "longest time a chunk was held back, ms, 1 reader",
        (Beside(None, own("<=", 2.0)), *_PEERS),
    ),
    Line(
        "delay/1/p99",
        "`yield` to socket, p99, ms, 1 reader",
        (Beside(None, own("<", 5.0)), *_PEERS),
    ),
    Line(
        "delay/100/p99",
        "`yield` to socket, p99, ms, 100 streams",
        [Beside(None, own("<", 50.0))],
    ),
]

_PINGS = [
    Line(
        "ping/calls/p50",
        "`/ping` p50, ms, 100 slots held and 100 calls waiting",
        (Beside("plain"), *_PEERS),
    ),
    Line(
        "ping/calls/p99",
        "`/ping` p99, ms, 100 slots held and 100 calls waiting",
        (Beside(None, own("<", 20.0)), Beside("plain", ratio("<=", 0.02)), *_PEERS),
    ),
    Line(
        "ping/streams/p50",
        "`/ping` p50, ms, 100 slots held by blocking streams",
        (Beside("plain"), *_PEERS),
    ),
    Line(
        "ping/streams/p99",
        "`/ping` p99, ms, 100 slots held by blocking streams",
        (Beside(None, own("<", 20.0)), Beside("plain"), *_PEERS),
    ),
]

_PROCESS = [
    Line(
        "start",
        "process start to the first `/ping` 200, ms",
        (Beside(None, own("<=", 250.0)), *_PEERS),
    ),
    Line(
        "memory",
        "idle memory after one call, PSS, MiB",
        (Beside(None, own("<=", 30.0)), *_PEERS),
    ),
    Line(
        "memory",
        "the same with Flask loaded, MiB",
        [Beside(None, own("<=", 30.0))],
        ours="flask",
    ),
]

_LIMITS = [
    Line(
        "first byte",
        "first byte of a stream whose handler is silent, s",
        (Beside("silence", ratio("<=", 0.05)), Beside("plain"), *_PEERS),
    ),
    Line(
        "cancel/stream",
        "closed client to `context.cancelled`, s, silent stream",
        [Beside("peer", own("<=", 0.6))],
    ),
    Line(
        "cancel/call",
        "closed client to `context.cancelled`, s, silent call",
        [Beside("peer", own("<=", 0.6))],
    ),
    Line(
        "live",
        (
            "500 live streams, a chunk each 0.5 s: how many had one in the last seconds"
            " (ours: `max_concurrency=520`)"
        ),
        (Beside(None, own(">=", 500)), Beside("peer"), Beside("bedrock")),
    ),
    Line(
        "live memory",
        "500 live streams, RSS above idle, MiB",
        [Beside(None, own("<=", 60.0))],
    ),
    Line(
        "ring",
        "one replay ring, no reader, appends/s",
        [Beside(None, own(">=", 100_000))],
    ),
    Line(
        "ring memory",
        "one replay ring, memory grown by after 2,048 entries, MiB",
        [Beside(None, own("<=", 1.0))],
    ),
]

_RATES = {
    1: (Beside("ppio"), Beside("httpx"), Beside("requests", ratio(">=", 1.0))),
    8: (Beside("ppio"), Beside("httpx"), Beside("requests")),
    32: (Beside("ppio"), Beside("httpx"), Beside("requests", ratio(">=", 0.8))),
    64: (Beside("ppio", ratio(">=", 8.0)), Beside("httpx"), Beside("requests")),
}

_CLIENT = [
    Line(
        "client/cost",
        "client, CPU us a call on a kept connection",
        (
            Beside("ppio", ratio("<=", 0.25)),
            Beside("ppio 1", ratio("<=", 0.25)),
            Beside("requests", ratio("<=", 0.5)),
            Beside("httpx"),
            Beside("openai"),
        ),
    ),
    *(
        Line(
            f"client/rate/{wide}",
            f"client, calls/s, {wide} thread{'s' * (wide > 1)}",
            beside,
        )
        for wide, beside in _RATES.items()
    ),
    Line(
        "client/batch/64",
        "1,000 calls of a 50 ms agent, 64 wide, s (ideal 0.80)",
        (Beside(None, own("<=", 1.0)), Beside("ppio"), Beside("httpx")),
    ),
    Line(
        "client/batch/200",
        "1,000 calls of a 50 ms agent, 200 wide, s (ideal 0.25)",
        (Beside(None, own("<=", 0.5)), Beside("ppio"), Beside("httpx")),
    ),
    Line(
        "client/pool",
        "`invoke_many`, 64 items of 100 ms, `pool(16)`, s (one by one 6.4)",
        [Beside(None, own("<=", 6.4 / 12))],
    ),
    Line(
        "client/events",
        "10,000 events of one stream, events/s",
        (Beside("ppio", ratio(">=", 2.5)), Beside("requests"), Beside("openai")),
    ),
    Line(
        "client/large",
        "one event of 1 MB in 8,000 lines, s",
        (Beside("requests", ratio("<=", 0.05)), Beside("openai")),
    ),
    *(
        Line(
            f"client/first/{how}",
            f"an event sent to its being read, ms, body {told}",
            (
                Beside(None, own("<=", 5.0)),
                Beside("ppio"),
                Beside("requests"),
                Beside("openai"),
            ),
        )
        for how, told in (("chunked", "in chunks"), ("until close", "until close"))
    ),
    Line(
        "client/close",
        "`close()` of a silent stream, ms until the reader is awake",
        (Beside(None, own("<", 10.0)), Beside("requests"), Beside("openai")),
    ),
    Line(
        "client/ready",
        "an agent's being ready to that being known, ms",
        [Beside(None, own("<=", 200.0))],
    ),
]

_PLATFORM = [
    Line(
        "create/p50",
        "platform, create to first `/ping`, p50, ms",
        (
            Beside("plain start", ratio("<=", 0.25)),
            Beside("isolated"),
            Beside("one by one"),
        ),
    ),
    Line(
        "create/p95",
        "platform, create to first `/ping`, p95, ms",
        (Beside(None, own("<", 100.0)), Beside("plain start")),
    ),
    Line(
        "create/p95",
        "the same in bubblewrap, from a filled pool, p95, ms",
        (Beside(None, own("<", 100.0)), Beside("plain start")),
        ours="isolated",
    ),
    Line(
        "create/p95",
        "the same in bubblewrap, one right after another, p95, ms",
        [Beside("plain start")],
        ours="one by one",
    ),
    Line(
        "platform/20",
        "platform, 20 creates at once until all answer, s",
        [Beside(None, own("<", 1.0))],
    ),
    Line("edge/p50", "edge, small request, p50, ms", [Beside("direct")]),
    Line(
        "edge/more/p50",
        "edge, small request, more than direct, p50, ms",
        [Beside(None, own("<=", 1.5))],
    ),
    Line(
        "edge/more/p99",
        "edge, small request, more than direct, p99, ms",
        [Beside(None, own("<=", 5.0))],
    ),
    Line(
        "edge/chunk",
        "edge, delay of a streamed event, more than direct, p50, ms",
        [Beside(None, own("<=", 2.0))],
    ),
    Line(
        "edge/bulk",
        "edge, 1 GiB body, MiB/s",
        [Beside("direct", ratio(">=", 0.5))],
    ),
    Line(
        "edge/grown",
        "edge, 1 GiB body, growth of the platform, MiB",
        [Beside(None, own("<=", 16.0))],
    ),
    *(
        Line(f"platform/{key}", f"platform, {what}, ms", [Beside(None, target)])
        for key, what, target in (
            ("pause", "pause of 20 processes", own("<", 50.0)),
            ("resume", "resume of 20 processes", own("<", 50.0)),
            ("kill", "`DELETE` of an agent that obeys SIGTERM", own("<", 300.0)),
            ("start", "start until it serves", own("<", 1000.0)),
        )
    ),
    Line(
        "platform/uss",
        "own memory of an idle supervisor, MiB",
        [Beside(None, own("<=", 10.0))],
    ),
    Line(
        "platform/cpu",
        "CPU of 50 idle sandboxes and their platform, % of a core",
        [Beside(None, own("<=", 2.0))],
    ),
]

LINES: tuple[Line, ...] = (
    *_ECHO,
    Line(
        "block",
        "100 ms blocking agent, calls/s, 200 clients (ours: `max_concurrency=256`)",
        (Beside("ideal", ratio(">=", 0.9)), *_PEERS),
    ),
    *_STREAMS,
    *_PINGS,
    *_PROCESS,
    *_LIMITS,
    *_CLIENT,
    *_PLATFORM,
    *ACTORS,
)


def rows(found: Mapping[tuple[str, str], Side], titles: Mapping[str, str]) -> list[Row]:
    """Return the rows of what was measured.

    Args:
        found: Measurements by key and name.
        titles: What the table calls those that stand beside, by name.
    """
    called = {**_OTHERS, **titles}
    return [
        Row(
            what=line.what,
            ours=found[line.key, line.ours],
            beside=called[beside.who] if beside.who else "",
            theirs=found[line.key, beside.who] if beside.who else None,
            target=beside.target,
        )
        for line in LINES
        if (line.key, line.ours) in found
        for beside in line.beside
    ]
