"""Waitress's connection and its tasks, with what costs time or hangs overridden.

The loop is asked to write only after a worker could not send all itself: waitress asks
whenever there are bytes in the buffer, whose lock the sending worker holds, and so
spins. Head and first piece leave in one send. A chunked answer keeps its connection.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.proxy_headers import PROXY_HEADERS
from waitress.task import WSGITask
from waitress.utilities import build_http_date

from ppio_agent.exceptions import (
    InternalServerError,
    PPIOAgentError,
    PPIOAgentRuntimeError,
    RequestTooLargeError,
    ValidationError,
)
from ppio_agent.wire.headers import REQUEST_ID

from .kit import Relayed, Reply, problem, request_id_of, status_line
from .lanes import Refusal, error_code
from .parser import Parser

__all__ = ["Channel"]

_log = logging.getLogger(__name__)

# Larger pieces are not copied once more to be sent together with the head.
_JOINED = 1 << 16
# Seconds for which the rest of a refused request is read and thrown away.
_LINGER = 2.0


class Channel(HTTPChannel):  # type: ignore[misc] # waitress has no type hints
    """One connection."""

    close_when_flushed: bool

    # Whether bytes were left after the last attempt to send. Guarded by outbuf_lock.
    _stuck = False
    # Whether the client may still be sending when the answer is out.
    linger = False
    _lingers_until: float | None = None
    # The environ of a relayed request, for the thread that takes it over.
    relayed: dict[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Guards what the poller knows of this connection.
        self.arm_lock = threading.Lock()
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
            functools.partial(self._take_over, relayed)
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

    def readable(self) -> bool:
        """Tell the loop whether it has to read, if only to throw away."""
        return self._lingers_until is not None or bool(super().readable())

    def handle_write(self) -> None:
        """Send what is left; then close, if that was all."""
        if not (self.linger and self.close_when_flushed):
            super().handle_write()
            return
        _, failed = self._flush_exception(self._flush_some)
        if failed:
            self.handle_close()
        elif not self.total_outbufs_len and self.connected:
            # Closing with input unread would reset the connection, and the client
            # might never see why it was refused.
            self.close_when_flushed = False
            self._lingers_until = time.monotonic() + _LINGER
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def handle_read(self) -> None:
        """Take what the client sends."""
        if self._lingers_until is None:
            super().handle_read()
        elif not self.recv(self.adj.recv_bytes) or self._lingered():
            self.handle_close()

    def _lingered(self) -> bool:
        until = self._lingers_until
        return until is not None and time.monotonic() >= until

    def look(self) -> None:
        """Close what lingers for too long; the loop calls it now and then."""
        if self._lingered():
            self.handle_close()

    def _flush_some(self, do_close: bool = True) -> bool:  # noqa: FBT001, FBT002 - waitress's signature
        sent: bool = super()._flush_some(do_close)
        self._stuck = self.total_outbufs_len > 0
        if self._stuck:
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
        if self.total_outbufs_len <= self.adj.outbuf_high_watermark:
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


class Task(WSGITask):  # type: ignore[misc] # waitress has no type hints
    """One request; the application is a `RequestKit`, which checks what it sends."""

    chunked_response: bool
    close_on_finish: bool
    complete: bool
    content_bytes_written: int
    content_length: int | None
    environ: dict[str, Any] | None
    wrote_header: bool

    def service(self) -> None:
        """Run the request; waitress would take an OSError of the app for its own."""
        self.start()
        self.execute()
        self.finish()

    def get_environment(self) -> dict[str, Any]:
        """Return the WSGI environ, with our own keys."""
        if self.environ is None:
            self.environ, self.channel.relayed = self.channel.relayed, None
        if self.environ is not None:
            return self.environ
        request = self.request
        path = request.path
        environ: dict[str, Any] = self.channel.environ.copy()
        environ["PATH_INFO"] = "/" + path.lstrip("/") if path[:1] == "/" else path
        environ["QUERY_STRING"] = request.query
        environ["REQUEST_METHOD"] = request.command
        environ["REQUEST_URI"] = request.request_uri
        environ["SERVER_PROTOCOL"] = f"HTTP/{self.version}"
        environ["ppio.abort"] = self.channel.abort
        environ["ppio.arrived"] = request.arrived
        environ["ppio.client_gone"] = self.channel.client_gone
        environ["ppio.relay"] = self.channel.relay
        environ["wsgi.errors"] = sys.stderr
        environ["wsgi.input"] = request.get_body_stream()
        environ["wsgi.url_scheme"] = request.url_scheme
        for name, value in request.headers.items():
            key = _environ_name(name)
            if key is not None:
                environ[key] = value
        self.environ = environ
        return environ

    def execute(self) -> None:
        """Call the application and send what it gives."""
        environ = self.get_environment()
        body = self.channel.server.application(environ, self.start_response)
        try:
            if self.content_length is None and isinstance(body, list | tuple):
                self.content_length = sum(map(len, body))
            self._send(body)
        except ClientDisconnected:
            raise
        except Exception:
            # After the head a failure can only be told by cutting the body short.
            if not self.wrote_header:
                raise
            self.close_on_finish = True
            self.chunked_response = False
            if not environ.get("ppio.failed"):
                _log.exception("a response failed after it had begun")
        finally:
            close = getattr(body, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take the head of the answer (PEP 3333)."""
        if exc_info is not None:
            if self.wrote_header:
                raise exc_info[1]
            self.content_length = None
        elif self.complete:
            raise RuntimeError("start_response was called a second time")
        self.complete = True
        self.status = status
        self.response_headers = headers
        for name, value in headers:
            if name.lower() == "content-length":
                self.content_length = int(value)
        return self.write

    def _send(self, body: Iterable[bytes]) -> None:
        for piece in body:
            if piece:
                self.write(piece)
        missing = (self.content_length or 0) - self.content_bytes_written
        if missing > 0 and self._has_body:
            _log.warning("a response is %d bytes shorter than it said", missing)
            if not self.wrote_header:
                self.write(b"")
            self.close_on_finish = True

    @property
    def _has_body(self) -> bool:
        return bool(self.has_body) and self.request_method != "HEAD"

    @property
    def request_method(self) -> str:
        """The request's method; empty if that could not be read."""
        return getattr(self.request, "command", "")

    def write(self, data: bytes) -> None:
        """Send a piece of the body, the first one together with the head."""
        if not self.complete:
            raise RuntimeError("start_response was not called before the body")
        head = b""
        if not self.wrote_header:
            head = self.build_response_header()
            self.wrote_header = True
        if not self._has_body:
            data = b""
        elif self.chunked_response:
            data = b"%X\r\n%b\r\n" % (len(data), data) if data else b""
        elif self.content_length is not None:
            data = data[: self.content_length - self.content_bytes_written]
            self.content_bytes_written += len(data)
        if len(data) > _JOINED:
            self.channel.write_soon(head)
            head = b""
        self.channel.write_soon(head + data)

    def build_response_header(self) -> bytes:
        """Return the head; decides on framing and on keeping the connection."""
        lines = [f"HTTP/{self.version} {self.status}"]
        names = set()
        for name, value in self.response_headers:
            lower = name.lower()
            if lower != "content-length" or self.has_body:
                lines.append(f"{name}: {value}")
                names.add(lower)
        self._frame(lines, names)
        if "date" not in names:
            lines.append(f"Date: {_http_date(int(self.start_time))}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def _frame(self, lines: list[str], names: set[str]) -> None:
        sized = "content-length" in names or not self._has_body
        if not sized and self.content_length is not None:
            lines.append(f"Content-Length: {self.content_length}")
            sized = True
        asked = self.request.headers.get("CONNECTION", "").lower()
        if self.version == "1.1":
            self.chunked_response = not sized
            if not sized:
                lines.append("Transfer-Encoding: chunked")
            keep = "close" not in asked
        else:
            keep = sized and asked == "keep-alive"
        if self.channel.server.task_dispatcher.draining or not keep:
            self.close_on_finish = True
        if self.close_on_finish:
            lines.append("Connection: close")
        elif self.version == "1.0":
            lines.append("Connection: Keep-Alive")


class ProblemTask(Task):
    """Answers without the application: refusals, and what could not be parsed."""

    def execute(self) -> None:
        """Send the problem."""
        cause = self.request.error
        refused = isinstance(cause, Refusal)
        limit = self.channel.server.ppio_config.max_request_size
        error = cause.error if refused else _as_error(cause, limit)
        # A request that could not be read leaves no known place to read on from.
        self.close_on_finish = not refused or cause.close
        self.channel.linger = self.close_on_finish
        request_id = request_id_of(self.request.headers.get("X_REQUEST_ID"))
        own = (*self.channel.server.ppio_config.headers, (REQUEST_ID, request_id))
        reply = problem(error, request_id, headers=own)
        self._send(reply.respond(self._start))

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.start_response(status, headers)


Channel.parser_class = Parser
Channel.task_class = Task
Channel.error_task_class = ProblemTask


def _as_error(cause: Any, limit: int) -> PPIOAgentError:
    """Return one of our errors for one that waitress found itself."""
    if cause.code == 413:
        return RequestTooLargeError(
            f"the request's body is larger than {limit} bytes", limit=limit
        )
    if cause.code >= 500 and cause.code != 501:
        return InternalServerError("internal error")
    if cause.code == 400:
        return ValidationError(f"malformed request: {cause.body}", code=error_code(400))
    return PPIOAgentRuntimeError(
        f"{status_line(cause.code)[4:].lower()}: {cause.body}",
        code=error_code(cause.code),
        http_status=cause.code,
    )


@functools.lru_cache(maxsize=256)
def _environ_name(name: str) -> str | None:
    if name in PROXY_HEADERS:
        return None  # whoever sends them says what he likes: nobody is trusted
    return name if name in {"CONTENT_LENGTH", "CONTENT_TYPE"} else f"HTTP_{name}"


_date: tuple[int, str] = (0, "")


def _http_date(now: int) -> str:
    global _date  # noqa: PLW0603 - one text a second, for all requests of it
    known = _date
    if known[0] != now:
        known = _date = (now, build_http_date(now))
    return known[1]
