"""Actors: asks, memory, durable turns, progress and HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from typing import Any

from attrs import frozen

from tests.bench.plan import Plan
from tests.bench.processes import measured_by, measured_mailbox, serving
from tests.bench.report import Side
from tests.bench.turns import Found, in_turns

__all__ = ["measure"]

_IDLE = 100_000
_OTHERS_IDLE = 2_000
_WIDE = 500
_STEPS = 300
_TURNS = 128
_HTTP = ("actors", "fastapi", "fastapi fast")
_RUN = "/agents/echo/run"
_BODY = '{"conversation_id":"c-<n>","messages":[{"role":"user","content":"hello"}]}'


@frozen
class _Task:
    """One thing that ways to call actors are measured at.

    Attributes:
        key: What it is called among the measurements.
        what: What `mailboxes/measure.py` calls it.
        whom: Which of them can do it.
        number: Which of the numbers found is the figure.
        options: How it is done.
        own: Further options, by the name of who has them.
    """

    key: str
    what: str
    whom: tuple[str, ...]
    number: str
    options: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = {}


_OWN = {"pool": {"pool": True}, "busy": {"busy": 2}}


def _asks(plan: Plan) -> list[_Task]:
    whom = ("ours", "pykka", "thespian", "asyncio")
    found = []
    for actors in (1, 1000):
        for threads in (1, 4):
            alone = actors == threads == 1
            others = ("pool", "busy", "pingpong") if alone else ()
            options = {"actors": actors, "threads": threads, "seconds": plan.seconds}
            key = f"actors/ask/{actors}/{threads}"
            found.append(_Task(key, "ask", (*whom, *others), "rate", options, _OWN))
    wide = {"wide": _WIDE, "seconds": plan.seconds}
    in_flight = ("ours", "executor", "pykka", "asyncio")
    found.append(_Task("actors/flight", "flight", in_flight, "rate", wide))
    return found


def _memory() -> list[_Task]:
    few = {"count": _OTHERS_IDLE}
    many = {"count": _IDLE}
    own = {"ours": many, "asyncio": many}
    idle = ("ours", "pykka", "asyncio")
    return [
        _Task("actors/idle", "idle", idle, "bytes", few, own),
        _Task("actors/created", "idle", ("ours",), "seconds", many),
        _Task("actors/touched", "idle", ("ours",), "touched", {**many, "touch": True}),
        _Task("actors/talk", "conversation", ("ours",), "kib", {"turns": _TURNS}),
        _Task("actors/progress", "progress", ("ours",), "ms", {"count": _STEPS}),
    ]


def measure(plan: Plan) -> Found:
    """Measure all."""
    found: dict[tuple[str, str], Side] = {}
    for task in (*_asks(plan), *_memory()):
        found |= _measured(plan, task)
    found["actors/ask/1/1", "alone"] = found["actors/ask/1/1", "ours"]
    return {**found, **_durable(plan), **_http(plan)}


def _measured(plan: Plan, task: _Task) -> Found:
    def once(who: str) -> Mapping[str, Any]:
        options = {**task.options, **task.own.get(who, {})}
        return measured_mailbox(who, what=task.what, options=options)

    turns = in_turns(task.whom, once, rounds=plan.rounds)
    return {(task.key, who): turns[who].side(task.number) for who in task.whom}


def _durable(plan: Plan) -> Found:
    found: dict[tuple[str, str], Any] = {}

    def once(sync: str, threads: int, what: str, who: str) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "folder": folder,
                "sync": sync,
                "url": f"sqlite:///{folder}/actors.db?sync={sync}",
                "threads": threads,
                "seconds": plan.seconds,
                "early": 10,
                "late": 1000,
            }
            return measured_mailbox(who, what=what, options=options)

    for sync in ("normal", "full"):
        for threads in (1, 32):
            dbos = ("dbos",) if sync == "normal" and threads == 1 else ()
            whom = ("ours", "sqlite", *dbos)
            turns = in_turns(
                whom, partial(once, sync, threads, "durable"), rounds=plan.rounds
            )
            key = f"actors/durable/{sync}/{threads}"
            found |= {(key, who): turns[who].side("rate") for who in whom}
    grown = in_turns(["ours"], partial(once, "normal", 1, "growth"), rounds=plan.few)[
        "ours"
    ]
    return {**found, ("actors/growth", "ours"): grown.side("ratio")}


def _http(plan: Plan) -> Found:
    found = {}
    with serving(_HTTP, "echo") as fleet:
        for connections in (1, 8, 32):

            def once(who: str, connections: int = connections) -> Mapping[str, Any]:
                return measured_by(
                    "calls",
                    fleet[who].port,
                    path=_RUN,
                    body=_BODY,
                    connections=connections,
                    warm_up=plan.warm_up,
                    seconds=plan.seconds,
                )

            turns = in_turns(_HTTP, once, rounds=plan.rounds)
            key = f"actors/http/{connections}"
            found |= {(key, who): turns[who].side("rate") for who in _HTTP}
    return found
