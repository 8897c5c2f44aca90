"""Silent handlers, clients that leave, 500 streams, a million chunks."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.environments import PEERS, Unavailable
from tests.bench.load.wire import JSON, SSE, connect, request_bytes
from tests.bench.plan import Plan
from tests.bench.processes import Fleet, measured_by, serving
from tests.bench.report import Side
from tests.bench.turns import Found, Turns, in_turns
from tests.support import wait_until

__all__ = ["measure"]

_STREAMS = 500
_NOT_TOLD = Side(reason="its handlers are not told")


def measure(plan: Plan) -> Found:
    """Measure all four."""
    return {**_first_byte(plan), **_cancel(plan), **_live(plan), **_ring(plan)}


def _first_byte(plan: Plan) -> Found:
    whom = ("ours", "plain", *PEERS)
    with serving(whom, "stream", {"plain": {"threads": 4}}) as fleet:

        def measured(silence: float, who: str) -> Mapping[str, Any]:
            body = {"chunks": 1, "pause": silence}
            return measured_by("streams", fleet[who].port, body=body, expect=1)

        in_turns(whom, partial(measured, 0.0), rounds=1)  # what a first request loads
        turns = in_turns(whom, partial(measured, plan.silence), rounds=1)
    found = {("first byte", who): turns[who].side("first_byte") for who in whom}
    return found | {("first byte", "silence"): Side(values=(plan.silence,))}


def _cancel(plan: Plan) -> Found:
    found: dict[tuple[str, str], Side] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(["ours"], "until_cancelled") as fleet,
    ):
        for what, accept in (("stream", SSE), ("call", JSON)):
            leave = partial(_leave, fleet, Path(folder), accept)
            turns = in_turns(["ours"], leave, rounds=plan.rounds)
            found[f"cancel/{what}", "ours"] = turns["ours"].side("seconds")
            found[f"cancel/{what}", "peer"] = _NOT_TOLD
    return found


def _leave(fleet: Fleet, folder: Path, accept: str, who: str) -> Mapping[str, Any]:
    """Call a handler that does nothing, and close the connection."""
    told = folder / f"{time.monotonic_ns()}"
    body = json.dumps({"seconds": 10, "tell": str(told)}).encode()
    with contextlib.closing(connect(fleet[who].port)) as connection:
        connection.sendall(request_bytes("/invocations", body, accept=accept))
        connection.settimeout(0.3)
        with contextlib.suppress(TimeoutError):  # a call says nothing; the handler runs
            while connection.recv(1 << 16):
                pass
        left = time.monotonic()
    try:
        wait_until(lambda: told.exists() and told.read_text(), timeout=5.0)
    except AssertionError:
        raise Unavailable("not within 5 s") from None
    return {"seconds": float(told.read_text()) - left}


def _live(plan: Plan) -> Found:
    whom = ("ours", "peer", "bedrock")
    # They must still be streaming when they are looked at.
    body = {"chunks": int(8 * plan.settle) + 10, "pause": 0.5}

    def live(who: str) -> Mapping[str, Any]:
        with serving([who], "stream", {"ours": {"max_concurrency": 520}}) as fleet:
            return measured_by(
                "live",
                fleet[who].port,
                fleet[who].process.pid,
                streams=_STREAMS,
                body=body,
                settle=plan.settle,
            )

    turns = in_turns(whom, live, rounds=1)
    found = {("live", who): turns[who].side("alive") for who in whom}
    memory = turns["ours"].side("above_idle_mib")
    return found | {("live memory", "ours"): memory}


def _ring(plan: Plan) -> Found:
    turns: Turns = in_turns(
        ["ours"],
        lambda _: measured_by("ring_cost", appends=plan.appends),
        rounds=plan.few,
    )["ours"]
    return {
        ("ring", "ours"): turns.side("rate"),
        ("ring memory", "ours"): turns.side("grown_mib"),
    }
