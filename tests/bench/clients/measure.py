"""Measure one client: `measure.py <adapter> <port> <what> <options as JSON>`.

Run by path in environments that have nothing of ours: the standard library only.
Prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import threading
import time
from typing import Any

_WARM_UP = 200


def _cost(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Processor time of a call, one after another."""
    calls = options["calls"]
    client.many(_WARM_UP, 1, {})
    cpu = time.process_time()
    client.many(calls, 1, {})
    return {"cpu_us": (time.process_time() - cpu) / calls * 1e6}


def _rate(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Calls a second, so many at a time."""
    calls, wide = options["calls"], options["wide"]
    client.many(_WARM_UP, wide, {})
    began = time.perf_counter()
    client.many(calls, wide, {})
    return {"rate": calls / (time.perf_counter() - began)}


def _batch(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Seconds for many calls that take a while, from nothing to the last answer."""
    began = time.perf_counter()
    client.batch(options["calls"], options["wide"], {"delay": options["delay"]})
    return {"seconds": time.perf_counter() - began}


def _events(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Events a second through one stream."""
    count = options["count"]
    client.read({"what": "events", "count": 200})
    began = time.perf_counter()
    found = client.read({"what": "events", "count": count})
    took = time.perf_counter() - began
    return {"rate": count / took, "failures": abs(len(found) - count)}


def _large(client: Any, _options: dict[str, Any]) -> dict[str, float]:
    """Seconds for one event of a mebibyte in 8,000 lines."""
    began = time.perf_counter()
    found = client.read({"what": "large"})
    took = time.perf_counter() - began
    whole = len(found) == 1 and len(found[0][1]) > 900_000
    return {"seconds": took, "failures": int(not whole)}


def _first(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from the sending of an event to the reader's having it."""
    request = {"what": "stamped", "count": 40, "chunked": options["chunked"]}
    waits = [at - json.loads(data)["at"] for at, data in client.read(request)]
    return {"ms": statistics.median(waits) * 1000, "failures": 40 - len(waits)}


def _close(client: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds until a closed silent stream is given up by all who hold it."""
    read, close = client.silent({"what": "silent", "seconds": options["seconds"]})
    read()
    reading = threading.Event()

    def wait() -> None:
        reading.set()
        try:
            read()
        except Exception:  # whatever it is woken with
            return

    reader = threading.Thread(target=wait)
    reader.start()
    reading.wait()
    threading.Event().wait(0.2)
    began = time.perf_counter()
    close()
    reader.join()
    took = time.perf_counter() - began
    return {"ms": took * 1000, "capped": took > options["seconds"] / 2}


def _ready(client: Any, options: dict[str, Any]) -> dict[str, float]:
    """Milliseconds from an agent's being ready to that being known."""
    began = time.perf_counter()
    client.another_session()
    return {"ms": (time.perf_counter() - began - options["ready"]) * 1000}


_WHAT = {
    "batch": _batch,
    "close": _close,
    "cost": _cost,
    "events": _events,
    "first": _first,
    "large": _large,
    "rate": _rate,
    "ready": _ready,
}


def _main() -> None:
    _, adapter, port, what, options = sys.argv
    module = importlib.import_module(f"with_{adapter}")
    client = module.Client(f"http://127.0.0.1:{port}")
    print(json.dumps(_WHAT[what](client, json.loads(options))), flush=True)
    client.close()


_main()
