"""The local platform: sandboxes made, reached, paused and ended; what idle ones cost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from tests.bench.environments import ROOT, Unavailable
from tests.bench.plan import Plan
from tests.bench.processes import measured_by
from tests.bench.report import Side
from tests.bench.turns import Found, Turns, in_turns

__all__ = ["measure"]

_ADDRESS = ("url", "key", "echo", "raw", "program")


def measure(plan: Plan) -> Found:
    """Measure all of it, platform and client each in a process of its own."""
    found: dict[tuple[str, str], Side] = {}
    with _platform("process") as local, _platform("bubblewrap") as isolated:
        who = {"ours": ("create", local), "plain start": ("plain", local)}
        who["isolated"] = ("create_calmly", isolated)
        who["one by one"] = ("create", isolated)
        turns = in_turns(
            who,
            lambda name: _measured(*who[name], times=plan.rounds * 4),
            rounds=plan.few,
        )
        for name, one in turns.items():
            found["create/p50", name] = one.side("p50")
            found["create/p95", name] = one.side("p95")
        found |= _alone(plan, "at_once", local, {"platform/20": "seconds"})
        found |= _edge(plan, local)
        found |= _alone(
            plan,
            "life",
            local,
            {
                "platform/pause": "pause",
                "platform/resume": "resume",
                "platform/kill": "kill",
            },
        )
        figures = {"platform/uss": "uss", "platform/cpu": "cpu_percent"}
        found |= _alone(plan, "idle", local, figures, rounds=1)
    turns = in_turns(["ours"], lambda _: _start(), rounds=plan.rounds)
    found["platform/start", "ours"] = turns["ours"].side("start_ms")
    return found


def _edge(plan: Plan, local: Mapping[str, Any]) -> Found:
    size = 2**30 if plan.rounds > 1 else 2**27
    small = _turns(plan, "small", local, times=plan.rounds * 5)
    chunks = _turns(plan, "chunks", local, times=plan.rounds * 4)
    bulk = _turns(plan, "bulk", local, rounds=plan.rounds, size=size)
    return {
        ("edge/p50", "ours"): small.side("edge_p50"),
        ("edge/p50", "direct"): small.side("direct_p50"),
        ("edge/more/p50", "ours"): small.side("more_p50"),
        ("edge/more/p99", "ours"): small.side("more_p99"),
        ("edge/chunk", "ours"): chunks.side("more"),
        ("edge/bulk", "ours"): bulk.side("edge"),
        ("edge/bulk", "direct"): bulk.side("direct"),
        ("edge/grown", "ours"): bulk.side("grown"),
    }


def _alone(
    plan: Plan,
    what: str,
    local: Mapping[str, Any],
    figures: Mapping[str, str],
    *,
    rounds: int | None = None,
) -> Found:
    turns = _turns(plan, what, local, rounds=rounds)
    return {(key, "ours"): turns.side(name) for key, name in figures.items()}


def _turns(
    plan: Plan,
    what: str,
    local: Mapping[str, Any],
    *,
    rounds: int | None = None,
    **options: Any,
) -> Turns:
    once = partial(_measured, what, local, **options)
    turns = in_turns(["ours"], lambda _: once(), rounds=rounds or plan.few)
    return turns["ours"]


def _measured(what: str, local: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    if "reason" in local:
        raise Unavailable(local["reason"])
    address = {name: local[name] for name in (*_ADDRESS, "pid")}
    return measured_by("sandboxes", what, **address, **options)


@contextlib.contextmanager
def _platform(backend: str) -> Iterator[Mapping[str, Any]]:
    """Run a platform; where it cannot run, what is given holds only the reason."""
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        yield {"reason": "bwrap is not installed"}
        return
    script = ROOT / "tests" / "bench" / "servers" / "local.py"
    process = subprocess.Popen(
        [sys.executable, script, backend],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PPIO_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        line = process.stdout.readline() if process.stdout else b""
        if line:
            yield {**json.loads(line), "pid": process.pid}
        else:
            yield {"reason": f"a platform with {backend} does not start"}


def _start() -> Mapping[str, Any]:
    """Return how long a platform takes until it serves."""
    with _platform("process") as local:
        if "reason" in local:
            raise Unavailable(local["reason"])
        return {"start_ms": local["start_ms"]}
