"""What lies behind the edge is told of each request that it admits: its begin, its end."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from ppio_agent.sandbox.edge.server import Edge
from ppio_agent.sandbox.edge.upstreams import EdgeRefusal
from tests.sandbox.edge.edgekit import (
    AGENT,
    ID,
    Client,
    Scripted,
    answer,
    get,
    host,
    read_request,
    replying,
    serving,
)
from tests.support import wait_until

BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"


def begun(sock: socket.socket) -> None:
    """Begin an answer, and stay."""
    read_request(sock)
    sock.sendall(BEGUN)
    sock.recv(1)


def broken(sock: socket.socket) -> None:
    """Begin an answer, and go."""
    read_request(sock)
    sock.sendall(BEGUN)


def silent(sock: socket.socket) -> None:
    """Go without an answer."""
    read_request(sock)


def whole(client: Client) -> None:
    client.message()


def rest(client: Client) -> None:
    client.read()


def first(client: Client) -> None:
    client.head()
    client.chunk()


@pytest.mark.parametrize(
    ("script", "until"),
    [
        (replying(answer()), whole),
        (replying(b"what?\r\n\r\n"), whole),
        (silent, whole),
        (broken, rest),
        (begun, first),  # the client goes in the middle
        (None, whole),  # refused when dialled
    ],
)
def test_each_request_ends_as_often_as_it_begins(
    edge: Edge,
    upstreams: Scripted,
    script: Callable[[socket.socket], object] | None,
    until: Callable[[Client], object],
) -> None:
    """Whoever ends it, and however."""
    if script is not None:
        upstreams.serve(AGENT, script)
    with Client(edge) as client:
        until(client.send(get()))
    wait_until(lambda: upstreams.under_way == {AGENT: 0})


@pytest.mark.parametrize(
    "request_",
    [
        get(),
        b"POST / HTTP/1.1\r\n" + host() + b"Content-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + host() + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["held", "upload", "malformed"],
)
def test_a_request_whose_client_goes_has_ended(
    edge: Edge, upstreams: Scripted, request_: bytes
) -> None:
    """While it is held, too."""
    upstreams.not_yet.add(AGENT)
    client = Client(edge).send(request_)
    wait_until(lambda: upstreams.headers)
    client.close()
    wait_until(lambda: upstreams.under_way == {AGENT: 0})


def test_a_refused_request_never_began(edge: Edge, upstreams: Scripted) -> None:
    upstreams.refusals[AGENT] = EdgeRefusal.of(403, "no")
    with Client(edge) as client:
        assert client.send(get()).message()[0] == 403
    assert upstreams.under_way == {}


def test_a_stopping_edge_ends_what_is_under_way(upstreams: Scripted) -> None:
    upstreams.serve(AGENT, begun)
    with serving(upstreams) as edge:
        client = Client(edge).send(get())
        first(client)
        assert upstreams.under_way == {AGENT: 1}
        edge.close()
        client.close()
    assert upstreams.under_way == {AGENT: 0}


def test_an_admission_sees_the_head_and_says_who_may_wake(
    edge: Edge, upstreams: Scripted
) -> None:
    upstreams.serve(AGENT, replying(answer()))
    upstreams.wakes = True
    with Client(edge) as client:
        client.send(get(more=b"X-Token: t\r\n")).message()
    (header,) = upstreams.headers
    assert (header("x-token"), header("x-other")) == ("t", None)
    assert header("host") == f"8080-{ID}.sandbox.test"
    assert upstreams.asked == ["GET /"]
    assert upstreams.woken == 1
