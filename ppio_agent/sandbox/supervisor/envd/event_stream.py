"""The stream in which one caller is told of one program."""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from ppio_agent.sandbox.supervisor.loop import Loop, Timer
from ppio_agent.sandbox.supervisor.program import ExitStatus, Program
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, encode_frame

from .http import Connection, Headers
from .process_messages import end_event
from .rpc import RpcError, end_frame

__all__ = ["EventStream", "fail_stream"]

_MAX_DATA = 32 * 1024
_MAX_BACKLOG = 1024 * 1024
_KEEPALIVE = 90.0


class EventStream:
    """What one caller is told of one program; a `Listener`.

    The program lives on when the caller leaves, and is not held back by one that does
    not read: past 1 MiB unread the stream ends, or earlier if much is unread of others.

    Args:
        loop: Where it waits.
        connection: The caller, who is to be answered.
        program: What is told of.
        headers: Of the request.
        limit: Seconds after which the stream ends with an error; None is never.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        loop: Loop,
        connection: Connection,
        program: Program,
        headers: Headers,
        *,
        limit: float | None = None,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._program = program
        self._keepalive = _interval(headers.get("keepalive-ping-interval", ""))
        self._limit = limit
        self._timers: dict[str, Timer] = {}
        self._last_sent = 0.0
        self._over = False

    def begin(self) -> None:
        """Say that the program runs, and tell all of it from now on."""
        self._connection.on_gone = self._stop
        self._connection.begin(200, {"content-type": STREAM_CONTENT_TYPE})
        self._send({"start": {"pid": self._program.pid}})
        if not self._over:  # else the caller has left meanwhile
            self._program.attach(self)
            self._keep_alive()
            self._end_in_time()

    def output(self, stream: str, data: bytes) -> None:
        """Pass output on, in frames of bounded size."""
        for start in range(0, len(data), _MAX_DATA):
            connection = self._connection
            if connection.backlog > _MAX_BACKLOG or connection.greedy:
                self.fail("resource_exhausted", "the caller does not read the output")
                return
            piece = binascii.b2a_base64(data[start : start + _MAX_DATA], newline=False)
            self._send({"data": {stream: piece.decode("ascii")}})

    def ended(self, status: ExitStatus) -> None:
        """Pass the end on."""
        self._send({"end": end_event(status)})
        self._finish(end_frame())

    def fail(self, code: str, message: str) -> None:
        """End the stream with an error; nothing if it has ended."""
        if not self._over:
            self._finish(end_frame(RpcError(code, message)))

    def _send(self, event: Mapping[str, Any]) -> None:
        payload = json.dumps({"event": event}, separators=(",", ":")).encode()
        self._last_sent = self._loop.now()
        self._connection.write(encode_frame(payload))

    def _keep_alive(self) -> None:
        """Send something whenever nothing was sent for the interval."""
        left = self._last_sent + self._keepalive - self._loop.now()
        if left <= 0:
            self._send({"keepalive": {}})
            left = self._keepalive
        if not self._over:
            later = self._loop.call_later(left, self._keep_alive)
            self._timers["keepalive"] = later

    def _end_in_time(self) -> None:
        if self._limit is not None:
            message = f"the time limit of {self._limit:g} s is over"
            fail = partial(self.fail, "deadline_exceeded", message)
            self._timers["limit"] = self._loop.call_later(self._limit, fail)

    def _finish(self, last: bytes) -> None:
        self._stop()
        self._connection.write(last)
        self._connection.end()

    def _stop(self) -> None:
        self._over = True
        self._program.detach(self)
        for timer in self._timers.values():
            timer.cancel()


def fail_stream(connection: Connection, error: RpcError) -> None:
    """Answer with a stream that is nothing but an error."""
    connection.begin(200, {"content-type": STREAM_CONTENT_TYPE})
    connection.write(end_frame(error))
    connection.end()


def _interval(value: str) -> float:
    if re.fullmatch(r"[0-9]{1,6}", value.strip()):
        return float(value) or _KEEPALIVE
    return _KEEPALIVE
