"""Waitress's connection, with what costs time or hangs overridden.

The loop is asked to write only after a worker could not send all itself: waitress asks
whenever there are bytes in the buffer, whose lock the sending worker holds, and so
spins. No thread waits for a reader of what is in memory anyway, and neither a reader
that takes nothing nor a client that dribbles is waited for without end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel

from .kit import Relayed, Reply
from .parser import Parser
from .task import ProblemTask, Task

__all__ = ["Channel"]

_log = logging.getLogger(__name__)

# Bytes taken in at once of a chunked body: each chunk costs time, however small.
_CHUNKED_RECV = 8192
# Bytes a second that a request has to come with, once its time is up.
_SLOWEST = 1024
# Seconds for which the rest of a refused request is read and thrown away.
_LINGER = 2.0


class Channel(HTTPChannel):  # type: ignore[misc] # waitress has no type hints
    """One connection."""

    close_when_flushed: bool

    parser_class = Parser
    task_class = Task
    error_task_class = ProblemTask

    # Guarded by outbuf_lock: whether bytes were left after the last attempt to send,
    # since when none has left, and whether the next request waits for that.
    _stuck: bool = False
    _stuck_since = 0.0
    _postponed = False
    # Whether all of the present answer is in memory already.
    _whole = False
    # When the first bytes came of a request that is not complete.
    _incomplete_since: float | None = None
    # Whether the client may still be sending when the answer is out.
    linger = False
    _lingers_until: float | None = None
    # The environ of a relayed request, for the thread that takes it over.
    relayed: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Guards what the poller knows of this connection.
        self.arm_lock = threading.Lock()
        self.pid = os.getpid()
        super().__init__(*args, **kwargs)
        # What is the same for all requests of this connection. Nothing of its own:
        # a cycle would keep it in memory after its end.
        self.environ = {
            "REMOTE_ADDR": self.addr[0],
            "REMOTE_HOST": self.addr[0],
            "REMOTE_PORT": str(self.addr[1]),
            "SCRIPT_NAME": "",
            "SERVER_NAME": self.server.server_name,
            "SERVER_PORT": str(self.server.effective_port),
            "SERVER_SOFTWARE": "ppio-agent",
            "wsgi.input_terminated": True,
            "wsgi.multiprocess": False,
            "wsgi.multithread": True,
            "wsgi.run_once": False,
            "wsgi.version": (1, 0),
        }

    @property
    def descriptor(self) -> int | None:
        """The open socket's number; None once it is closed."""
        number: int | None = self._fileno
        return number

    def del_channel(self, map: Any = None) -> None:
        """Leave the loop."""
        with self.arm_lock:
            super().del_channel(map)

    def service(self) -> None:
        """Serve the first request; then let the loop go on with this connection."""
        self._whole = False
        try:
            super().service()
        except Relayed:
            return  # the connection is another thread's
        self.server.ppio_loop.changed(self)

    def relay(self, environ: dict[str, Any], resume: Callable[[], Reply]) -> bool:
        """Let another thread answer the request that is being served.

        It calls the application once more, with the same environ and `resume` in it
        (`ppio.resume`). The thread that served the request so far must not answer; it
        raises `Relayed` when it has nothing more to do.

        Returns:
            Whether there was a thread for it; if not, nothing has changed.
        """
        relayed = {**environ, "ppio.resume": resume}
        taken: bool = self.server.task_dispatcher.relay(
            partial(self._take_over, relayed)
        )
        return taken

    def _take_over(self, relayed: dict[str, Any]) -> None:
        self.relayed = relayed
        self.service()
        if self.relayed is relayed:
            # Closed before: there is nobody to answer, and that has to be known.
            self.relayed = None
            with contextlib.suppress(Exception):
                close = getattr(relayed["ppio.resume"]().body, "close", None)
                if close is not None:
                    close()

    def writable(self) -> bool:
        """Tell the loop whether it has to send or close."""
        return self._stuck or self.will_close or self.close_when_flushed

    @property
    def pending(self) -> bool:
        """Whether anything is under way; if not, it only waits for a request."""
        times = (self._lingers_until, self._incomplete_since)
        return bool(self.requests) or self.writable() or times != (None, None)

    def readable(self) -> bool:
        """Tell the loop whether it has to read, if only to throw away."""
        return self._lingers_until is not None or bool(super().readable())

    def handle_write(self) -> None:
        """Send what is left; then close, or serve the next request, if that was all."""
        # A thread that is just sending has the lock, and arms the loop again.
        flush = self._flush_some_if_lockable if self.requests else self._flush_some
        _, failed = self._flush_exception(flush)
        if not self.total_outbufs_len and not failed:
            if self.close_when_flushed:
                self.close_when_flushed = False
                self._end()
            elif self._postponed:
                self._go_on()
        if self.will_close or failed:
            self.handle_close()

    def _end(self) -> None:
        if not self.linger:
            self.will_close = True
            return
        # Closing with input unread would reset the connection, and the client might
        # never see why it was refused.
        self._lingers_until = time.monotonic() + _LINGER
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def postpone(self) -> bool:
        """Let the next request wait until the output of the last has left.

        A client that sends requests and reads no answers would else keep threads.

        Returns:
            Whether there is such output; the loop then goes on when it has left.
        """
        with self.outbuf_lock:
            postponed: bool = self.total_outbufs_len > 0
            self._postponed = postponed
            return postponed

    def _go_on(self) -> None:
        self._postponed = False
        with self.requests_lock:
            if self.requests and self.connected:
                self.server.add_task(self)

    def handle_read(self) -> None:
        """Take what the client sends."""
        request = self.request
        chunked = request is not None and request.chunked
        try:
            data = self.socket.recv(_CHUNKED_RECV if chunked else self.adj.recv_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data or self._lingered():
            self.handle_close()
        elif self._lingers_until is None:
            self.last_activity = time.time()
            self.received(data)
            if self.request is None:
                self._incomplete_since = None
            elif self._incomplete_since is None:
                self._incomplete_since = time.monotonic()

    def _lingered(self) -> bool:
        until = self._lingers_until
        return until is not None and time.monotonic() >= until

    def _dribbles(self, now: float) -> bool:
        """Whether a request takes too long to come."""
        since, request = self._incomplete_since, self.request
        if since is None or request is None:
            return False
        came = request.header_bytes_received + request.body_bytes_received
        allowed: float = self.server.ppio_config.request_timeout + came / _SLOWEST
        return now - since > allowed

    def look(self) -> None:
        """Close what takes too long; the loop calls it now and then."""
        now = time.monotonic()
        patience = self.server.ppio_config.write_timeout
        stuck = self._stuck and now - self._stuck_since > patience
        if stuck or self._lingered() or self._dribbles(now):
            self.handle_close()

    def keep_whole(self) -> None:
        """Buffer the present answer without limit: it is in memory already."""
        self._whole = True

    def _flush_some(self, do_close: bool = True) -> bool:  # noqa: FBT001, FBT002 - waitress's signature
        sent: bool = super()._flush_some(do_close)
        stuck = self.total_outbufs_len > 0
        if stuck and (sent or not self._stuck):
            self._stuck_since = time.monotonic()
        self._stuck = stuck
        if stuck:
            self.server.ppio_loop.changed(self)
        return sent

    def _flush_exception(
        self, flush: Callable[..., bool] | None, **options: bool
    ) -> tuple[bool, bool]:
        if flush is None:  # all has left already, for which waitress returns None
            return False, False
        sent, failed = super()._flush_exception(flush, **options)
        if failed:
            self.server.ppio_loop.changed(self)
        return sent, failed

    def write_soon(self, data: bytes) -> int:
        """Send at once what the socket takes, and buffer the rest."""
        sent = 0
        if not self.total_outbufs_len:
            with self.outbuf_lock:
                if not self.total_outbufs_len and self.connected:
                    # What is wrong shows once more when the rest is sent.
                    with contextlib.suppress(OSError):
                        sent = self.socket.send(data)
        if sent < len(data) or not data:
            super().write_soon(data[sent:] if sent else data)
        self.last_activity = time.time()
        return len(data)

    def _flush_outbufs_below_high_watermark(self) -> None:
        # Waitress waits here for as long as the reader likes, which may be for ever.
        if self._whole or self.total_outbufs_len <= self.adj.outbuf_high_watermark:
            return
        timeout = self.server.ppio_config.write_timeout
        with self.outbuf_lock:
            self._flush_exception(self._flush_some, do_close=False)
            left = self.total_outbufs_len
            while self.connected and left > self.adj.outbuf_high_watermark:
                self.server.ppio_loop.changed(self)
                woken = self.outbuf_lock.wait(timeout)
                if not woken and self.total_outbufs_len >= left:
                    break
                left = self.total_outbufs_len
            else:
                return
        _log.info("closing a connection whose reader takes nothing")
        self.abort()
        raise ClientDisconnected

    def client_gone(self) -> bool:
        """Tell whether the client has closed its side; costs one system call."""
        if not self.connected:
            return True
        try:
            flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
            return not self.socket.recv(1, flags)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            return True

    def abort(self) -> None:
        """Close the connection at once, from any thread; a blocked writer wakes up."""
        self.connected = False
        self.server.ppio_loop.call(self.handle_close)
