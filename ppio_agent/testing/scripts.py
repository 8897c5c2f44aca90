"""What a `FaultServer` may do to a request: scripts, and what makes them.

A script is any function of a `Peer` and a `Received`; those here cover what networks,
proxies and busy servers do. Several take `then`, a script for what follows.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

from ppio_agent._util.ids import new_id
from ppio_agent._util.threads import start_thread
from ppio_agent.wire.headers import INVOCATION_ID
from ppio_agent.wire.json import encode_json

from .faults import Peer, Received, Script

__all__ = [
    "answer",
    "busy",
    "chunks",
    "cut",
    "drip",
    "events",
    "in_turn",
    "reply",
    "reset",
    "retry_after_kinds",
    "silence",
    "tunnel",
]


def answer(
    status: int = 200, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the bytes of a whole answer, for scripts that send raw bytes."""
    fields = {**(headers or {}), "Content-Length": str(len(body))}
    return _head(status, fields) + body


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    reason = http.client.responses.get(status, "Unknown")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {reason}\r\n{lines}\r\n".encode("latin-1")


def reply(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    zipped: bool = False,
    then: Script | None = None,
) -> Script:
    """Return a script that answers at once and keeps the connection.

    Args:
        status: HTTP status.
        body: The body.
        headers: Further headers; Content-Length is always there.
        zipped: Send the body compressed.
        then: What follows; `cut()` closes the connection that was to be kept.
    """
    extra = dict(headers or {})
    if zipped:
        body = gzip.compress(body)
        extra["Content-Encoding"] = "gzip"
    return _sending(answer(status, body, extra), then)


def _sending(data: bytes, then: Script | None) -> Script:
    def script(peer: Peer, request: Received) -> None:
        peer.send(data)
        if then is not None:
            then(peer, request)

    return script


def busy(retry_after: str | None = None, *, status: int = 503) -> Script:
    """Return a script that refuses, with this ``Retry-After`` or without one."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    body = encode_json({"code": "busy", "message": "too busy"})
    return reply(status, body, {"Content-Type": "application/json", **headers})


def retry_after_kinds() -> dict[str, str]:
    """Return a value of ``Retry-After`` for each kind that servers send.

    Returns:
        `seconds` 1, `fraction` 0.5, `date` in 2 s, `negative` seconds, a date in the
        `past`, `unreadable` text, and `huge`, an hour.
    """
    now = datetime.now(timezone.utc)

    def date(seconds: int) -> str:
        return format_datetime(now + timedelta(seconds=seconds), usegmt=True)

    return {
        "seconds": "1",
        "fraction": "0.5",
        "date": date(2),
        "negative": "-5",
        "past": date(-3600),
        "unreadable": "soon, perhaps",
        "huge": "3600",
    }


def in_turn(*scripts: Script) -> Script:
    """Return a script that uses these one after another, and then the last.

    One after another over all connections.
    """
    left: Iterator[Script] = iter(scripts)
    lock = threading.Lock()

    def script(peer: Peer, request: Received) -> None:
        with lock:
            chosen = next(left, scripts[-1])
        chosen(peer, request)

    return script


def silence(peer: Peer, request: Received) -> None:
    """Be a script that never answers."""
    del request
    peer.wait_closed()


def cut(data: bytes = b"") -> Script:
    """Return a script that sends `data` and closes the connection."""
    return _sending(data, lambda peer, _request: peer.close())


def reset(data: bytes = b"") -> Script:
    """Return a script that sends `data` and resets the connection."""
    return _sending(data, lambda peer, _request: peer.close(reset=True))


def drip(data: bytes, *, every: float) -> Script:
    """Return a script that sends one byte after another.

    Args:
        data: An answer as `answer` makes it, or a part of one.
        every: Seconds before each byte.
    """

    def script(peer: Peer, _request: Received) -> None:
        for byte in data:
            if peer.stop.wait(every):
                return
            peer.send(bytes([byte]))

    return script


def chunks(
    *pieces: bytes,
    chunked: bool = True,
    then: Script | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Return a script that streams: in chunks, or until the connection is closed.

    Args:
        pieces: Sent one by one.
        chunked: Whether in chunks.
        then: What to do instead of ending the body: `cut()`, `reset()`, `silence`.
        headers: Further headers.
    """
    coding = ("Transfer-Encoding", "chunked") if chunked else ("Connection", "close")
    head = {"Content-Type": "text/event-stream", **dict([coding]), **(headers or {})}

    def script(peer: Peer, request: Received) -> None:
        peer.send(_head(200, head))
        for piece in pieces:
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if then is not None:
            then(peer, request)
        elif chunked:
            peer.send(b"0\r\n\r\n")
        else:
            peer.close()

    return script


def events(
    *values: object,
    then: Script | None = None,
    headers: Mapping[str, str] | None = None,
) -> Script:
    """Return a script that streams as an agent does: each value is an event.

    The events are numbered from 1, the invocation has an id, and without `then` the
    last event is ``end``. (Agents that know nothing of that are made by `chunks`.)

    Args:
        values: What the agent yields; JSON values.
        then: What to do after them instead: `cut()` is a stream that breaks.
        headers: Further headers.
    """
    pieces = [
        b"id: %d\ndata: %b\n\n" % (number, encode_json(value))
        for number, value in enumerate(values, 1)
    ]
    if then is None:
        pieces.append(
            b'id: %d\nevent: end\ndata: {"status":"succeeded"}\n\n' % (len(values) + 1)
        )
    named = {INVOCATION_ID: new_id(), **(headers or {})}
    return chunks(*pieces, then=then, headers=named)


def tunnel(peer: Peer, request: Received) -> None:
    """Be a proxy: connect where CONNECT says and pass bytes both ways."""
    host, _, port = request.target.rpartition(":")
    try:
        upstream = socket.create_connection((host, int(port)), timeout=5.0)
    except (OSError, ValueError):
        peer.send(answer(502))
        return
    with upstream:
        upstream.settimeout(None)
        peer.send(_head(200, {}))
        back = start_thread("ppio-faults-tunnel", _pass, upstream, peer.sock)
        _pass(peer.sock, upstream)
        back.join(5.0)
    peer.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
