"""A load generator in a process of its own: keep-alive connections on raw sockets.

Prints one JSON object: answers a second and latencies. The same bytes go to every
server, and an answer is only looked at for its length, so that the generator's own
cost is small and equal.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import statistics
import time
from collections.abc import Sequence

__all__ = ["main"]

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


def _request(host: str, path: str, body: bytes) -> bytes:
    method = "POST" if body else "GET"
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection:
    """One connection with one request under way at a time."""

    def __init__(self, address: tuple[str, int], request: bytes) -> None:
        self._address = address
        self._request = request
        self._data = b""
        self._size: int | None = None
        self.times: list[float] = []
        self.failures = 0
        self.socket = self._connect()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send(self) -> None:
        self._began = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed a kept connection")
        self._data += data
        if self._size is None:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return False
            found = _LENGTH.search(self._data, 0, end)
            if found is None:
                raise ConnectionError("an answer without Content-Length")
            self._size = end + 4 + int(found[1])
        if len(self._data) < self._size:
            return False
        self.times.append(time.perf_counter() - self._began)
        self.failures += self._data[9:12] != b"200"
        self._data, self._size = b"", None
        return True


def _measure(connections: Sequence[_Connection], seconds: float) -> float:
    """Keep every connection busy for `seconds`; return how long it really took."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send()
        began = time.perf_counter()
        end = began + seconds
        while time.perf_counter() < end:
            for key, _ in selector.select(1.0):
                if key.data.receive():
                    key.data.send()
        return time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--path", default="/invocations")
    parser.add_argument("--body", default='{"prompt":"hello"}')
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args(arguments)
    address = (options.host, options.port)
    request = _request(options.host, options.path, options.body.encode())
    connections = [_Connection(address, request) for _ in range(options.connections)]
    took = _measure(connections, options.seconds)
    times = sorted(t for c in connections for t in c.times)
    print(
        json.dumps(
            {
                "requests_per_second": len(times) / took,
                "failures": sum(c.failures for c in connections),
                "p50_ms": statistics.median(times) * 1000,
                "p99_ms": times[int(len(times) * 0.99)] * 1000,
            }
        )
    )


if __name__ == "__main__":
    main()
