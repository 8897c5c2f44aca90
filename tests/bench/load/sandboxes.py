"""A client of a local platform that measures it from outside, by bare HTTP."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.bench.memory import resident_mib

from .wire import percentile

__all__ = ["main"]

_LIMIT = 30.0


class Local:
    """The platform: its control plane and its edge."""

    def __init__(self, url: str, key: str, pid: int) -> None:
        self.port = urlsplit(url).port or 0
        self.pid = pid
        self._key = {"X-API-KEY": key, "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Ask the control plane."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LIMIT)
        with contextlib.closing(connection):
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, self._key)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status < 300, content
            return json.loads(content or b"null")

    def create(self, template: str) -> str:
        """Return the id of a new sandbox."""
        sandbox: str = self.call("POST", "/sandboxes", {"templateID": template})[
            "sandboxID"
        ]
        return sandbox

    def kill(self, sandbox: str) -> None:
        """End one."""
        self.call("DELETE", f"/sandboxes/{sandbox}")

    @contextlib.contextmanager
    def sandbox(self, template: str) -> Iterator[str]:
        """Have one for a while."""
        sandbox = self.create(template)
        try:
            yield sandbox
        finally:
            self.kill(sandbox)

    def way(self, sandbox: str) -> Way:
        """Return the way to a sandbox through the edge."""
        headers = {"PPIO-Sandbox-Id": sandbox, "PPIO-Sandbox-Port": "8080"}
        return Way(self.port, headers)


class Way:
    """A kept connection to an agent, through the edge or direct."""

    def __init__(self, port: int, headers: dict[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_LIMIT)
        self._headers = headers

    def open(self, path: str) -> http.client.HTTPResponse:
        """Return the answer to a GET, its body still to be read."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def get(self, path: str) -> bytes:
        """Return the whole answer to a GET."""
        return self.open(path).read()


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return (time.monotonic() - began) * 1000


def _first_ping(local: Local, template: str) -> float:
    began = time.monotonic()
    sandbox = local.create(template)
    local.way(sandbox).get("/ping")
    took = (time.monotonic() - began) * 1000
    local.kill(sandbox)
    return took


def _program(path: str) -> float:
    """Return how long a plain start of the same agent takes to its first answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, path],
        env={**os.environ, "PORT": str(port), "PPIO_AGENT_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    tick = threading.Event()
    try:
        while time.monotonic() < began + _LIMIT:
            with contextlib.suppress(OSError):
                Way(port, {}).get("/ping")
                return (time.monotonic() - began) * 1000
            tick.wait(0.002)
    finally:
        process.kill()
        process.wait()
    raise AssertionError("it never answered")


def create(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Create until the first answer, and end: one at a time."""
    _first_ping(local, options.echo)
    times = [_first_ping(local, options.echo) for _ in range(options.times)]
    return {"p50": percentile(times, 0.5), "p95": percentile(times, 0.95)}


def create_calmly(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Do that when what the platform keeps ready has been made anew, each time."""
    times = []
    for _ in range(options.times):
        _settle(local)
        times.append(_first_ping(local, options.echo))
    return {"p50": percentile(times, 0.5), "p95": percentile(times, 0.95)}


def _settle(local: Local) -> None:
    """Wait until neither the platform nor what it has started does anything."""
    tick, used = threading.Event(), -1.0
    deadline = time.monotonic() + _LIMIT
    while time.monotonic() < deadline:
        before = used
        with contextlib.suppress(psutil.NoSuchProcess):  # it is ending one
            platform = psutil.Process(local.pid)
            used = _cpu([platform, *platform.children(recursive=True)])
            if used == before:
                return
        tick.wait(0.25)
    raise AssertionError("the platform does not come to rest")


def plain(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Start the same program as a plain process."""
    times = [_program(options.program) for _ in range(options.times)]
    return {"p50": percentile(times, 0.5), "p95": percentile(times, 0.95)}


def at_once(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Create twenty at once, until all answer."""
    with ThreadPoolExecutor(20) as pool:

        def one(_: int) -> str:
            sandbox = local.create(options.echo)
            local.way(sandbox).get("/ping")
            return sandbox

        began = time.monotonic()
        made = list(pool.map(one, range(20)))
        took = time.monotonic() - began
        list(pool.map(local.kill, made))
    return {"seconds": took}


def small(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Send small requests by both ways in turns."""
    with local.sandbox(options.raw) as sandbox:
        edge = local.way(sandbox)
        direct = Way(json.loads(edge.get("/small"))["port"], {})
        times: dict[str, list[float]] = {"edge": [], "direct": []}
        for _ in range(options.times * 20):
            times["edge"].append(_timed(lambda: edge.get("/small")))
            times["direct"].append(_timed(lambda: direct.get("/small")))
    found = {
        f"{who}_{name}": percentile(values, share)
        for who, values in times.items()
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    return {
        **found,
        "more_p50": found["edge_p50"] - found["direct_p50"],
        "more_p99": found["edge_p99"] - found["direct_p99"],
    }


def chunks(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Read events that say when they were made, by both ways in turns."""
    with local.sandbox(options.raw) as sandbox:
        edge = local.way(sandbox)
        direct = Way(json.loads(edge.get("/small"))["port"], {})

        def delays(way: Way) -> list[float]:
            found = []
            with way.open("/stamped?events=100&pause=0.002") as answer:
                for line in answer:
                    if line.startswith(b"data: "):
                        found.append((time.monotonic() - float(line[6:])) * 1000)
            return found

        times: dict[str, list[float]] = {"edge": [], "direct": []}
        for _ in range(options.times // 4 or 1):
            times["edge"] += delays(edge)
            times["direct"] += delays(direct)
    medians = {who: percentile(values, 0.5) for who, values in times.items()}
    return {**medians, "more": medians["edge"] - medians["direct"]}


def bulk(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Read a large body by both ways; look at the platform's memory."""
    size = options.size
    with local.sandbox(options.raw) as sandbox:
        edge = local.way(sandbox)
        direct = Way(json.loads(edge.get("/small"))["port"], {})
        buffer = memoryview(bytearray(1 << 18))

        def rate(way: Way) -> float:
            began = time.monotonic()
            with way.open(f"/bulk?bytes={size}") as answer:
                while answer.readinto(buffer):
                    pass
            return size / (time.monotonic() - began) / 2**20

        rate(edge)
        before = resident_mib(local.pid)
        found = {"edge": rate(edge), "direct": rate(direct)}
        return {**found, "grown": resident_mib(local.pid) - before}


def life(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Pause, resume and end a sandbox of twenty processes; end one that obeys."""
    with local.sandbox(options.raw) as sandbox:
        local.way(sandbox).get("/ping")
        headers = {"PPIO-Sandbox-Id": sandbox, "PPIO-Sandbox-Port": "49983"}
        _spawn(local, sandbox, headers)
        pause = _timed(lambda: local.call("POST", f"/sandboxes/{sandbox}/pause", {}))
        resume = _timed(lambda: local.call("POST", f"/sandboxes/{sandbox}/connect", {}))
    sandbox = local.create(options.echo)
    local.way(sandbox).get("/ping")
    kill = _timed(lambda: local.kill(sandbox))
    return {"pause": pause, "resume": resume, "kill": kill}


def _spawn(local: Local, sandbox: str, headers: dict[str, str]) -> None:
    """Start twenty processes in it, and return when they are there."""
    token = local.call("GET", f"/sandboxes/{sandbox}")["envdAccessToken"]
    script = "for i in $(seq 19); do sleep 60 & done; echo up; wait"
    message = {"process": {"cmd": "/bin/bash", "args": ["-c", script]}}
    data = json.dumps(message).encode()
    body = b"\0" + len(data).to_bytes(4, "big") + data
    connection = http.client.HTTPConnection("127.0.0.1", local.port, timeout=_LIMIT)
    connection.request(
        "POST",
        "/process.Process/Start",
        body,
        {
            **headers,
            "X-Access-Token": token,
            "Content-Type": "application/connect+json",
        },
    )
    answer, seen = connection.getresponse(), b""
    while b'"stdout"' not in seen:
        seen += answer.read1()
    connection.close()


def idle(local: Local, options: argparse.Namespace) -> dict[str, object]:
    """Look at fifty idle sandboxes: memory of a supervisor, CPU of them all."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: local.create(options.echo), range(20)))
        for sandbox in made:
            local.way(sandbox).get("/ping")
        # What a start leaves to be done later is over by then.
        threading.Event().wait(1.0)
        platform = psutil.Process(local.pid)
        everything = [platform, *platform.children(recursive=True)]
        before = _cpu(everything)
        threading.Event().wait(options.seconds)
        used = (_cpu(everything) - before) / options.seconds
        supervisors = [
            process.memory_full_info().uss / 2**20
            for process in everything
            if process.name() == "ppio-supervisor"
        ]
        list(pool.map(local.kill, made))
    found: dict[str, object] = {"cpu_percent": used * 100 * 50 / len(made)}
    return {**found, "uss": percentile(supervisors, 0.5) if supervisors else None}


def _cpu(processes: Sequence[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


_WHAT = (create, create_calmly, plain, at_once, small, chunks, bulk, life, idle)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[one.__name__ for one in _WHAT])
    for name in ("url", "key", "echo", "raw", "program"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--size", type=int, default=2**30)
    # The system counts in hundredths of a second; fewer would be too coarse.
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(arguments)
    local = Local(options.url, options.key, options.pid)
    found = next(one for one in _WHAT if one.__name__ == options.what)(local, options)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
