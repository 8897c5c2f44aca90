"""The edge as a whole: its limits, its threads, and how it starts and ends."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest

from ppio_agent.sandbox.edge import crowd, server
from ppio_agent.sandbox.edge.addressing import ControlPlane
from ppio_agent.sandbox.edge.server import Edge
from tests.sandbox.edge.edgekit import (
    AGENT,
    Client,
    Scripted,
    answer,
    get,
    read_request,
    replying,
    serving,
)
from tests.support import SLOW, new_threads, wait_until

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def streaming(go_on: threading.Event, sock: socket.socket) -> None:
    """Begin a stream, and go on when told to."""
    read_request(sock)
    sock.sendall(HEAD + b"5\r\nfirst\r\n")
    go_on.wait(60)
    sock.sendall(b"4\r\nlast\r\n0\r\n\r\n")
    read_request(sock)


def test_it_says_where_it_listens() -> None:
    """Port 0 has become a real one."""
    with serving() as edge:
        assert edge.port > 0
        assert edge.url == f"http://127.0.0.1:{edge.port}"


def test_a_literal_ipv6_address_is_bracketed() -> None:
    """As URLs demand."""
    try:
        with serving(host="::1") as edge:
            assert edge.url == f"http://[::1]:{edge.port}"
    except OSError:
        assert not os.path.exists("/proc/net/if_inet6"), "IPv6 is there and failed"


def test_an_address_in_use_is_the_callers_error() -> None:
    """Raised by start, and nothing is left behind."""
    with serving() as edge:
        before = descriptors()
        second = Edge(Scripted(), port=edge.port)
        with pytest.raises(OSError, match="is taken"):
            second.start()
        with pytest.raises(RuntimeError, match="not been started"):
            _ = second.port
        second.close()
        assert descriptors() <= before


def test_two_hundred_clients_at_once() -> None:
    """All in flight at the same time, all answered."""
    upstreams = Scripted()
    gate = threading.Barrier(200)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        gate.wait(60)
        sock.sendall(answer())

    upstreams.serve(AGENT, script)
    with serving(upstreams) as edge:
        clients = [Client(edge).send(get()) for _ in range(200)]
        assert [client.message()[0] for client in clients] == [200] * 200
        for client in clients:
            client.close()


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """How many descriptors there may be, raised as far as that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield max(soft, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_streams_cost_no_threads(many_descriptors: int) -> None:
    """The edge adds four at most, for 500 or as many as descriptors allow here."""
    edge_threads = new_threads("ppio-edge")
    upstreams = Scripted()
    go_on = threading.Event()
    upstreams.serve(AGENT, partial(streaming, go_on))
    with serving(upstreams) as edge:
        before = len(edge_threads())
        count = min(500, many_descriptors // 5)
        clients = [Client(edge).send(get()) for _ in range(count)]
        for client in clients:
            assert client.head()[0] == 200
            assert client.chunk() == b"first"
        assert len(edge_threads()) <= before + 4
        assert upstreams.under_way[AGENT] == count
        go_on.set()
        for client in clients:
            assert client.chunk() == b"last"
            client.close()


def test_a_stream_too_many_is_503() -> None:
    """It is told at once, those before it are served, and then there is room."""
    upstreams = Scripted()
    go_on = threading.Event()
    upstreams.serve(AGENT, partial(streaming, go_on))
    with serving(upstreams, max_connections=3) as edge:
        clients = [Client(edge) for _ in range(3)]
        for client in clients:
            assert client.send(get()).head()[0] == 200
        with Client(edge) as late:
            status, headers, body = late.send(get()).message()
            assert (status, headers["retry-after"]) == (503, "1")
            assert b'"code":503' in body
            clients.pop().close()
            wait_until(lambda: upstreams.under_way[AGENT] == 2)
            assert late.send(get()).head()[0] == 200
        go_on.set()
        for client in clients:
            assert [client.chunk(), client.chunk()] == [b"first", b"last"]
            client.close()


@pytest.mark.usefixtures("many_descriptors")
def test_streams_leave_a_reserve_for_the_control_plane() -> None:
    """Asked again and again by as many as like, no sandbox takes it."""
    upstreams = Scripted()
    go_on = threading.Event()
    upstreams.serve(AGENT, partial(streaming, go_on))
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    health = get(to=b"Host: x\r\n")
    with serving(upstreams, max_connections=40) as edge:
        streams = [Client(edge).send(get()) for _ in range(40)]
        for client in streams:
            assert client.head()[0] == 200
        refused = [Client(edge).send(get()) for _ in range(150)]
        for _ in range(3):
            with Client(edge) as operator:
                assert operator.send(health).message()[2] == b"control"
        assert refused[-1].message()[0] == 503
        go_on.set()
        for client in streams:
            assert [client.chunk(), client.chunk()] == [b"first", b"last"]
        for client in [*streams, *refused]:
            client.close()


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reserve of one."""
    monkeypatch.setattr(server, "_RESERVE", 1)


@pytest.mark.usefixtures("one_more")
def test_clients_who_ask_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half a head, half a small body, half a handshake or between requests."""
    monkeypatch.setattr(crowd, "_SPARED", 0.0)
    upstreams = Scripted()
    go_on = threading.Event()
    upstreams.serve(AGENT, partial(streaming, go_on))
    upstreams.serve(ControlPlane(), replying(answer()))
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
    with serving(upstreams, max_connections=3) as edge:
        stream = Client(edge).send(get())
        assert stream.head()[0] == 200
        idle = [Client(edge) for _ in range(3)]
        idle[0].send(get(to=b"Host: x\r\n")).message()
        idle[1].send(b"GET / HT")
        idle[2].send(post)
        wait_until(lambda: len(upstreams.headers) == 3)
        for late in [Client(edge) for _ in range(3)]:
            assert late.send(get(to=b"Host: x\r\n")).message()[0] == 200
            idle.append(late)
        for client in idle[:3]:
            assert client.read() == b""
        go_on.set()
        assert [stream.chunk(), stream.chunk()] == [b"first", b"last"]
        for client in [stream, *idle]:
            client.close()


@pytest.mark.usefixtures("one_more")
def test_a_client_without_room_waits_for_it() -> None:
    """Many who come at once are served one after another."""
    upstreams = Scripted()
    upstreams.serve(ControlPlane(), replying(answer()))
    with serving(upstreams, max_connections=0) as edge:
        clients = [Client(edge).send(get(to=b"Host: x\r\n")) for _ in range(4)]
        for client in clients:
            assert client.message()[0] == 200
            client.close()


def test_close_cuts_streams_and_leaves_nothing() -> None:
    """Idle clients, open streams, held requests, kept connections: all are gone."""
    edge_threads = new_threads("ppio-edge")
    before = descriptors()
    upstreams = Scripted()
    go_on = threading.Event()
    upstreams.serve(AGENT, replying(answer()))
    with serving(upstreams) as edge:
        idle = Client(edge)
        idle.send(get()).message()
        upstreams.servers[AGENT].script = partial(streaming, go_on)
        upstreams.reuse = False
        stream = Client(edge).send(get())
        assert stream.head()[0] == 200
        upstreams.not_yet.add(AGENT)
        held = Client(edge).send(get())
        wait_until(lambda: len(upstreams.dials) == 4)
        half = Client(edge).send(b"GET / HT")
        edge.close()
        assert edge_threads() == []
        edge.close()
        for client in (idle, held, half):
            with suppress(ConnectionResetError):
                assert client.read() == b""
            client.close()
        assert not stream.read().endswith(b"0\r\n\r\n")
        stream.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", edge.port))
        go_on.set()
    wait_until(lambda: descriptors() <= before, what="descriptors are closed")


def test_it_is_started_once() -> None:
    """Neither twice nor after its end."""
    with serving() as edge:
        with pytest.raises(RuntimeError, match="once"):
            edge.start()
        edge.close()
        with pytest.raises(RuntimeError, match="once"):
            edge.start()


def test_who_connects_before_it_serves_is_served_when_it_does() -> None:
    edge = Edge(Scripted())
    try:
        edge.listen()
        with pytest.raises(RuntimeError, match="once"):
            edge.listen()
        with socket.create_connection(("127.0.0.1", edge.port)) as early:
            early.sendall(b"nonsense\r\n\r\n")
            edge.start()
            early.settimeout(10)
            assert early.recv(100).startswith(b"HTTP/1.1 400")
    finally:
        edge.close()


def test_one_that_only_listened_closes() -> None:
    """And leaves no descriptor."""
    before = descriptors()
    edge = Edge(Scripted())
    edge.listen()
    edge.close()

    assert descriptors() <= before


def test_one_that_was_never_started_closes() -> None:
    """And leaves no descriptor."""
    before = descriptors()
    Edge(Scripted()).close()
    assert descriptors() <= before


def test_many_clients_come_and_go() -> None:
    """Every kind of early leave, many times: no task, descriptor or thread is left."""
    before = descriptors()
    upstreams = Scripted()
    upstreams.serve(AGENT, replying(answer(b"x" * 100_000)))
    with serving(upstreams) as edge:
        request = get()

        def rude(seed: int) -> None:
            for n in range(30):
                with suppress(OSError), Client(edge) as client:
                    client.send(request[: (seed * 31 + n * 7) % len(request)])
                    if n % 3 == 0:
                        client.send(request[(seed * 31 + n * 7) % len(request) :])
                    if n % 6 == 0:
                        client.read(100)

        threads = [threading.Thread(target=rude, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60 * SLOW)
        wait_until(lambda: not edge._crowd, what="tasks have ended")
        with Client(edge) as client:
            assert len(client.send(get()).message()[2]) == 100_000
    wait_until(lambda: descriptors() <= before, what="descriptors are closed")
