"""One request and its answer, as waitress's task: environ, head, framing, refusals.

Head and first piece leave in one send, and a chunked answer keeps its connection.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from waitress.channel import ClientDisconnected
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

from .kit import request_id_of, status_line
from .lanes import Refusal, error_code

__all__ = ["ProblemTask", "Task"]

_log = logging.getLogger(__name__)

# Larger pieces are not copied once more to be sent together with the head.
_JOINED = 1 << 16
# How a forked child ends that came back from user code (sysexits.h: software).
_CHILD_CAME_BACK = 70


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
        try:
            body = self.channel.server.application(environ, self.start_response)
        finally:
            if os.getpid() != self.channel.pid:
                _end_child()
        try:
            if isinstance(body, list | tuple):
                if self.content_length is None:
                    self.content_length = sum(map(len, body))
                self.channel.keep_whole()
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
        config = self.channel.server.ppio_config
        error = cause.error if refused else _as_error(cause, config.max_request_size)
        # A request that could not be read leaves no known place to read on from.
        self.close_on_finish = not refused or cause.close
        self.channel.linger = self.close_on_finish
        request_id = request_id_of(self.request.headers.get("X_REQUEST_ID"))
        own = (*config.headers, (REQUEST_ID, request_id))
        reply = config.problem(error, request_id, headers=own)
        self._send(reply.respond(self._start))

    def _start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.start_response(status, headers)


def _end_child() -> None:
    """End a process that user code has forked and that came back from it.

    It has the sockets of its parent, and would serve them as well.
    """
    _log.error("a forked child came back from the agent's code; it ends here")
    os._exit(_CHILD_CAME_BACK)


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
