"""The server that misbehaves as it is told."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from email.message import Message
from email.utils import parsedate_to_datetime

import pytest
from attrs import frozen

from ppio_agent import testing
from ppio_agent._util.clock import utc_now
from ppio_agent.testing import (
    FaultServer,
    Peer,
    Received,
    answer,
    busy,
    chunks,
    cut,
    drip,
    events,
    in_turn,
    reply,
    reset,
    retry_after_kinds,
    silence,
)
from ppio_agent.wire.sse import SSEEvent, SSEFramer
from tests.support import SLOW, new_threads, wait_until

REQUEST = (
    b"POST /a?b=1 HTTP/1.1\r\nHost: h\r\nX-Word:  two \r\nContent-Length: 2\r\n\r\n{}"
)


@frozen
class Answer:
    status: int
    headers: Message
    body: bytes


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(reply(200, b"well")) as server:
        yield server


def _connect(server: FaultServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def _get(server: FaultServer) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with closing(connection):
        connection.request("GET", "/")
        found = connection.getresponse()
        with found:
            return Answer(found.status, found.headers, found.read())


def _all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


def test_it_remembers_what_was_asked(server: FaultServer) -> None:
    """Byte by byte, over connections that are kept."""
    with _connect(server) as sock:
        for byte in REQUEST:
            sock.sendall(bytes([byte]))
        sock.sendall(REQUEST)
        wait_until(lambda: len(server.requests) == 2)
    first, second = server.requests
    assert (first.method, first.target, first.json()) == ("POST", "/a?b=1", {})
    assert first.headers["x-word"] == "two"
    assert (first.connection, second.connection, server.connections) == (1, 1, 1)


@pytest.mark.parametrize(
    "sent",
    [b"\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n"],
)
def test_what_is_no_request_is_answered_400(server: FaultServer, sent: bytes) -> None:
    """And ends the connection."""
    with _connect(server) as sock:
        sock.sendall(sent)
        assert _all(sock).startswith(b"HTTP/1.1 400 ")
    assert server.requests == []


def test_too_many_connections_are_reset() -> None:
    """The threads are bounded; a place that got free is given again."""
    with FaultServer(reply(), max_connections=1) as server:
        with _connect(server) as first:
            first.sendall(REQUEST)
            assert first.recv(100)
            with pytest.raises(ConnectionResetError), _connect(server) as second:
                second.recv(1)

        def served() -> bool:
            try:
                return _get(server).status == 200
            except OSError:
                return False

        wait_until(served)


@pytest.mark.parametrize("reset", [True, False])
def test_connections_are_dropped_on_demand(server: FaultServer, reset: bool) -> None:
    """Those that wait for the next request, politely or not."""
    with _connect(server) as sock:
        sock.sendall(REQUEST)
        assert sock.recv(100)
        server.drop_connections(reset=reset)
        if reset:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        else:
            assert sock.recv(1) == b""
    assert _get(server).status == 200


def test_the_script_may_be_replaced(server: FaultServer) -> None:
    """Between two requests."""
    assert _get(server).status == 200
    server.script = reply(404)
    assert _get(server).status == 404


def test_closing_leaves_no_thread() -> None:
    """However its scripts hold on to their connections."""
    names = new_threads("ppio-faults")
    server = FaultServer(in_turn(silence, drip(answer(), every=60.0)))
    with server, _connect(server) as one, _connect(server) as two:
        for sock in (one, two):
            sock.sendall(REQUEST)
        wait_until(lambda: len(server.requests) == 2)
        assert len(names()) == 3
    server.close()
    assert names() == []


def test_a_connection_that_never_agrees_on_tls_is_let_go() -> None:
    """Closing wakes its thread, too."""
    names = new_threads("ppio-faults")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with FaultServer(reply(), tls=context) as server, _connect(server):
        assert server.url.startswith("https://localhost:")
        wait_until(lambda: len(names()) == 2)
    assert names() == []


def test_a_forked_child_leaves_it_alone(server: FaultServer) -> None:
    """Closing there ends nothing here."""
    pid = os.fork()
    if pid == 0:
        try:
            server.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert _get(server).status == 200


class TestScripts:
    def test_a_whole_answer(self) -> None:
        """With a reason, its length, and further headers."""
        data = answer(429, b"no", {"X-A": "b"})
        assert data == (
            b"HTTP/1.1 429 Too Many Requests\r\nX-A: b\r\nContent-Length: 2\r\n\r\nno"
        )

    def test_one_after_another(self) -> None:
        """And then the last, over all connections."""
        with FaultServer(in_turn(reply(500), reply(404))) as server:
            assert [_get(server).status for _ in range(3)] == [500, 404, 404]

    def test_a_kept_connection_is_closed_after_the_answer(self) -> None:
        """By what follows a reply."""
        with FaultServer(reply(200, b"x", then=cut())) as server, _connect(server) as s:
            s.sendall(REQUEST)
            assert _all(s) == answer(200, b"x")

    def test_a_reset_in_the_head(self) -> None:
        """What was sent before it may or may not arrive."""
        with FaultServer(reset(b"HTTP/1.1 2")) as server, _connect(server) as sock:
            sock.sendall(REQUEST)
            with pytest.raises(ConnectionResetError):
                _all(sock)

    def test_an_answer_in_drips(self) -> None:
        """Byte by byte, not before its time."""
        with FaultServer(drip(b"HTTP", every=0.02)) as server, _connect(server) as s:
            started = time.monotonic()
            s.sendall(REQUEST)
            assert s.makefile("rb").read(4) == b"HTTP"
            assert time.monotonic() - started > 0.07

    def test_events_of_an_agent(self) -> None:
        """Numbered, with an end; what follows instead cuts them off."""
        framer = SSEFramer()
        with FaultServer(events("a", {"b": 1})) as server:
            told = _get(server)
            assert told.headers["X-Invocation-Id"]
            found = [e for e in framer.feed(told.body) if isinstance(e, SSEEvent)]
        assert [(e.id, e.event, e.data) for e in found] == [
            ("1", "message", '"a"'),
            ("2", "message", '{"b":1}'),
            ("3", "end", '{"status":"succeeded"}'),
        ]
        with (
            FaultServer(events("a", then=cut())) as server,
            pytest.raises(http.client.IncompleteRead) as broken,
        ):
            _get(server)
        assert broken.value.partial == b'id: 1\ndata: "a"\n\n'

    def test_chunks_until_the_connection_is_closed(self) -> None:
        """The other form of a stream."""
        with FaultServer(chunks(b"a", b"b", chunked=False)) as server:
            assert _get(server).body == b"ab"

    def test_a_busy_server(self) -> None:
        """With each kind of Retry-After, and without one."""
        kinds = retry_after_kinds()
        assert set(kinds) == {
            "seconds", "fraction", "date", "negative", "past", "unreadable", "huge",
        }  # fmt: skip
        for name, sign in (("date", 1), ("past", -1)):
            gap = parsedate_to_datetime(kinds[name]) - utc_now()
            assert gap.total_seconds() * sign > 0
        scripts = [busy(value) for value in kinds.values()]
        with FaultServer(in_turn(*scripts, busy(status=429))) as server:
            for value in kinds.values():
                refused = _get(server)
                assert (refused.status, refused.headers["Retry-After"]) == (503, value)
            bare = _get(server)
            assert (bare.status, bare.headers["Retry-After"]) == (429, None)

    def test_a_script_of_ones_own(self) -> None:
        """A function of the connection and the request."""
        seen = threading.Event()

        def script(peer: Peer, request: Received) -> None:
            peer.send(answer(200, request.body))
            peer.wait_closed()
            seen.set()

        with FaultServer(script) as server:
            with _connect(server) as sock:
                sock.sendall(REQUEST)
                assert sock.recv(100) == answer(200, b"{}")
            assert seen.wait(5.0 * SLOW)


def test_every_name_is_there() -> None:
    """The package is lazy; what it lists, it has."""
    for name in testing.__all__:
        assert getattr(testing, name)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        testing.nope  # noqa: B018 - asking for it is the test
