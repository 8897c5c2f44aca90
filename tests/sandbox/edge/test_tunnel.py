"""A connection whose protocol changes is carried both ways until it has ended."""

from __future__ import annotations

import asyncio
import socket
import threading

import h11
import pytest

from ppio_agent.sandbox.edge.pump import Peer, PeerError
from ppio_agent.sandbox.edge.server import Edge
from ppio_agent.sandbox.edge.tunnel import Tunnel
from tests.sandbox.edge.edgekit import (
    AGENT,
    Client,
    Scripted,
    answer,
    blocked_at,
    get,
    host,
    read_head,
    read_request,
    serving,
)
from tests.support import SLOW, wait_until

MIB = 1024 * 1024
OFFER = b"Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket, h2c, x/2\r\n"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
)


def echo(sock: socket.socket) -> None:
    """Agree to the upgrade, then send everything back until the end."""
    read_head(sock)
    sock.sendall(SWITCH)
    while data := sock.recv(65536):
        sock.sendall(data)


def switched(client: Client) -> None:
    """Read the answer that makes it a tunnel."""
    assert client.head() == (
        101,
        {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec-websocket-accept": "x",
        },
    )


def test_the_offer_and_the_answer_pass(edge: Edge, upstreams: Scripted) -> None:
    """With the forwarding headers and without secrets, as in every request."""
    got: list[dict[str, str]] = []

    def script(sock: socket.socket) -> None:
        got.append(read_head(sock)[1])
        sock.sendall(SWITCH)

    upstreams.serve(AGENT, script)
    upstreams.secrets = {"secret"}
    more = OFFER + b"Sec-WebSocket-Key: k\r\nX-API-KEY: secret\r\n"
    with Client(edge) as client:
        switched(client.send(get(more=more)))
        assert client.read() == b""
    assert got == [
        {
            "host": got[0]["host"],
            "sec-websocket-key": "k",
            "x-forwarded-host": got[0]["host"],
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": "http",
            "connection": "Upgrade",
            "upgrade": "WebSocket, x/2",
        }
    ]


def test_bytes_pass_both_ways_as_they_come(edge: Edge, upstreams: Scripted) -> None:
    """Those right behind the request and right behind the answer are the first."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH + b"welcome ")
        while data := sock.recv(65536):
            sock.sendall(data)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        switched(client.send(get(more=OFFER) + b"early"))
        assert client.read(13) == b"welcome early"
        for piece in (b"\x81\x00", b"GET / HTTP/1.1\r\n\r\n", bytes(300_000)):
            assert client.send(piece).read(len(piece)) == piece


def test_a_tunnel_ends_one_direction_at_a_time(edge: Edge, upstreams: Scripted) -> None:
    """Whichever side begins; the other may go on."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH)
        got = b"".join(iter(lambda: sock.recv(1000), b""))
        sock.sendall(b"after the end: " + got)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        switched(client.send(get(more=OFFER)))
        client.send(b"all").sock.shutdown(socket.SHUT_WR)
        assert client.read() == b"after the end: all"

    heard: list[bytes] = []

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH + b"bye")
        sock.shutdown(socket.SHUT_WR)
        heard.append(b"".join(iter(lambda: sock.recv(1000), b"")))

    upstreams.servers[AGENT].script = script
    with Client(edge) as client:
        switched(client.send(get(more=OFFER)))
        assert client.read() == b"bye"
        client.send(b"still here")
    wait_until(lambda: heard == [b"still here"])


def test_a_side_that_stops_reading_stops_the_other(
    edge: Edge, upstreams: Scripted
) -> None:
    """Nothing piles up in the edge, and nothing is lost."""
    upstreams.serve(AGENT, echo)
    with Client(edge) as client:
        switched(client.send(get(more=OFFER)))
        sent = blocked_at(client.sock, 100 * MIB)
        assert sent < 60 * MIB
        client.sock.settimeout(30 * SLOW)
        assert client.read(sent) == b"x" * sent


def test_a_side_that_is_lost_cuts_the_other(edge: Edge, upstreams: Scripted) -> None:
    """As an error, which is not taken for an end."""
    lost = threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH)
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        switched(client.send(get(more=OFFER)))
        with pytest.raises(ConnectionResetError):
            client.send(b"x").read()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH)
        try:
            sock.recv(1)
        finally:
            lost.set()

    upstreams.servers[AGENT].script = script
    client = Client(edge)
    switched(client.send(get(more=OFFER)))
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert lost.wait(10 * SLOW)
    wait_until(lambda: not edge._crowd)


@pytest.mark.parametrize(
    "more",
    [OFFER, b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"],
    ids=["declined", "not asked for", "HTTP/2"],
)
def test_any_other_answer_is_an_ordinary_one(
    edge: Edge, upstreams: Scripted, more: bytes
) -> None:
    """And the next request follows on the same connection."""
    got: list[dict[str, str]] = []

    def script(sock: socket.socket) -> None:
        while True:
            got.append(read_request(sock)[1])
            sock.sendall(answer(b"no"))

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get(more=more) + get())
        assert [client.message()[2] for _ in range(2)] == [b"no", b"no"]
    assert [("upgrade" in headers) for headers in got] == [more is OFFER, False]


def test_the_offer_of_an_old_client_is_dropped(edge: Edge, upstreams: Scripted) -> None:
    """HTTP/1.0 cannot change its protocol."""

    def script(sock: socket.socket) -> None:
        asked = "upgrade" in read_request(sock)[1]
        sock.sendall(answer(b"asked" if asked else b"not asked"))

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get(more=OFFER).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert client.message()[2] == b"not asked"


def test_a_switch_that_nobody_asked_for_is_502(edge: Edge, upstreams: Scripted) -> None:
    """What follows it would have no meaning."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(SWITCH)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        assert client.send(get()).message()[0] == 502


def test_a_request_with_a_body_switches_behind_it(
    edge: Edge, upstreams: Scripted
) -> None:
    """However early the answer comes."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCH)
        while data := sock.recv(65536):
            sock.sendall(data)

    upstreams.serve(AGENT, script)
    post = b"POST / HTTP/1.1\r\n" + host() + OFFER + b"Content-Length: 4\r\n\r\n"
    with Client(edge) as client:
        client.send(post + b"bo")
        client.sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.sock.recv(1)
        client.sock.settimeout(10 * SLOW)
        client.send(b"dy").send(b"after")
        switched(client)
        assert client.read(9) == b"bodyafter"


def test_a_tunnel_is_under_way_until_it_ends(edge: Edge, upstreams: Scripted) -> None:
    """Though nothing moves in it, and though the edge keeps no idle client long."""
    upstreams.serve(AGENT, echo)
    with serving(upstreams, idle_timeout=0.1) as hasty, Client(hasty) as client:
        switched(client.send(get(more=OFFER)))
        threading.Event().wait(0.3)
        assert upstreams.under_way[AGENT] == 1
        assert client.send(b"still").read(5) == b"still"
        client.close()
        wait_until(lambda: upstreams.under_way[AGENT] == 0)


def test_closing_the_edge_ends_tunnels(upstreams: Scripted) -> None:
    upstreams.serve(AGENT, echo)
    with serving(upstreams) as edge:
        client = Client(edge)
        switched(client.send(get(more=OFFER)))
        edge.close()
        assert client.read() == b""
        client.close()
    assert upstreams.under_way[AGENT] == 0


def test_half_a_tunnel_does_not_stay_for_ever() -> None:
    """A side that ended may be gone; what still moves may move for ever."""
    loop = asyncio.SelectorEventLoop()
    one, client = socket.socketpair()
    other, upstream = socket.socketpair()
    peers = [Peer(one, h11.SERVER, loop), Peer(other, h11.CLIENT, loop)]
    client.shutdown(socket.SHUT_WR)

    async def story() -> None:
        tunnel = loop.create_task(Tunnel(*peers, half_open=0.2).run())
        for _ in range(8):
            upstream.send(b"x")
            await asyncio.sleep(0.05)
        assert not tunnel.done()
        with pytest.raises(PeerError, match="half"):
            await tunnel

    try:
        loop.run_until_complete(asyncio.wait_for(story(), 20))
        assert client.recv(100) == b"x" * 8
    finally:
        for closable in (*peers, client, upstream, loop):
            closable.close()
