"""What an app counts, in the text form that Prometheus reads (0.0.4).

Recording is a few additions, once an invocation. What is a state rather than a count
is asked of its owner when somebody reads the metrics. No label has a value that a
caller sent: callers could make any number of those.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from attrs import frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent.agent import Invocation, InvocationState
from ppio_agent.agent.lifetime import Departure
from ppio_agent.wire.models import PingStatus

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["METRICS_TYPE", "Counters", "Family", "collect", "exposition"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "ppio_agent_"
_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DEPARTURES = get_args(Departure)
_ENDS = tuple(state for state in InvocationState if state.terminal)
# What every app may say; further reasons appear when they happen.
_REASONS = ("server_busy", "server_draining")
# Reasons are our own codes, but a plug-in may invent some: not without limit.
_MAX_REASONS = 32
_PING = {PingStatus.HEALTHY: 0, PingStatus.HEALTHY_BUSY: 1, PingStatus.UNHEALTHY: 2}

Sample = tuple[str, Mapping[str, str], float]


@frozen
class Family:
    """One metric.

    Attributes:
        name: Without our prefix.
        kind: `counter`, `gauge` or `histogram`.
        help: What it tells, in a line.
        samples: Of each its suffix to the name, its labels and its value.
    """

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


class Counters:
    """What is counted as it happens, for one app.

    Thread safety: thread-safe. A forked child counts from zero.
    """

    def __init__(self) -> None:
        self._reset()
        renew_in_child(self, Counters._reset)

    def _reset(self) -> None:
        # Guards everything below.
        self._lock = threading.Lock()
        self._over: Counter[tuple[str, InvocationState]] = Counter()
        self._seconds = [0] * (len(_BOUNDS) + 1)
        self._seconds_sum = 0.0
        self._refused: Counter[str] = Counter()
        self._replays = 0
        self._left: Counter[Departure] = Counter()

    def over(self, invocation: Invocation) -> None:
        """Count an invocation that has ended; one that was refused never was one."""
        if invocation.refused:
            return
        seconds = invocation.duration
        bucket = bisect_left(_BOUNDS, seconds)
        with self._lock:
            self._over[invocation.handler.name, invocation.state] += 1
            self._seconds[bucket] += 1
            self._seconds_sum += seconds

    def refused(self, reason: str) -> None:
        """Count a request that was refused before it could start anything."""
        with self._lock:
            if reason not in self._refused and len(self._refused) >= _MAX_REASONS:
                reason = "other"
            self._refused[reason] += 1

    def replayed(self) -> None:
        """Count a request that got the invocation of an earlier one."""
        with self._lock:
            self._replays += 1

    def left(self, rule: Departure) -> None:
        """Count an invocation that its last reader has left before the end."""
        with self._lock:
            self._left[rule] += 1

    def families(
        self, entrypoints: Iterable[str], refused_before: Mapping[str, int]
    ) -> list[Family]:
        """Return what was counted.

        Args:
            entrypoints: All there are: what never happened is told, too.
            refused_before: Refusals by reason of the server in front of the app.
        """
        with self._lock:
            over, refused = self._over.copy(), self._refused.copy()
            left = self._left.copy()
            buckets, seconds, replays = (
                (*self._seconds,),
                self._seconds_sum,
                self._replays,
            )
        refused.update(refused_before)
        counts = tuple(accumulate(buckets))
        bounds = (*map(str, _BOUNDS), "+Inf")
        return [
            Family(
                "invocations_total",
                "counter",
                "Invocations that have ended, by entrypoint and state.",
                [
                    ("", {"entrypoint": name, "state": state.value}, over[name, state])
                    for name in sorted(entrypoints)
                    for state in _ENDS
                ],
            ),
            Family(
                "invocation_seconds",
                "histogram",
                "Seconds from the arrival of invocations to their end.",
                [
                    *(
                        ("_bucket", {"le": bound}, count)
                        for bound, count in zip(bounds, counts, strict=True)
                    ),
                    ("_sum", {}, seconds),
                    ("_count", {}, counts[-1]),
                ],
            ),
            Family(
                "refused_total",
                "counter",
                "Requests refused before anything was started, by reason.",
                [
                    ("", {"reason": reason}, refused[reason])
                    for reason in sorted({*_REASONS, *refused})
                ],
            ),
            _one(
                "idempotent_replays_total",
                "counter",
                "Requests that got the invocation of an earlier one with their key.",
                replays,
            ),
            Family(
                "disconnects_total",
                "counter",
                "Invocations left by their last reader before the end, by what became"
                " of them.",
                [("", {"rule": rule}, left[rule]) for rule in _DEPARTURES],
            ),
        ]


def collect(engine: Engine) -> list[Family]:
    """Return all metrics of an app.

    Blocking: as `/ping`, at most 1 s, while the agent's own check runs.
    """
    server = engine.server_stats() if engine.server_stats is not None else None
    in_front = 0 if server is None else server["lanes"]["invoke"]["waiting"]
    totals = engine.registry.totals()
    _, ping = engine.health.ping()
    counted = engine.counters.families(
        engine.entrypoints, {} if server is None else server["refused"]
    )
    return [
        *counted,
        _one("running", "gauge", "Slots held by user code.", engine.slots.busy),
        _one(
            "waiting",
            "gauge",
            "Invocations that wait for a slot.",
            engine.slots.waiting + in_front,
        ),
        _one(
            "abandoned",
            "gauge",
            "Invocations that have ended although their user code still runs.",
            totals.abandoned,
        ),
        _one(
            "busy_tasks",
            "gauge",
            "Background work that is marked by app.busy.",
            engine.health.busy_tasks,
        ),
        _one("readers", "gauge", "Event streams being read.", totals.readers),
        _one(
            "chunks_total",
            "counter",
            "Chunks that handlers have given to their streams.",
            totals.chunks,
        ),
        _one(
            "replay_bytes",
            "gauge",
            "Bytes of results and chunks kept for replays.",
            totals.size,
        ),
        _one(
            "ping_status",
            "gauge",
            "What /ping says: 0 Healthy, 1 HealthyBusy, 2 Unhealthy.",
            _PING.get(PingStatus(ping["status"]), 2),
        ),
    ]


def _one(name: str, kind: str, text: str, value: float) -> Family:
    return Family(name, kind, text, [("", {}, value)])


def exposition(families: Iterable[Family]) -> bytes:
    """Return metrics as text.

    Example:
        >>> print(exposition([Family("x", "gauge", "An x.", [("", {}, 1)])]).decode())
        # HELP ppio_agent_x An x.
        # TYPE ppio_agent_x gauge
        ppio_agent_x 1
        <BLANKLINE>
    """
    lines = []
    for family in families:
        name = _PREFIX + family.name
        lines.append(f"# HELP {name} {_escape(family.help)}")
        lines.append(f"# TYPE {name} {family.kind}")
        for suffix, labels, value in family.samples:
            lines.append(f"{name}{suffix}{_labels(labels)} {value}")
    return "\n".join([*lines, ""]).encode("utf-8", "replace")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    pairs = (f'{name}="{_escape(text, quote=True)}"' for name, text in labels.items())
    return "{" + ",".join(pairs) + "}"


def _escape(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text
