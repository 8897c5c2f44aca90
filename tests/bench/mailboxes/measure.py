"""Measure one way to call actors: `measure.py <adapter> <what> <options as JSON>`.

Run by path in environments that have nothing of ours: the standard library only.
Prints one JSON object.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

_WARM_UP = 0.2


def _ask(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """Asks a second, each waited for, by so many threads over so many actors."""
    actors, threads = options["actors"], options["threads"]
    system.start(actors)
    stop = threading.Event()
    counts = [0] * threads

    def work(me: int) -> None:
        ask, number, count = system.ask, me, 0
        while not stop.is_set():
            for _ in range(10):
                ask(number % actors)
                number += threads
            count += 10
            counts[me] = count

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    workers = [threading.Thread(target=work, args=[me]) for me in range(threads)]
    workers += [threading.Thread(target=burn) for _ in range(options.get("busy", 0))]
    for worker in workers:
        worker.start()
    stop.wait(_WARM_UP)
    before, began = sum(counts), time.perf_counter()
    stop.wait(options["seconds"])
    after, took = sum(counts), time.perf_counter() - began
    stop.set()
    for worker in workers:
        worker.join()
    return {"rate": (after - before) / took}


def _flight(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """Answers a second of one actor, with so many requests under way."""
    system.start(1)
    system.flight(options["wide"])
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < options["seconds"]:
        system.flight(options["wide"])
        count += options["wide"]
    return {"rate": count / (time.perf_counter() - began)}


def _idle(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """Bytes and seconds for so many actors that do nothing, and once each has."""
    count = options["count"]
    system.start(1)
    system.ask(0)
    gc.collect()
    resident, began = _resident(), time.perf_counter()
    system.create(count)
    took = time.perf_counter() - began
    gc.collect()
    created = _resident()
    found = {"bytes": (created - resident) / count, "seconds": took}
    if options.get("touch"):
        for number in range(count):
            system.ask(number)
        gc.collect()
        found["touched"] = (_resident() - created) / count
    return found


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


def _durable(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """Turns a second that are kept, by so many callers."""
    return _ask(system, {**options, "actors": options["threads"]})


def _progress(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from a step's being told to a waiting watcher's having it."""
    system.start(1)
    return {"ms": statistics.median(system.delays(options["count"])) * 1000}


def _conversation(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """KiB that a conversation of so many turns keeps, beyond one of one turn."""
    return {"kib": system.conversation(options["turns"]) / 1024}


def _growth(system: Any, options: dict[str, Any]) -> dict[str, float]:
    """How a late turn of a conversation compares with an early one."""
    return {"ratio": system.growth(options["early"], options["late"])}


_WHAT = {
    "ask": _ask,
    "conversation": _conversation,
    "durable": _durable,
    "flight": _flight,
    "growth": _growth,
    "idle": _idle,
    "progress": _progress,
}


def _main() -> None:
    _, adapter, what, options = sys.argv
    given = json.loads(options)
    system = importlib.import_module(f"with_{adapter}").System(given)
    try:
        print(json.dumps(_WHAT[what](system, given)), flush=True)
    finally:
        system.close()


_main()
