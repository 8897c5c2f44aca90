"""A client for tests: calls an app in process, the same way a server does."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from attrs import frozen

from ppio_agent._util.closing import Closing
from ppio_agent.wire.json import decode_json, encode_json
from ppio_agent.wire.sse import SSEEvent, SSEFramer

__all__ = ["AgentTestClient", "EventStream", "TestResponse"]

_WSGIApp = Callable[..., Iterable[bytes]]


@frozen
class TestResponse:
    """An answer, read to its end.

    Attributes:
        status_code: HTTP status.
        headers: Lower-case names.
        body: All of it.
    """

    __test__ = False  # pytest: this is no test

    status_code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def json(self) -> Any:
        """The body's JSON value."""
        return decode_json(self.body)

    @property
    def result(self) -> Any:
        """The envelope's result."""
        return self.json["result"]

    @property
    def error(self) -> str | None:
        """The envelope's error, or None."""
        found: str | None = self.json["error"]
        return found


class EventStream:
    """An answer that streams, read event by event.

    Attributes:
        status_code: HTTP status.
        headers: Lower-case names.

    Thread safety: one thread at a time.
    """

    def __init__(self, call: _Call, disconnect_after: int | None) -> None:
        self._call = call
        self._left = disconnect_after
        self._framer = SSEFramer()
        self._found: list[SSEEvent] = []
        self._pieces = iter(call)

    @property
    def status_code(self) -> int:
        """HTTP status."""
        return self._call.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Its headers, lower-case names."""
        return self._call.headers

    def __iter__(self) -> Iterator[SSEEvent]:
        return self

    def __next__(self) -> SSEEvent:
        if self._left == 0:
            self.close()
            raise StopIteration
        while not self._found:
            piece = next(self._pieces, None)
            if piece is None:
                self.close()
                raise StopIteration
            found = self._framer.feed(piece)
            self._found = [event for event in found if isinstance(event, SSEEvent)]
        if self._left is not None:
            self._left -= 1
        return self._found.pop(0)

    def close(self) -> None:
        """Leave, as a client that closes its connection."""
        self._call.close()


class _Call:
    """One request to a WSGI application."""

    def __init__(self, app: _WSGIApp, environ: dict[str, Any]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._gone = False
        environ["ppio.client_gone"] = lambda: self._gone
        self._body = app(environ, self._start)
        self._pieces = iter(self._body)
        # The head is only final with the first piece (PEP 3333).
        self._first = next(self._pieces, b"")

    def _start(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None
    ) -> None:
        del exc_info
        self.status = int(status.split(" ", 1)[0])
        self.headers = {}
        for name, value in headers:
            known = self.headers.get(name.lower())
            self.headers[name.lower()] = value if known is None else f"{known}, {value}"

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        yield from self._pieces

    def close(self) -> None:
        self._gone = True
        body, self._body = self._body, ()
        close = getattr(body, "close", None)
        if close is not None:
            close()


class AgentTestClient(Closing):
    """Calls an app without a socket: what a test of an agent needs.

    Used in a ``with`` statement it closes the app at the end.

    Args:
        app: The app.
        headers: Sent with every request.

    Thread safety: thread-safe.
    """

    def __init__(self, app: Any, *, headers: Mapping[str, str] | None = None) -> None:
        self._app = app
        self._headers = dict(headers or {})

    def get(
        self, path: str, *, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Send a GET request."""
        return self.request("GET", path, headers=headers)

    def post(
        self,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> TestResponse:
        """Send a POST request with `json` encoded, or with the bytes of `data`."""
        if data is None:
            data = encode_json(json)
        return self.request("POST", path, data=data, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        data: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> TestResponse:
        """Send a request and read its answer to the end."""
        call = self._open(method, path, data, headers)
        try:
            body = b"".join(call)
        finally:
            call.close()
        return TestResponse(call.status, call.headers, body)

    def invoke(
        self, payload: Any, *, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Call the agent; `.result` and `.error` are those of the envelope."""
        return self.post("/invocations", json=payload, headers=headers)

    def stream(
        self,
        payload: Any,
        *,
        accept: str = "text/event-stream",
        disconnect_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> EventStream:
        """Call the agent and return its events as they come.

        Args:
            payload: What is sent.
            accept: The Accept header, which decides on the dialect.
            disconnect_after: Number of events after which the client leaves.
            headers: Further headers.
        """
        own = {"Accept": accept, **(headers or {})}
        call = self._open("POST", "/invocations", encode_json(payload), own)
        return EventStream(call, disconnect_after)

    def cancel(self, invocation_id: str) -> TestResponse:
        """Ask for the end of an invocation."""
        return self.post(f"/invocations/{invocation_id}/cancel")

    def events(self, invocation_id: str, after: int = 0) -> EventStream:
        """Return the events of an invocation after number `after`."""
        path = f"/invocations/{invocation_id}/events?after={after}"
        return EventStream(self._open("GET", path, b"", None), None)

    def _open(
        self, method: str, path: str, data: bytes, headers: Mapping[str, str] | None
    ) -> _Call:
        target = path.encode().decode("latin-1")  # as WSGI writes bytes
        path, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": query,
            "REQUEST_URI": target,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "CONTENT_LENGTH": str(len(data)),
            "HTTP_HOST": "localhost",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(data),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in {**self._headers, **(headers or {})}.items():
            key = name.upper().replace("-", "_")
            plain = key in ("CONTENT_TYPE", "CONTENT_LENGTH")
            environ[key if plain else f"HTTP_{key}"] = value
        return _Call(self._app, environ)

    def close(self) -> None:
        """Close the app."""
        self._app.close()
