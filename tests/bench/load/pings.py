"""Health checks, one after the other, while handlers hold the server.

As many calls as asked for are sent and left alone; then the checks begin. Another call
tells how a server whose queue is full answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
import time
from collections.abc import Sequence

from .wire import JSON, SSE, answer_size, connect, percentile, request_bytes

__all__ = ["main"]

_PAUSE = 0.005


def _answer_in(connection: socket.socket, seconds: float) -> bytes:
    """Return the whole answer; nothing if it did not come in time.

    Raises:
        ConnectionError: The server closed the connection.
    """
    end = time.monotonic() + seconds
    data, size = b"", 0
    while not size or len(data) < size:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        try:
            piece = connection.recv(1 << 16)
        except TimeoutError:
            return b""
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
        size = size or answer_size(data)
    return data


def _ping(port: int, *, seconds: float, limit: float) -> dict[str, object]:
    """Send health checks for `seconds`, then wait for the last one up to `limit`."""
    tick = threading.Event()
    times: list[float] = []
    failures, capped = 0, False
    began = time.monotonic()
    connection = connect(port)
    while not capped and time.monotonic() - began < seconds:
        sent = time.monotonic()
        try:
            connection.sendall(request_bytes("/ping"))
            answer = _answer_in(connection, began + limit - sent)
        except ConnectionError:
            failures += 1
            connection = connect(port)
            continue
        times.append(time.monotonic() - sent)
        capped = not answer
        failures += not capped and answer[9:12] != b"200"
        tick.wait(_PAUSE)
    return {
        "p50_ms": percentile(times, 0.5) * 1000 if times else None,
        "p99_ms": percentile(times, 0.99) * 1000 if times else None,
        "checks": len(times),
        "failures": failures,
        "capped": capped,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--held", type=int, default=100)
    parser.add_argument("--body", required=True)
    parser.add_argument("--accept", choices=(JSON, SSE), default=JSON)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--limit", type=float, default=10.0)
    options = parser.parse_args(arguments)
    request = request_bytes(
        "/invocations", options.body.encode(), accept=options.accept
    )
    held = [connect(options.port) for _ in range(options.held)]
    for connection in held:
        connection.sendall(request)
    full = False
    with contextlib.closing(connect(options.port)) as one_more:
        threading.Event().wait(0.3)
        one_more.sendall(request)
        one_more.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            full = one_more.recv(1 << 16)[9:12] == b"503"
        found = _ping(options.port, seconds=options.seconds, limit=options.limit)
    print(json.dumps({**found, "queue_full": full}))


if __name__ == "__main__":
    main()
