"""Many streams at once: how long all take, how soon each chunk comes.

Chunks are counted in the raw bytes, by a key each of them has. Chunks with a time
stamp (`"at"`, of the clock that all processes of a machine share) tell how long they
were on their way.
"""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import time
from collections.abc import Iterable, Sequence
from statistics import median

from .wire import SSE, connect, percentile, request_bytes

__all__ = ["Stream", "main", "open_streams", "receive"]

_MARKER = b'"piece"'
_END = b"0\r\n\r\n"
_STAMP = re.compile(rb'"at": ?([0-9.]+)[,}]')


class Stream:
    """What has come of one stream.

    Args:
        connection: Where it comes from, once the request was sent.
        stamped: Whether its chunks have time stamps.

    Attributes:
        chunks: How many have come.
        first_at: When the first byte came, by `time.monotonic`.
        last_at: When the latest chunk came.
        ended: Whether it came to its end.
        failed: Whether the answer is not 200, or was cut off.
        delays: Seconds from each stamped chunk's making to its coming.
    """

    def __init__(self, connection: socket.socket, *, stamped: bool = False) -> None:
        self.socket = connection
        self.chunks = 0
        self.first_at: float | None = None
        self.last_at = 0.0
        self.ended = False
        self.failed = False
        self.delays: list[float] = []
        self._stamped = stamped
        self._rest = b""

    def feed(self, data: bytes, now: float) -> None:
        """Take what has come; nothing says that the server closed the connection."""
        if self.first_at is None:
            self.first_at = now
            self.failed = data[9:12] != b"200"
        joined = self._rest + data
        fresh = joined.count(_MARKER)
        if fresh:
            self.chunks += fresh
            self.last_at = now
        # A marker, stamp or end may have come in part; a whole one is not counted twice.
        self._rest = joined[-(len(_MARKER) - 1) :]
        if self._stamped:
            self._rest = self._note_delays(joined, now)
        if joined.endswith(_END) or not data:
            self.ended = True
            self.failed |= not data

    def _note_delays(self, joined: bytes, now: float) -> bytes:
        taken = 0
        for found in _STAMP.finditer(joined):
            self.delays.append(now - float(found[1]))
            taken = found.end()
        return joined[max(taken, joined.rfind(_MARKER) + 1) :]


def open_streams(port: int, count: int, body: bytes, *, stamped: bool) -> list[Stream]:
    """Connect `count` times, then ask for all streams at once."""
    request = request_bytes("/invocations", body, accept=SSE)
    sockets = [connect(port) for _ in range(count)]
    for one in sockets:
        one.sendall(request)
    return [Stream(one, stamped=stamped) for one in sockets]


def receive(streams: Iterable[Stream], seconds: float) -> bool:
    """Read for `seconds`, or until all have ended; tell whether they have."""
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            if not stream.ended:
                selector.register(stream.socket, selectors.EVENT_READ, stream)
        while selector.get_map():
            left = end - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                _read(key.data)
                if key.data.ended:
                    selector.unregister(key.fileobj)
    return True


def _read(stream: Stream) -> None:
    try:
        data = stream.socket.recv(1 << 18)
    except ConnectionError:
        data = b""
    stream.feed(data, time.monotonic())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--body", required=True)
    parser.add_argument("--expect", type=int, help="chunks of a whole stream")
    parser.add_argument("--limit", type=float, default=30.0)
    parser.add_argument("--stamped", action="store_true")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    streams = open_streams(
        options.port,
        options.streams,
        options.body.encode(),
        stamped=options.stamped,
    )
    ended = receive(streams, options.limit)
    wall = time.monotonic() - began
    wrong = [
        one
        for one in streams
        if one.failed or (one.ended and options.expect not in (None, one.chunks))
    ]
    firsts = [one.first_at - began for one in streams if one.first_at is not None]
    lasts = [one.last_at - began for one in streams if one.chunks]
    delays = [delay for one in streams for delay in one.delays]
    chunks = sum(one.chunks for one in streams)
    print(
        json.dumps(
            {
                "wall": wall,
                "capped": not ended,
                "failures": len(wrong),
                "first_byte": median(firsts) if firsts else None,
                "rate": chunks / max(lasts) if lasts else None,
                "delay_p99_ms": percentile(delays, 0.99) * 1000 if delays else None,
                "delay_max_ms": max(delays) * 1000 if delays else None,
            }
        )
    )


if __name__ == "__main__":
    main()
