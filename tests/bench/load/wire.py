"""What the load programs share: the bytes they send, their sockets, percentiles."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Sequence

__all__ = ["JSON", "SSE", "answer_size", "connect", "percentile", "request_bytes"]

JSON = "application/json"
SSE = "text/event-stream"

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)


def request_bytes(path: str, body: bytes = b"", *, accept: str = JSON) -> bytes:
    """Return one request, a POST if it has a body; every server gets the same bytes."""
    head = (
        f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Accept: {accept}\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
    )
    return f"{head}\r\n".encode() + body


def connect(port: int) -> socket.socket:
    """Return a new connection that sends at once."""
    connection = socket.create_connection(("127.0.0.1", port), 10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer_size(data: bytes) -> int:
    """Return the size of the answer that begins with `data`; 0 before its head is whole.

    Raises:
        ConnectionError: Its head does not tell.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 0
    found = _LENGTH.search(data, 0, end)
    if found is None:
        raise ConnectionError("an answer without Content-Length")
    return end + 4 + int(found[1])


def percentile(values: Sequence[float], share: float) -> float:
    """Return the least value that `share` of all values do not exceed.

    Example:
        >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
        2.0
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
