"""One HTTP/1.1 connection to envd: heads by h11, never blocking, answers streamed.

A connection comes from the platform alone, as one end of a socket pair; nothing listens.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

import h11

from ppio_agent.sandbox.supervisor.loop import READ, WRITE, Loop

from .budget import Budget

__all__ = ["MAX_BODY", "Connection", "Request"]

MAX_BODY = 4 * 1024 * 1024 + 5
"""Largest body taken as a whole: one frame of 4 MiB and its head."""

_log = logging.getLogger(__name__)
_CHUNK = 65536
_MAX_HEAD = 64 * 1024
# What a client may still send after it was refused, so that it reads why.
_MAX_UNWANTED = 64 * 1024 * 1024

Headers = Mapping[str, str]


class Request(NamedTuple):
    """The head of a request.

    Attributes:
        method: As sent.
        path: Target without the query.
        query: What follows the question mark.
        headers: Names in lower case; of a repeated one the last.
    """

    method: str
    path: str
    query: str
    headers: Headers


class Connection:
    """Reads requests one by one and writes their answers.

    Whoever answers takes the body by `collect` or by `receive`; an untaken one is read
    and dropped. A piece of a body is handed on before the next is read, so that a
    client is as fast as what takes it.

    Args:
        loop: Where it waits.
        sock: Owned by the connection.
        on_request: Told each head and this connection; it must answer by `reply`, or by
            `begin`, `write` and `end`, then or later.
        budget: What it holds in memory counts there.

    Attributes:
        on_gone: Called once when the client has left before the answer was complete.
        source: Called whenever the client has taken all that was written; for answers
            too long to be written at once.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_request: Callable[[Request, Connection], None],
        budget: Budget,
    ) -> None:
        self.on_gone: Callable[[], None] | None = None
        self.source: Callable[[], None] | None = None
        self._loop = loop
        self._sock = sock
        self._on_request = on_request
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._on_data: Callable[[bytes], None] | None = None
        self._on_body: Callable[[], None] | None = None
        self._unwanted = 0
        self._budget = budget
        self._held_bytes = 0
        self._body = bytearray()
        self._out = bytearray()
        self._open = True
        self._bare = False
        self._last = False
        self._held = False
        self._closing = False
        sock.settimeout(0)
        loop.watch(sock.fileno(), READ, self._ready)

    @property
    def backlog(self) -> int:
        """Bytes of answers that the client has not taken yet."""
        return len(self._out)

    @property
    def greedy(self) -> bool:
        """Whether more of the answer is held than there is room for."""
        return self._budget.refuses(len(self._out))

    @property
    def strained(self) -> bool:
        """Whether as much is held for all connections as may be."""
        return self._budget.over

    def receive(
        self, on_data: Callable[[bytes], None], on_end: Callable[[], None]
    ) -> None:
        """Take the body in pieces, as they come; neither is called after the answer."""
        self._on_data, self._on_body = on_data, on_end

    def hold(self) -> None:
        """Read no more of the client until `release`."""
        self._held = True
        self._flush()

    def release(self) -> None:
        """Read on. Idempotent."""
        if self._held:
            self._held = False
            self._flush()
            self._loop.call_later(0, self._advance)  # it may hold more already

    def collect(self, done: Callable[[bytes], None]) -> None:
        """Take the body as a whole; one there is no room for is refused."""

        def refuse(status: int, message: str) -> None:
            error = {"code": "resource_exhausted", "message": message}
            self.reply_json(status, error)

        def on_data(data: bytes) -> None:
            self._body += data
            self._count()
            if len(self._body) > MAX_BODY:
                refuse(413, "the body is too large")
            elif self._budget.refuses(len(self._body)):
                refuse(429, "too much is being sent to the sandbox at once")

        def on_end() -> None:
            body = bytes(self._body)
            self._drop_body()
            done(body)

        self.receive(on_data, on_end)

    def reply(self, status: int, body: bytes = b"", headers: Headers = {}) -> None:  # noqa: B006 - read only
        """Answer with a whole body."""
        lengths = {} if status == 204 else {"content-length": str(len(body))}
        self.on_gone = None
        self._send(
            h11.Response(status_code=status, headers=_pairs({**headers, **lengths})),
            *([h11.Data(body)] if body else []),
            h11.EndOfMessage(),
        )
        self._answered()

    def reply_json(self, status: int, value: object, headers: Headers = {}) -> None:  # noqa: B006 - read only
        """Answer with a JSON document."""
        body = json.dumps(value, separators=(",", ":")).encode()
        self.reply(status, body, {"content-type": "application/json", **headers})

    def begin(self, status: int, headers: Headers) -> None:
        """Answer with a body that comes in pieces."""
        self._send(h11.Response(status_code=status, headers=_pairs(headers)))

    def write(self, data: bytes) -> None:
        """Send one piece of the body, in one write unless the client is slow."""
        self._send(h11.Data(data))

    def end(self) -> None:
        """Say that the body is complete."""
        self.on_gone = self.source = None
        self._send(h11.EndOfMessage())
        self._answered()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._open:
            self._open = False
            self._loop.unwatch(self._sock.fileno())
            self._sock.close()
            self.source = self._on_data = self._on_body = None
            self._out.clear()
            self._drop_body()
            self._leave()

    def _leave(self) -> None:
        gone, self.on_gone = self.on_gone, None
        if gone is not None:
            gone()

    def _send(self, *events: h11.Event) -> None:
        if not self._open:
            return
        for event in events:
            if isinstance(event, h11.Response):
                # Nobody knows whether a body that was not asked for will still come.
                self._last = self._http.they_are_waiting_for_100_continue
            elif self._bare and type(event) is h11.Data:
                continue  # the answer to a HEAD is a head
            self._out += self._http.send(event) or b""
        self._flush()

    def _answered(self) -> None:
        """Go on to the next request once this one is read and answered."""
        self._on_data = self._on_body = None
        self._drop_body()
        if not self._open:
            return
        ours, theirs = self._http.our_state, self._http.their_state
        if theirs is h11.SEND_BODY and not self._last and not self._closing:
            return  # the rest of it is dropped as it comes
        if ours is h11.DONE and theirs is h11.DONE and not self._closing:
            self._http.start_next_cycle()
            self._unwanted = 0
            self._loop.call_later(0, self._advance)  # it may hold a request already
            return
        self._closing = True
        self._flush()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
            if self.source is not None and not self._out:
                self._call(self.source)
        if events & READ and self._open:
            self._read()

    def _read(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        # While an answer is under way no more than one further request is kept.
        if not data or len(self._http.trailing_data[0]) > _MAX_HEAD:
            self.close()
            return
        self._http.receive_data(data)
        self._advance()

    def _advance(self) -> None:
        try:
            while not (self._held or self._closing) and self._open and self._take():
                pass
        except h11.RemoteProtocolError as exc:
            self._refuse(exc.error_status_hint, "invalid_argument", str(exc))

    def _take(self) -> bool:
        """Take the next event of the request; return whether to go on."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=100, headers=[]))
            return False
        if isinstance(event, h11.Request):
            request = _request(event)
            self._bare = request.method == "HEAD"
            self._call(lambda: self._on_request(request, self))
        elif isinstance(event, h11.Data):
            self._take_data(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            on_body, self._on_data, self._on_body = self._on_body, None, None
            if on_body is not None:
                self._call(on_body)
            elif self._http.our_state not in (h11.SEND_RESPONSE, h11.SEND_BODY):
                self._answered()
            return False
        else:  # paused behind an answer, or closed
            return False
        return True

    def _take_data(self, data: bytes) -> None:
        if self._on_data is not None:
            on_data = self._on_data
            self._call(lambda: on_data(data))
            return
        self._unwanted += len(data)
        if self._unwanted > _MAX_UNWANTED:
            self.close()

    def _call(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - a request's outermost frame
            _log.exception("a request to envd failed")
            self._refuse(500, "internal", "the request failed inside the sandbox")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._leave()  # whoever was to answer does not any more
            self._closing = True
            self.reply_json(status, {"code": code, "message": message})
        else:
            self.close()

    def _flush(self) -> None:
        if not self._open:
            return
        if self._out:
            try:
                del self._out[: self._sock.send(self._out)]
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        self._count()
        if self._closing and not self._out:
            self.close()
            return
        events = 0 if self._held else READ
        if self._out or self.source is not None:
            events |= WRITE
        self._loop.watch(self._sock.fileno(), events, self._ready)

    def _drop_body(self) -> None:
        self._body = bytearray()
        self._count()

    def _count(self) -> None:
        held = len(self._out) + len(self._body)
        self._budget.change(held - self._held_bytes)
        self._held_bytes = held


def _pairs(headers: Headers) -> list[tuple[str, str]]:
    return list(headers.items())


def _request(head: h11.Request) -> Request:
    headers = {
        name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
    }
    path, _, query = head.target.decode("latin-1").partition("?")
    return Request(head.method.decode("ascii"), path, query, headers)
