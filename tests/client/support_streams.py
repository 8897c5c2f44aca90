"""A way to an agent at any address, and a relay that cuts connections to it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from ppio_agent._util.backoff import Backoff
from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.threads import start_thread
from ppio_agent.client.agent_port import AgentPort
from ppio_agent.client.call import Call
from ppio_agent.client.endpoint import Route
from ppio_agent.client.stream import StreamHost, StreamingResponse
from ppio_agent.transport import RetryPolicy, Transport, TransportConfig

__all__ = ["CuttingRelay", "Host", "call_of", "open_port", "stream_of"]


class Host:
    """A session that only notes what it is told of its streams."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def watch(self) -> StreamHost:
        def note(word: str) -> Callable[[], None]:
            return lambda: self.told.append(word)

        return StreamHost(
            begin=note("begin"),
            end=note("end"),
            leave=note("leave"),
            abandon=note("abandon"),
        )


@contextlib.contextmanager
def open_port(
    url: str,
    *,
    max_retries: int = 3,
    idle_timeout: float = 20.0,
    max_event_bytes: int = 1 << 20,
    ca_bundle: str | None = None,
) -> Iterator[AgentPort]:
    """Give what speaks to the agent at `url`; it retries without long pauses."""
    retry = RetryPolicy(max_retries=max_retries, backoff=Backoff(base=0.01))
    config = TransportConfig(retry=retry, ca_bundle=ca_bundle)
    with Transport(config) as transport:
        yield AgentPort(
            transport=transport,
            route=Route(origin=url, headers={}),
            sandbox_id="sb1",
            session_id="s1",
            auth=lambda _request, _refresh: {},
            idle_timeout=idle_timeout,
            max_event_bytes=max_event_bytes,
            max_response_bytes=1 << 26,
        )


def call_of(
    *,
    deadline: float | None = 20.0,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    body: bytes = b'{"prompt":"Hi"}',
) -> Call:
    return Call.make(
        body,
        deadline=Deadline.after(deadline),
        idempotency_key=key,
        headers=headers,
    )


def stream_of(port: AgentPort, **call: Any) -> StreamingResponse:
    return port.open_stream(call_of(**call), Host().watch())


class CuttingRelay(Closing):
    """Passes connections on to a server, and cuts some of them on the way back.

    Args:
        port: Of the server, on this machine.
        cuts: One after another: after which bytes of what the server sends the
            connection is cut.

    Attributes:
        sent: All that the client sent.
    """

    def __init__(self, port: int, *cuts: bytes) -> None:
        self._target = port
        self._cuts = list(cuts)
        self.sent = bytearray()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [start_thread("relay", self._accept)]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for job in (partial(self._up, near, far), partial(self._down, far, near)):
                self._threads.append(start_thread("relay", job))

    def _up(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                self.sent += data
                far.sendall(data)
        _end(near, far)

    def _down(self, far: socket.socket, near: socket.socket) -> None:
        seen = b""
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                start = len(seen)
                seen += data
                if self._cuts and self._cuts[0] in seen:
                    mark = self._cuts.pop(0)
                    near.sendall(data[: seen.index(mark) + len(mark) - start])
                    break
                near.sendall(data)
        _end(near, far)

    def cut_next(self, after: bytes) -> None:
        """Cut once more: the next answer that has these bytes, behind them."""
        self._cuts.append(after)

    def close(self) -> None:
        _end(self._listener, *self._sockets)
        for thread in self._threads:
            thread.join(5)


def _end(*sockets: socket.socket) -> None:
    for sock in sockets:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
