"""What the tests of serving share: an HTTP client that hides nothing."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from attrs import frozen

from ppio_agent._util.threads import start_thread
from ppio_agent.serving import PPIOAgentRuntimeApp, PPIOAgentRuntimeServer

JSON = {"Content-Type": "application/json"}
_T = TypeVar("_T")

SSE = {"Accept": "text/event-stream"}


@frozen
class Answer:
    """One answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HttpAt:
    """Sends requests to a port of this machine, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def open(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request; return its connection and the head of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        chunked = body is not None and not isinstance(body, bytes)
        try:
            connection.request(
                method, path, body, dict(headers or {}), encode_chunked=chunked
            )
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and read the whole answer."""
        connection, response = self.open(method, path, body, headers)
        try:
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=_named(headers))

    def invoke(
        self, payload: Any, path: str = "/invocations", **headers: str
    ) -> Answer:
        """Call the agent."""
        body = json.dumps(payload).encode()
        return self.request("POST", path, body, {**JSON, **_named(headers)})

    def stream(
        self, payload: Any, headers: Mapping[str, str] = SSE
    ) -> tuple[http.client.HTTPConnection, Iterator[bytes]]:
        """Call the agent; return the connection and the lines as they come."""
        connection, response = self.open(
            "POST", "/invocations", json.dumps(payload).encode(), headers
        )
        assert response.status == 200, response.read()
        return connection, iter(response.readline, b"")


class Http(HttpAt):
    """Sends requests to a server of this process."""

    def __init__(self, server: PPIOAgentRuntimeServer) -> None:
        super().__init__(server.port)
        self.server = server

    def lane(self, name: str) -> dict[str, int]:
        """Return the numbers of one of the server's lanes."""
        found: dict[str, int] = self.server._server.stats()["lanes"][name]
        return found


def in_background(call: Callable[[], _T]) -> Callable[[], _T]:
    """Call on a thread; return what waits for the outcome."""
    outcomes: list[_T] = []
    thread = start_thread("caller", lambda: outcomes.append(call()))

    def wait() -> _T:
        thread.join(20)
        (outcome,) = outcomes
        return outcome

    return wait


def _named(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def hang_up(connection: http.client.HTTPConnection) -> None:
    """Close a connection although its answer has not come."""
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def make_app(*, through_flask: bool = False, **settings: Any) -> PPIOAgentRuntimeApp:
    """Return an app, perhaps one whose requests go through Flask."""
    app = PPIOAgentRuntimeApp(**settings)
    if through_flask:
        assert app.flask is app.flask
    return app


def live(app: PPIOAgentRuntimeApp) -> int:
    """Return how many invocations are pending, or have code that has not ended."""
    return app._engine.registry.live


def waiting_inside(app: PPIOAgentRuntimeApp) -> int:
    """Return how many invocations wait for a slot, rather than for a thread."""
    return app._engine.waiting()


class Gate:
    """A place for handlers to stand, whatever they are told."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self._reached = threading.Semaphore(0)

    def reach(self) -> None:
        self._reached.release()

    def stand(self) -> None:
        self.reach()
        self.opened.wait(30)

    def wait_reached(self, times: int = 1) -> None:
        for _ in range(times):
            assert self._reached.acquire(timeout=10)

    def open(self) -> None:
        self.opened.set()
