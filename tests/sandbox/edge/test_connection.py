"""Each request of a connection is routed for itself, and refused in JSON."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ppio_agent.sandbox.backends.base import ENVD_PORT
from ppio_agent.sandbox.edge.addressing import ControlPlane, SandboxPort, Target
from ppio_agent.sandbox.edge.server import Edge, EdgeRefusal
from tests.fuzz.messages import REFUSED
from tests.sandbox.edge.edgekit import (
    AGENT,
    ID,
    OTHER_ID,
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

CONTROL = b"Host: 127.0.0.1:3900\r\n"


@pytest.fixture
def edge(upstreams: Scripted) -> Iterator[Edge]:
    with serving(upstreams, head_timeout=0.3) as edge:
        yield edge


def error(client: Client) -> tuple[int, dict[str, object]]:
    """Read an answer of the edge's own."""
    status, headers, body = client.message()
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    found = json.loads(body)
    assert found["code"] == status
    assert found["message"]
    return status, found


def test_one_connection_serves_different_targets(
    edge: Edge, upstreams: Scripted
) -> None:
    """SDKs reuse one for the control plane, envd and the agent."""
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    upstreams.serve(AGENT, replying(answer(b"agent")))
    upstreams.serve(SandboxPort(ID, ENVD_PORT), replying(answer(b"envd")))
    upstreams.tokens["token"] = ID
    named = CONTROL + f"PPIO-Sandbox-Id: {ID}\r\nPPIO-Sandbox-Port: 8080\r\n".encode()
    with Client(edge) as client:
        for request, expected in [
            (get(to=CONTROL), b"control"),
            (get(), b"agent"),
            (get(to=CONTROL, more=b"X-Access-Token: token\r\n"), b"envd"),
            (get(to=named), b"agent"),
            (get(to=CONTROL), b"control"),
        ]:
            assert client.send(request).message()[2] == expected


def test_pipelined_requests_are_answered_in_order(
    edge: Edge, upstreams: Scripted
) -> None:
    """Each after the one before, wherever they go."""
    upstreams.serve(AGENT, replying(answer(b"agent")))
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    with Client(edge) as client:
        client.send((get() + get(to=CONTROL)) * 3)
        bodies = [client.message()[2] for _ in range(6)]
    assert bodies == [b"agent", b"control"] * 3


def test_the_upstream_gets_what_the_client_sent(
    edge: Edge, upstreams: Scripted
) -> None:
    """Target and credentials but for the platform's, and who the client is."""
    got: list[tuple[bytes, dict[str, str], bytes]] = []

    def script(sock: socket.socket) -> None:
        while True:
            got.append(read_request(sock))
            sock.sendall(answer())

    upstreams.serve(AGENT, script)
    upstreams.serve(ControlPlane(), script)
    upstreams.secrets = {"Bearer platform", "platform"}
    more = (
        b"Authorization: Bearer platform\r\nX-API-KEY: platform\r\n"
        b"X-PPIO-Signature: s\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close\r\n"
    )
    target = "/a%2Fb//c?x=%20&y"
    for to in (host(), CONTROL):
        with Client(edge) as client:
            client.send(get(target, to=to, more=more)).message()
    (line, agent, _), (_, control, _) = got
    assert line == f"GET {target} HTTP/1.1".encode()
    assert not agent.keys() & {"authorization", "x-api-key", "connection"}
    assert agent["x-ppio-signature"] == "s"
    assert agent["x-forwarded-for"] == "127.0.0.1"
    assert agent["x-forwarded-proto"] == "http"
    assert agent["x-forwarded-host"] == agent["host"] == f"8080-{ID}.sandbox.test"
    assert control["x-api-key"] == "platform"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Content-Length: 1\r\nContent-Length: 2\r\n", 400),
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Content-Length: -1\r\n", 400),
        (b"Content-Length: 1, 2\r\n", 400),
        (b"Transfer-Encoding: gzip\r\n", 501),
        (b"Bad Name: 1\r\n", 400),
        (b"X: \x00\r\n", 400),
        (b"Host: second\r\n", 400),
        (b"X-Pad: " + b"x" * 65 * 1024 + b"\r\n", 400),
        (b"PPIO-Sandbox-Id: nonsense\r\n", 400),
        (f"PPIO-Sandbox-Id: {OTHER_ID}\r\n".encode(), 400),
    ],
)
def test_a_bad_head_is_refused_in_json(edge: Edge, head: bytes, status: int) -> None:
    """And reaches no upstream."""
    with Client(edge) as client:
        assert error(client.send(get(more=head)))[0] == status


@pytest.mark.parametrize("name", [*REFUSED, "large head that came whole"])
@pytest.mark.parametrize(
    "target",
    [ControlPlane(), AGENT, SandboxPort(ID, ENVD_PORT)],
    ids=["api", "agent", "envd"],
)
def test_nothing_is_served_behind_what_was_not_understood(
    upstreams: Scripted, edge: Edge, target: Target, name: str
) -> None:
    """It may be a part of that: one answer, and the connection ends."""
    served: list[bytes] = []

    def script(sock: socket.socket) -> None:
        while True:
            served.append(read_request(sock)[0])
            sock.sendall(answer())

    upstreams.serve(target, script)
    to = host(target.port) if isinstance(target, SandboxPort) else CONTROL
    head, body = REFUSED.get(name, (b"X: " + b"x" * (66 << 10) + b"\r\n", b""))
    with Client(edge) as client:
        client.send(b"POST / HTTP/1.1\r\n" + to + head + b"\r\n" + body)
        with suppress(OSError):  # it was refused before all of it was sent
            client.send(get("/second", to=to))
        status, headers, _ = client.message()
        assert (status in {400, 501}, headers["connection"]) == (True, "close")
        assert client.read() == b""
    assert not any(b"/second" in line for line in served)


def test_a_refused_request_is_answered_though_its_body_is_bad(
    edge: Edge, upstreams: Scripted
) -> None:
    """It is refused for what it asks, whatever it brings along."""
    upstreams.refusals[AGENT] = EdgeRefusal.of(409, "busy")
    post = b"POST / HTTP/1.1\r\n" + host() + b"Transfer-Encoding: chunked\r\n\r\n"
    with Client(edge) as client:
        assert error(client.send(post + b"zz\r\n" + get()))[0] == 409
        assert client.read() == b""


def test_another_version_of_http_is_answered_once(edge: Edge) -> None:
    """HTTP/2 begins with what looks like a request, and like half of another."""
    with Client(edge) as client:
        client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert error(client)[0] == 505
        assert client.read() == b""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (b"Secret Name: 1\r\n", "illegal header line"),
        (b"Transfer-Encoding: chunked\r\n\r\nSecret\r\n", "illegal chunk header"),
    ],
)
def test_what_is_not_understood_is_not_repeated(
    edge: Edge, upstreams: Scripted, more: bytes, message: str
) -> None:
    upstreams.serve(AGENT, replying(answer()))
    with Client(edge) as client:
        _, found = error(client.send(get(more=more)))
    assert found["message"] == message


@pytest.mark.parametrize("port", [0, 65536, 99999])
def test_a_port_that_cannot_be_is_400(edge: Edge, port: int) -> None:
    """In a host name; the connection goes on."""
    with Client(edge) as client:
        for _ in range(2):
            assert error(client.send(get(to=host(port))))[0] == 400


def test_no_http_at_all_is_400(edge: Edge) -> None:
    """Such as TLS spoken to the plain listener."""
    with Client(edge) as client:
        assert error(client.send(b"\x16\x03\x01\x02\x00"))[0] == 400
        assert client.read() == b""


def test_a_head_without_end_is_400(edge: Edge) -> None:
    """As soon as it is too large, not when it takes too long."""
    with Client(edge) as client:
        client.send(b"GET / HTTP/1.1\r\n" + b"X-Pad: 0123456789\r\n" * 4000)
        assert error(client)[0] == 400


def test_a_slow_head_is_408_and_delays_nobody(edge: Edge, upstreams: Scripted) -> None:
    """However many bytes trickle in meanwhile."""
    upstreams.serve(AGENT, replying(answer()))
    tick = threading.Event()
    with Client(edge) as slow, Client(edge) as quick:
        for byte in get()[:10]:
            slow.send(bytes([byte]))
            assert quick.send(get()).message()[0] == 200
            tick.wait(0.01)
        assert error(slow)[0] == 408
        assert slow.read() == b""
        assert quick.send(get()).message()[0] == 200


def test_an_idle_connection_is_closed_without_a_word(upstreams: Scripted) -> None:
    """There is no request to answer."""
    upstreams.serve(AGENT, replying(answer()))
    with serving(upstreams, idle_timeout=0.1) as edge, Client(edge) as client:
        assert client.send(get()).message()[0] == 200
        assert client.read() == b""


def test_a_refusal_has_exactly_the_platforms_body(
    edge: Edge, upstreams: Scripted
) -> None:
    """Whether it is known at once or only when dialling."""
    refusal = EdgeRefusal(409, {"sandboxId": ID, "message": "busy", "code": 409})
    upstreams.refusals[AGENT] = refusal
    with Client(edge) as client:
        status, headers, body = client.send(get()).message()
        assert (status, json.loads(body)) == (409, refusal.body)
        assert len(headers["x-request-id"]) == 32
        more = b"X-Request-Id: mine\r\n"
        status, headers, body = client.send(get(to=host(81), more=more)).message()
        assert (status, json.loads(body)["message"]) == (502, "none")
        assert headers["x-request-id"] == "mine"


def test_a_refused_request_with_a_small_body_keeps_the_connection(
    edge: Edge, upstreams: Scripted
) -> None:
    """Its body is here already and is taken for what it is."""
    upstreams.serve(AGENT, replying(answer()))
    post = b"POST / HTTP/1.1\r\n" + host(81) + b"Content-Length: 30\r\n\r\n" + b"G" * 30
    with Client(edge) as client:
        assert error(client.send(post))[0] == 502
        assert client.send(get()).message()[0] == 200


def test_a_refused_request_with_a_body_to_come_ends_the_connection(edge: Edge) -> None:
    """The client may be in the middle of it, and still reads why."""
    post = b"POST / HTTP/1.1\r\n" + host(81) + b"Content-Length: 9000000\r\n\r\n"
    with Client(edge) as client:
        client.send(post)
        client.send(b"x" * 1_000_000)
        status, headers, _ = client.message()
        assert (status, headers["connection"]) == (502, "close")
        assert client.read() == b""


def test_a_refused_head_request_has_no_body(edge: Edge) -> None:
    """So the next answer is found where it begins."""
    with Client(edge) as client:
        for _ in range(2):
            request = get(to=host(81)).replace(b"GET", b"HEAD", 1)
            assert client.send(request).head()[0] == 502


def test_a_client_that_wants_to_close_is_closed(
    edge: Edge, upstreams: Scripted
) -> None:
    """By header, or by its version of HTTP."""
    upstreams.serve(AGENT, replying(answer(b"bye")))
    for request in (
        get(more=b"Connection: close\r\n"),
        get().replace(b"HTTP/1.1", b"HTTP/1.0"),
    ):
        with Client(edge) as client:
            status, headers, body = client.send(request).message()
            assert (status, body, headers["connection"]) == (200, b"bye", "close")
            assert client.read() == b""


def test_a_failure_of_the_platform_is_500_in_json(
    edge: Edge, upstreams: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, the client learns no detail and may go on."""
    upstreams.serve(ControlPlane(), replying(answer()))
    upstreams.refusals[AGENT] = ValueError("detail")  # type: ignore[assignment]
    with caplog.at_level(logging.ERROR), Client(edge) as client:
        status, found = error(client.send(get()))
        assert (status, "detail" in str(found)) == (500, False)
        assert client.send(get(to=CONTROL)).message()[0] == 200
    assert "detail" in caplog.text


def test_a_client_that_left_is_not_dialled_for(edge: Edge, upstreams: Scripted) -> None:
    """A request followed at once by the end has nobody to answer to."""
    upstreams.serve(AGENT, replying(answer()))
    with Client(edge) as client:
        client.sock.sendall(get())
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read() in {b"", answer()}
    wait_until(lambda: not edge._crowd)


def control_post(body: bytes, length: int, more: bytes = b"") -> bytes:
    framing = b"Content-Length: %d\r\n" % length
    return b"POST /x HTTP/1.1\r\n" + CONTROL + framing + more + b"\r\n" + body


def test_a_small_body_takes_no_connection_until_it_is_there(
    edge: Edge, upstreams: Scripted
) -> None:
    """However many never send theirs, the control plane is free for others."""
    got: list[bytes] = []

    def script(sock: socket.socket) -> None:
        while True:
            got.append(read_request(sock)[2])
            sock.sendall(answer())

    upstreams.serve(ControlPlane(), script)
    with Client(edge) as slow, Client(edge) as other:
        slow.send(control_post(b"ha", 65536))
        wait_until(lambda: upstreams.under_way[ControlPlane()] == 1)
        assert upstreams.dials == []
        assert other.send(get(to=CONTROL)).message()[0] == 200
        slow.send(b"x" * 65534)
        assert slow.message()[0] == 200
        assert slow.send(control_post(b"next", 4)).message()[0] == 200
    assert got == [b"", b"ha" + b"x" * 65534, b"next"]


def test_a_small_body_that_does_not_come_is_408(
    edge: Edge, upstreams: Scripted
) -> None:
    """As soon as a head would be; one who leaves is heard of no more."""
    with Client(edge) as slow, Client(edge) as gone:
        slow.send(control_post(b"x", 100))
        gone.send(control_post(b"x", 100))
        gone.close()
        status, found = error(slow)
    assert (status, found["message"]) == (408, "the request took too long")
    wait_until(lambda: not edge._crowd)
    assert upstreams.dials == []


def test_who_asks_first_is_told_to_send_a_small_body(
    edge: Edge, upstreams: Scripted
) -> None:
    """Nobody behind the edge could tell it."""
    upstreams.serve(ControlPlane(), replying(answer()))
    with Client(edge) as client:
        client.send(control_post(b"", 4, b"Expect: 100-continue\r\n"))
        assert client.head()[0] == 100
        assert client.send(b"body").message()[0] == 200


def test_a_large_body_streams_to_the_control_plane(
    edge: Edge, upstreams: Scripted
) -> None:
    """A template is not held."""
    begun = threading.Event()

    def script(sock: socket.socket) -> None:
        begun.set()
        read_request(sock)
        sock.sendall(answer())

    upstreams.serve(ControlPlane(), script)
    with Client(edge) as client:
        client.send(control_post(b"x", 65537))
        assert begun.wait(10)
        assert client.send(b"x" * 65536).message()[0] == 200
