"""A platform and an agent that cost next to nothing, for measuring clients.

One thread answers what is quick; a stream has one of its own. The body of an invocation
says what is wanted: ``{"delay": 0.05}`` answers late, ``{"what": "events"}`` streams.
The settings: `ready`, seconds from a sandbox's creation to its agent's first ping.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

_ANSWER = {"result": {"prompt": "hello"}, "status": "success", "duration": 0.001}
_LINES = 8000
_LARGE = "".join(f'data: "{"x" * 120}",\n' for _ in range(_LINES - 1))


def _events(request: dict[str, Any]) -> Iterator[bytes]:
    """So many small events as fast as they are taken."""
    for number in range(request["count"]):
        yield b'data: {"piece": %d, "text": "some words of an answer"}\n\n' % number


def _large(_request: dict[str, Any]) -> Iterator[bytes]:
    """One event of a mebibyte, in 8,000 lines, that is JSON."""
    data = f"data: [\n{_LARGE}data: 0]\n\n".encode()
    for at in range(0, len(data), 1 << 16):
        yield data[at : at + (1 << 16)]


def _stamped(request: dict[str, Any]) -> Iterator[bytes]:
    """Events that carry the time they were sent, 5 ms apart."""
    for _ in range(request["count"]):
        threading.Event().wait(0.005)
        yield b'data: {"at": %r}\n\n' % time.monotonic()


def _silent(request: dict[str, Any]) -> Iterator[bytes]:
    """One event, then silence, then the end."""
    yield b'data: {"piece": 0}\n\n'
    threading.Event().wait(request["seconds"])


_STREAMS = {
    "events": _events,
    "large": _large,
    "silent": _silent,
    "stamped": _stamped,
}


def _stream(client: socket.socket, request: dict[str, Any]) -> None:
    chunked = request.get("chunked", True)
    coding = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
    piece = b""
    try:
        client.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%b\r\n\r\n" % coding
        )
        for piece in _STREAMS[request["what"]](request):
            client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            client.sendall(b"0\r\n\r\n")
    except OSError:
        pass  # the client has left
    client.close()


def _whole(status: bytes, body: Any = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return (
        b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    ) % (status, len(data), data)


_INVOKED = _whole(b"200 OK", _ANSWER)
_FOUND = _whole(b"200 OK", [{"templateID": "bench", "aliases": ["bench"]}])
_DONE = b"HTTP/1.1 204 No Content\r\n\r\n"


class _Stage:
    """All connections."""

    def __init__(self, port: int, ready: float) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._data: dict[socket.socket, bytes] = {}
        # (when, number, to whom): answers that come late.
        self._late: list[tuple[float, int, socket.socket]] = []
        self._numbers = itertools.count(1)
        self._ready = ready
        self._ready_at = 0.0

    def run(self) -> None:
        while True:
            left = self._late[0][0] - time.monotonic() if self._late else None
            for key, _ in self._selector.select(left and max(left, 0.0)):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._receive(key.fileobj)
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                self._send(heapq.heappop(self._late)[2], _INVOKED)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._data[client] = b""
        self._selector.register(client, selectors.EVENT_READ)

    def _drop(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        del self._data[client]

    def _send(self, client: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):  # its end is read next
            client.sendall(data)

    def _receive(self, client: socket.socket) -> None:
        try:
            piece = client.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            self._drop(client)
            client.close()
            return
        data = self._data[client] + piece
        head, found, body = data.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            self._data[client] = data
            return
        self._data[client] = b""
        self._answer(client, head, body)

    def _answer(self, client: socket.socket, head: bytes, body: bytes) -> None:
        if head.startswith(b"POST /invocations") or b"/chat/" in head[:40]:
            if b'"what"' in body:
                self._drop(client)
                asked = (client, json.loads(body))
                threading.Thread(target=_stream, args=asked, daemon=True).start()
            elif b'"delay"' in body:
                at = time.monotonic() + json.loads(body)["delay"]
                heapq.heappush(self._late, (at, next(self._numbers), client))
            else:
                self._send(client, _INVOKED)
            return
        self._send(client, self._platform(head))

    def _platform(self, head: bytes) -> bytes:
        if head.startswith(b"GET /ping"):
            if time.monotonic() < self._ready_at:
                return _whole(b"503 Service Unavailable", {"status": "Unhealthy"})
            return _whole(b"200 OK", {"status": "Healthy"})
        if head.startswith(b"POST /sandboxes "):
            self._ready_at = time.monotonic() + self._ready
            sandbox = f"sb{next(self._numbers)}"
            return _whole(b"201 Created", {"sandboxID": sandbox, "templateID": "bench"})
        if head.startswith(b"GET /templates"):
            return _FOUND
        if head.startswith(b"GET /v2/sandboxes"):
            return _whole(b"200 OK", [])
        return _DONE


def _length(head: bytes) -> int:
    _, found, rest = head.lower().partition(b"content-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


_, _port, _handler, _settings = sys.argv
_Stage(int(_port), json.loads(_settings).get("ready", 0.0)).run()
