"""`python -m tests.bench`: measure, print one table, write it into the docs.

Ours and what stands beside it take turns (A B A B), each in processes of its own, and
medians are compared: on a shared machine only ratios within one run mean something.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from types import MappingProxyType

from .environments import CLIENTS, MAILBOXES, PEERS, ROOT, SERVERS, Unavailable
from .groups import (
    actors,
    blocking,
    client,
    echo,
    limits,
    ping,
    process,
    streams,
)
from .groups import (
    platform as local,
)
from .plan import FULL, QUICK, Plan
from .processes import call, serving
from .report import Side, document, insert
from .rows import rows
from .turns import Found

_PAGE = ROOT / "docs" / "performance.md"
_GROUPS = MappingProxyType[str, Callable[[Plan], Found]](
    {
        "echo": echo.measure,
        "blocking": blocking.measure,
        "streams": streams.measure_blocking,
        "chunks": streams.measure_chunks,
        "ping": ping.measure,
        "process": process.measure,
        "limits": limits.measure,
        "client": client.measure,
        "platform": local.measure,
        "actors": actors.measure,
    }
)


def _titles() -> dict[str, str]:
    """Return what the servers are called, with what they really serve with."""
    programs = {**MAILBOXES, **CLIENTS, **SERVERS}
    titles = {who: program.title for who, program in programs.items()}
    with serving(PEERS, "about") as fleet:
        for who in PEERS:
            try:
                status, told = call(fleet[who].port, "POST", "/invocations", {})
            except (OSError, Unavailable):
                continue  # the rows say why it is missing
            if status != 200:
                continue
            about = told.get("result", told)
            titles[who] += f", {about['loop']} + {about['http']}"
    return titles


def _note(plan: Plan, command: str, took: float, load_before: float) -> str:
    return (
        f"Made by `{command}` in {took:.0f} s: medians of {plan.rounds} in turns, of"
        f" {plan.few} where one takes long; {os.cpu_count()} cores,"
        f" {platform.system()}, Python {platform.python_version()}, load average"
        f" {load_before:.1f} before. A ratio is ours to theirs."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument(
        "--only",
        choices=_GROUPS,
        action="append",
        default=[],
        help="this group only; repeatable",
    )
    parser.add_argument(
        "--no-write", action="store_true", help="leave docs/performance.md as it is"
    )
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    began, load_before = time.monotonic(), os.getloadavg()[0]
    titles = _titles()
    found: dict[tuple[str, str], Side] = {}
    for name in options.only or _GROUPS:
        started = time.monotonic()
        found |= _GROUPS[name](plan)
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    words = ["--quick"] * options.quick + [f"--only {one}" for one in options.only]
    command = " ".join(["python -m tests.bench", *words]) if words else "make bench"
    note = _note(plan, command, time.monotonic() - began, load_before)
    text = document(rows(found, titles), note=note)
    print(f"\n{text}")
    # Short or partial measurements are for whoever asked, not for the page.
    if plan is FULL and not options.only and not options.no_write:
        _PAGE.write_text(insert(_PAGE.read_text("utf-8"), text), "utf-8")
        print(f"\nwritten to {_PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
