"""Calls on kept connections, one under way on each: answers a second, latencies.

An answer is looked at for its status and its length only, so that the generator's own
cost is small and the same whatever the server.
"""

from __future__ import annotations

import argparse
import json
import selectors
import time
from collections.abc import Sequence

from .wire import answer_size, connect, percentile, request_bytes

__all__ = ["main"]


class _Connection:
    """One connection with one request under way at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self.times: list[float] = []
        self.failures = 0
        self._open()

    def _open(self) -> None:
        self.socket = connect(self._port)
        self._data = b""
        self._size = 0

    def send(self) -> None:
        self._began = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Take what has come; tell whether the answer is whole.

        Raises:
            ConnectionError: There is no answer, or one without an end.
        """
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed a kept connection")
        if self._data:
            data = self._data + data
        size = self._size or answer_size(data)
        if not size or len(data) < size:
            self._data, self._size = data, size
            return False
        if data[9:12] == b"200":
            self.times.append(time.perf_counter() - self._began)
        else:
            self.failures += 1
        self._data, self._size = b"", 0
        return True

    def open_again(self) -> None:
        """Count a failure, and go on with a new connection."""
        self.failures += 1
        self.socket.close()
        self._open()


class _Load:
    """All connections, each of which sends anew when its answer is there."""

    def __init__(self, connections: Sequence[_Connection]) -> None:
        self._selector = selectors.DefaultSelector()
        self._under_way = len(connections)
        for connection in connections:
            self._watch(connection)
            connection.send()

    def _watch(self, connection: _Connection) -> None:
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def keep_up(self, seconds: float) -> float:
        """Keep every connection busy; return how long it really took."""
        began = now = time.perf_counter()
        while now < began + seconds:
            for key, _ in self._selector.select(0.1):
                if self._receive(key.data):
                    key.data.send()
            now = time.perf_counter()
        return now - began

    def drain(self, seconds: float) -> None:
        """Send nothing more, and wait for what is under way."""
        end = time.perf_counter() + seconds
        while self._under_way and time.perf_counter() < end:
            for key, _ in self._selector.select(0.1):
                self._under_way -= self._receive(key.data)

    def _receive(self, connection: _Connection) -> bool:
        try:
            return connection.receive()
        except ConnectionError:
            self._selector.unregister(connection.socket)
            connection.open_again()
            self._watch(connection)
            return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--path", default="/invocations")
    parser.add_argument(
        "--body",
        default='{"prompt":"hello"}',
        help="`<n>` in it is the connection's number",
    )
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=0.2)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--drain", type=float, default=0.0)
    options = parser.parse_args(arguments)
    connections = []
    for number in range(options.connections):
        body = options.body.replace("<n>", str(number)).encode()
        request = request_bytes(options.path, body)
        connections.append(_Connection(options.port, request))
    load = _Load(connections)
    load.keep_up(options.warm_up)
    for connection in connections:
        connection.times.clear()
    took = load.keep_up(options.seconds)
    times = [seconds for one in connections for seconds in one.times]
    load.drain(options.drain)
    print(
        json.dumps(
            {
                "rate": len(times) / took,
                "failures": sum(one.failures for one in connections),
                "p50_ms": percentile(times, 0.5) * 1000 if times else None,
                "p99_ms": percentile(times, 0.99) * 1000 if times else None,
            }
        )
    )


if __name__ == "__main__":
    main()
