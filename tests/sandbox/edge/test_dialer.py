"""Connections to what lies behind are opened without delaying others, and reused."""

from __future__ import annotations

import logging
import socket
import threading

import pytest

from ppio_agent.sandbox.edge import dialer
from ppio_agent.sandbox.edge.addressing import ControlPlane, SandboxPort
from ppio_agent.sandbox.edge.server import Edge
from tests.sandbox.edge.edgekit import (
    AGENT,
    OTHER_ID,
    Client,
    Scripted,
    answer,
    get,
    host,
    read_request,
    replying,
)
from tests.support import SLOW, wait_until

OTHER = SandboxPort(OTHER_ID, 8080)


def post(body: bytes = b"{}") -> bytes:
    length = b"Content-Length: %d\r\n\r\n" % len(body)
    return b"POST / HTTP/1.1\r\n" + host() + length + body


def test_a_request_is_held_until_its_target_is_there(
    edge: Edge, upstreams: Scripted
) -> None:
    """And is then answered at once."""
    upstreams.serve(AGENT, replying(answer(b"ready")))
    upstreams.not_yet.add(AGENT)
    with Client(edge) as client:
        client.send(post())
        wait_until(lambda: upstreams.dials == [AGENT, AGENT])
        upstreams.ready.set()
        assert client.message()[2] == b"ready"


def test_held_requests_delay_no_others(edge: Edge, upstreams: Scripted) -> None:
    """The most that may be held, one more is 503, and another sandbox answers."""
    upstreams.serve(AGENT, replying(answer(b"ready")))
    upstreams.serve(OTHER, replying(answer(b"other")))
    upstreams.not_yet.add(AGENT)
    held = [Client(edge).send(get()) for _ in range(100)]
    wait_until(lambda: upstreams.dials.count(AGENT) == 200, timeout=20)
    with Client(edge) as client:
        status, headers, _ = client.send(get()).message()
        assert (status, headers["retry-after"]) == (503, "1")
        elsewhere = get(to=host(sandbox_id=OTHER_ID))
        assert client.send(elsewhere).message()[2] == b"other"
    upstreams.ready.set()
    for client in held:
        assert client.message()[2] == b"ready"
        client.close()


def test_a_sandbox_that_is_slow_to_accept_delays_no_others(
    edge: Edge, upstreams: Scripted
) -> None:
    """However many ask for it: neither another one nor the control plane."""
    upstreams.serve(OTHER, replying(answer(b"other")))
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    upstreams.serve(AGENT, replying(answer(b"slow")))
    upstreams.slow.add(AGENT)
    clients = [Client(edge).send(get()) for _ in range(20)]
    wait_until(lambda: upstreams.dials.count(AGENT) == 2)
    for to, said in (
        (host(sandbox_id=OTHER_ID), b"other"),
        (b"Host: x\r\n", b"control"),
    ):
        with Client(edge) as client:
            assert client.send(get(to=to)).message()[2] == said
    assert upstreams.dials.count(AGENT) == 2
    upstreams.ready.set()
    for client in clients:
        assert client.message()[2] == b"slow"
        client.close()


def test_a_client_that_leaves_is_no_longer_held_for(
    edge: Edge, upstreams: Scripted
) -> None:
    """Impatient clients that ask again and again do not fill the room."""
    upstreams.serve(AGENT, replying(answer()))
    upstreams.not_yet.add(AGENT)
    with Client(edge) as client:
        client.send(get())
        wait_until(lambda: len(upstreams.dials) == 2)
    assert upstreams.given_up.wait(10 * SLOW)


def test_a_connection_is_used_again(edge: Edge, upstreams: Scripted) -> None:
    """By any client, for the same target only."""
    upstreams.serve(AGENT, replying(answer()))
    upstreams.serve(OTHER, replying(answer()))
    for _ in range(3):
        with Client(edge) as client:
            assert client.send(get()).message()[0] == 200
            assert client.send(get()).message()[0] == 200
    with Client(edge) as client:
        client.send(get(to=host(sandbox_id=OTHER_ID))).message()
    assert upstreams.dials == [AGENT, OTHER]


def test_a_post_uses_a_connection_that_has_proved_to_stay(
    edge: Edge, upstreams: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first it takes a new one; what was once left open stays in use."""
    upstreams.serve(AGENT, replying(answer()))
    with Client(edge) as client:
        client.send(post()).message()
        client.send(post()).message()
        assert upstreams.dials == [AGENT, AGENT]
        monkeypatch.setattr(dialer, "_SETTLED", 0.0)
        for _ in range(5):
            assert client.send(post()).message()[0] == 200
    assert upstreams.dials == [AGENT, AGENT]


def test_a_kept_connection_is_not_used_when_the_platform_says_so(
    edge: Edge, upstreams: Scripted
) -> None:
    """As while the target changes its state."""
    upstreams.serve(AGENT, replying(answer()))
    with Client(edge) as client:
        client.send(get()).message()
        upstreams.reuse = False
        client.send(get()).message()
    assert upstreams.dials == [AGENT, AGENT]


def test_an_idle_connection_is_not_kept_for_long(
    edge: Edge, upstreams: Scripted
) -> None:
    """A single-threaded server has others to serve."""
    left = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer())
        if not sock.recv(1):
            left.set()

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get()).message()
        assert left.wait(5 * SLOW)


def test_no_more_than_a_few_idle_connections_are_kept(
    edge: Edge, upstreams: Scripted
) -> None:
    """The rest is closed at once."""
    gate = threading.Barrier(50)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        gate.wait(10 * SLOW)
        sock.sendall(answer())
        read_request(sock)

    upstreams.serve(AGENT, script)
    clients = [Client(edge).send(get()) for _ in range(50)]
    for client in clients:
        client.message()
        client.close()
    wait_until(lambda: sum(map(len, edge._dialer._kept.values())) <= 32)


@pytest.mark.parametrize(
    "last",
    [
        answer(more=b"Connection: close\r\n"),
        answer() + b"more than it said",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
    ids=["asked", "unsound", "old"],
)
def test_a_connection_that_cannot_go_on_is_not_kept(
    edge: Edge, upstreams: Scripted, last: bytes
) -> None:
    """Though the upstream leaves it open."""
    upstreams.serve(AGENT, replying(last))
    with Client(edge) as client:
        for _ in range(2):
            assert client.send(get()).message()[2] == b"ok"
    assert upstreams.dials == [AGENT, AGENT]


def closing_at_the_second(sock: socket.socket) -> None:
    """Answer one request, and close as the next one comes."""
    read_request(sock)
    sock.sendall(answer())
    read_request(sock)


def test_a_get_into_a_closing_connection_is_sent_again(
    edge: Edge, upstreams: Scripted
) -> None:
    """Once, on a new one: the client notices nothing."""
    upstreams.serve(AGENT, closing_at_the_second)
    with Client(edge) as client:
        client.send(get()).message()
        assert client.send(get()).message()[0] == 200
    assert upstreams.dials == [AGENT, AGENT]


def test_a_post_into_a_closing_connection_is_not_sent_again(
    edge: Edge, upstreams: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been run."""
    upstreams.serve(AGENT, closing_at_the_second)
    with Client(edge) as client:
        client.send(get()).message()
        monkeypatch.setattr(dialer, "_SETTLED", 0.0)
        assert client.send(post()).message()[0] == 502
    assert upstreams.dials == [AGENT]


def test_a_server_that_closes_unsaid_after_each_answer_is_no_trouble(
    edge: Edge, upstreams: Scripted
) -> None:
    """However fast one POST follows another."""

    def once(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer())
        threading.Event().wait(0.005)

    upstreams.serve(AGENT, once)
    with Client(edge) as client:
        for _ in range(20):
            assert client.send(post()).message()[0] == 200


def test_a_failing_dial_is_502_in_json(
    edge: Edge, upstreams: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Logged, since it is the platform's error."""
    upstreams.serve(AGENT, replying(answer())).close()
    with caplog.at_level(logging.ERROR), Client(edge) as client:
        status, _, body = client.send(get()).message()
    assert status == 502
    assert b'"code":502' in body
    assert "a connection behind the edge failed" in caplog.text


def test_a_system_without_threads_is_503_for_as_long_as_that(
    edge: Edge, upstreams: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that the platform ends."""
    upstreams.serve(AGENT, replying(answer()))

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Client(edge) as client:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            status, headers, body = client.send(get()).message()
        assert (status, headers["retry-after"]) == (503, "1")
        assert b"no thread can be started" in body
        assert client.send(get()).message()[0] == 200
