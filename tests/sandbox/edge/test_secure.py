"""TLS at the edge: what holds on plain connections holds on these."""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import logging
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from ppio_agent.sandbox.edge.secure import SecureSocket
from ppio_agent.sandbox.edge.server import Edge
from ppio_agent.sandbox.edge.tls import TLS, open_tls
from tests.sandbox.edge.edgekit import (
    AGENT,
    ID,
    SHORT,
    Client,
    ControlPlane,
    Scripted,
    answer,
    get,
    host,
    read_head,
    read_request,
    replying,
    serving,
)
from tests.support import SLOW, needs_program, wait_until

NAME = f"8080-{ID}.sandbox.test"
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TLS:
    folder = tmp_path_factory.mktemp("tls")
    return open_tls(folder, domain="sandbox.test", host="127.0.0.1")


@pytest.fixture
def edge(tls: TLS, upstreams: Scripted) -> Iterator[Edge]:
    with serving(
        upstreams, tls=tls.context, handshake_timeout=0.3 + 0.2 * SLOW
    ) as edge:
        yield edge
        wait_until(lambda: not edge._crowd, what="a connection is left")


@functools.cache
def trusting(tls: TLS) -> ssl.SSLContext:
    """Return a client's side that trusts what the bundle holds."""
    context = ssl.create_default_context(cafile=str(tls.bundle))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def chunk(file: BinaryIO) -> bytes:
    """Read a chunk of a body; nothing at its end."""
    data = file.read(int(file.readline(), 16))
    file.readline()
    return data


def plain_socket(edge: Edge) -> socket.socket:
    """Return a connection to the TLS port on which nothing was said."""
    sock = socket.create_connection(("127.0.0.1", edge.tls_port))
    sock.settimeout(10 * SLOW)
    return sock


class SecureClient(Client):
    """A raw client over TLS."""

    def __init__(self, edge: Edge, tls: TLS, name: str = NAME) -> None:
        plain = plain_socket(edge)
        self.sock = trusting(tls).wrap_socket(plain, server_hostname=name)
        self._file = self.sock.makefile("rb")


class Tunnelled(Client):
    """A raw client over TLS that came by CONNECT."""

    def __init__(self, edge: Edge, tls: TLS, to: str = f"{NAME}:443") -> None:
        super().__init__(edge)
        self.send(f"CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n".encode())
        self.status, _ = self.head()
        if self.status != 200:
            return
        self._file.close()
        name = to.rpartition(":")[0]
        self.sock = trusting(tls).wrap_socket(self.sock, server_hostname=name)
        self._file = self.sock.makefile("rb")


def basic(user: str) -> bytes:
    """Return the header that a client makes of a user name in its URL."""
    pair = base64.b64encode(f"{user}:".encode())
    return b"Host: 127.0.0.1\r\nAuthorization: Basic " + pair + b"\r\n"


def test_requests_over_tls_are_as_any_other(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """One after another on a connection; the agent learns of the TLS."""
    heads: list[dict[str, str]] = []

    def agent(sock: socket.socket) -> None:
        while True:
            heads.append(read_request(sock)[1])
            sock.sendall(answer())

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        assert client.sock.selected_alpn_protocol() == "http/1.1"
        for _ in range(3):
            assert client.send(get()).message()[::2] == (200, b"ok")
    assert {head["x-forwarded-proto"] for head in heads} == {"https"}
    assert {head["x-forwarded-for"] for head in heads} == {"127.0.0.1"}


def test_the_edge_says_where_it_is_reached(edge: Edge) -> None:
    """The two listeners have their own ports."""
    assert edge.tls_authority == f"127.0.0.1:{edge.tls_port}"
    assert edge.tls_port != edge.port


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "api.sandbox.test"])
def test_the_certificate_is_for_all_names_of_the_platform(
    edge: Edge, tls: TLS, upstreams: Scripted, name: str
) -> None:
    """So that a client need not be told to look away."""
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    with SecureClient(edge, tls, name) as client:
        to = f"Host: {name}\r\n".encode()
        assert client.send(get(to=to)).message()[2] == b"control"


def test_a_user_name_leads_to_a_sandbox(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """As clients send it that find it before the @ of a URL."""
    upstreams.serve(AGENT, replying(answer(b"agent")))
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    with SecureClient(edge, tls, "127.0.0.1") as client:
        user = basic(f"8080-{ID}-local.{SHORT}")
        assert client.send(get(to=user)).message()[2] == b"agent"
        assert client.send(get(to=basic(f"api.{SHORT}"))).message()[2] == b"control"


def test_small_records_in_one_segment_are_all_read(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """Nothing stays inside OpenSSL that no selector would tell of."""
    upstreams.serve(AGENT, replying(answer()))
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    pipe = trusting(tls).wrap_bio(far, near, server_hostname=NAME)
    with plain_socket(edge) as sock:
        while True:
            try:
                pipe.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(near.read())
                far.write(sock.recv(65536))
        for byte in get(more=b"X-Pad: " + b"p" * 300 + b"\r\n"):
            pipe.write(bytes([byte]))
        sock.sendall(near.read())
        got = b""
        while not got.endswith(b"ok"):
            far.write(sock.recv(65536))
            try:
                got += pipe.read(65536)
            except ssl.SSLWantReadError:
                continue
    assert got.startswith(b"HTTP/1.1 200")


def test_events_pass_one_by_one(edge: Edge, tls: TLS, upstreams: Scripted) -> None:
    """Each is seen before the agent sends the next."""
    seen = threading.Semaphore(0)

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            sock.sendall(b"9\r\ndata: %02d\n\r\n" % number)
            assert seen.acquire(timeout=10 * SLOW)
        sock.sendall(b"0\r\n\r\n")

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        assert client.send(get()).head()[0] == 200
        for number in range(20):
            assert client.chunk() == b"data: %02d\n" % number
            seen.release()
        assert client.chunk() == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_ten_megabytes_go_both_ways(
    edge: Edge, tls: TLS, upstreams: Scripted, *, chunked: bool
) -> None:
    """Byte for byte, whether the length is told or not."""
    block = os.urandom(1024 * 1024)
    size = 10 * len(block)

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        with sock.makefile("rb") as file:
            body = b"".join(iter(lambda: chunk(file), b"")) if chunked else b""
            sock.sendall(answer(body or file.read(size)))

    upstreams.serve(AGENT, agent)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    with SecureClient(edge, tls) as client:
        client.send(b"POST / HTTP/1.1\r\n" + host() + length + b"\r\n\r\n")
        for _ in range(10):
            client.send(b"100000\r\n%s\r\n" % block if chunked else block)
        client.send(b"0\r\n\r\n" if chunked else b"")
        assert client.message()[2] == block * 10


def test_a_client_that_stops_reading_stops_the_agent(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """There is no buffer that would take it all."""
    sent = [0]
    block = b"x" * 65536

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        while True:
            sent[0] += sock.send(block)

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        assert client.send(get()).head()[0] == 200
        before = -1
        while before != sent[0]:
            before = sent[0]
            threading.Event().wait(0.3)
        assert sent[0] < 32 * 1024 * 1024


def test_an_answer_that_ends_with_the_connection_is_ended_in_tls(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """So that a client knows it for whole."""

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        client.send(b"GET / HTTP/1.0\r\n" + host() + b"\r\n")
        assert client.read().endswith(b"\r\n\r\nall of it")


def test_an_answer_that_is_cut_is_not_ended(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """Half of it is never taken for the whole."""

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        client.send(get()).head()
        with pytest.raises(OSError, match=r"EOF|reset"):
            client.read()


def test_a_refused_upload_gets_its_answer(edge: Edge, tls: TLS) -> None:
    """Though the client still sends when it is refused."""
    with SecureClient(edge, tls) as client:
        to = b"Host: 99999-" + ID.encode() + b".sandbox.test\r\n"
        client.send(b"POST / HTTP/1.1\r\n" + to + b"Content-Length: 9000000\r\n\r\n")
        client.send(b"x" * 300_000)
        assert client.message()[0] == 400


def test_a_client_that_ends_its_side_is_gone(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """Its agent is told, as on a plain connection."""
    asked, told = threading.Event(), threading.Event()

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        asked.set()
        sock.recv(1)
        told.set()

    upstreams.serve(AGENT, agent)
    with SecureClient(edge, tls) as client:
        client.send(get())
        assert asked.wait(10 * SLOW)
        client.sock.shutdown(socket.SHUT_WR)
        assert told.wait(10 * SLOW)


def test_websockets_pass(edge: Edge, tls: TLS, upstreams: Scripted) -> None:
    """A changed protocol is tunnelled; the end of either side is told the other."""

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        while data := sock.recv(100):
            sock.sendall(data.upper())
            if data == b"end":
                return
        ended.set()

    ended = threading.Event()
    upstreams.serve(AGENT, agent)
    more = b"Connection: Upgrade\r\nUpgrade: echo\r\n"
    with SecureClient(edge, tls) as client:
        assert client.send(get(more=more)).head()[0] == 101
        assert client.send(b"hello").read(5) == b"HELLO"
        client.sock.shutdown(socket.SHUT_WR)
        assert ended.wait(10 * SLOW)
    with SecureClient(edge, tls) as client:
        client.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        assert client.send(get(more=more)).head()[0] == 101
        assert client.send(b"end").read() == b"END"


def test_what_cannot_be_deciphered_any_more_is_not_passed_on(
    edge: Edge, tls: TLS, upstreams: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a client sends at the moment that the other side ends."""

    def refused(_: SecureSocket) -> socket.socket:
        raise ssl.SSLError("application data after close notify")

    def agent(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(
            b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
        )
        sock.shutdown(socket.SHUT_WR)
        said.set()
        with contextlib.suppress(ConnectionResetError):
            got.extend(iter(lambda: sock.recv(1000), b""))
        ended.set()

    monkeypatch.setattr(SecureSocket, "unwrap", refused)
    got: list[bytes] = []
    said, ended = threading.Event(), threading.Event()
    upstreams.serve(AGENT, agent)
    more = b"Connection: Upgrade\r\nUpgrade: echo\r\n"
    with SecureClient(edge, tls) as client:
        assert client.send(get(more=more)).head()[0] == 101
        assert said.wait(10 * SLOW)
        with contextlib.suppress(OSError):
            assert client.read() == b""
            client.send(b"secret" * 10)
        assert ended.wait(10 * SLOW)
    assert got == []


def test_a_connection_that_both_have_ended_may_be_ended_again(
    tls: TLS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a tunnel that its client has left: nothing is raised, nothing logged."""
    monkeypatch.setattr(tls.context, "sslsocket_class", SecureSocket)
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        shaken = pool.submit(trusting(tls).wrap_socket, far, server_hostname=NAME)
        with (
            tls.context.wrap_socket(near, server_side=True) as secure,
            shaken.result(10 * SLOW) as client,
        ):
            client.settimeout(10 * SLOW)
            left = pool.submit(client.unwrap)
            assert secure.recv(1) == b""
            secure.settimeout(0)
            secure.shutdown(socket.SHUT_WR)
            secure.shutdown(socket.SHUT_WR)
            left.result(10 * SLOW)


def test_many_clients_at_once(edge: Edge, tls: TLS, upstreams: Scripted) -> None:
    """Each is answered, and none is left."""
    upstreams.serve(AGENT, replying(answer()))
    clients = [SecureClient(edge, tls) for _ in range(60)]
    for client in clients:
        client.send(get())
    assert [client.message()[0] for client in clients] == [200] * 60
    for client in clients:
        client.close()


def test_a_request_too_many_is_told_so(tls: TLS) -> None:
    """In TLS, since nothing else reaches it."""
    with (
        serving(Scripted(), tls=tls.context, max_connections=0) as edge,
        SecureClient(edge, tls) as client,
    ):
        assert client.send(get()).message()[0] == 503


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\x00" * 1000,
        b"",
    ],
    ids=["plain HTTP", "part of a hello", "zeros", "nothing"],
)
@pytest.mark.parametrize("end", ["close", "reset", "half", "stay"])
def test_broken_handshakes_leave_nothing(
    edge: Edge, said: bytes, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No connection, and no line in the log."""
    caplog.set_level(logging.INFO)
    with plain_socket(edge) as sock:
        sock.sendall(said)
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        if end in {"close", "reset"}:
            sock.close()
        if end == "half":
            with suppress(OSError):  # it may have been refused already
                sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: not edge._crowd)
    assert caplog.records == []


def test_a_client_that_does_not_trust_it_leaves_nothing(
    edge: Edge, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so after the handshake, or in it."""
    caplog.set_level(logging.INFO)
    context = ssl.create_default_context()
    with plain_socket(edge) as sock, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(sock, server_hostname=NAME)
    wait_until(lambda: not edge._crowd)
    assert caplog.records == []


def test_slow_handshakes_delay_nobody(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """They wait for themselves only, and not for ever."""
    upstreams.serve(AGENT, replying(answer()))
    slow = [plain_socket(edge) for _ in range(50)]
    with SecureClient(edge, tls) as client:
        assert client.send(get()).message()[0] == 200
    for sock in slow:
        assert sock.recv(1) == b""
        sock.close()


def test_close_cuts_handshakes_and_streams(tls: TLS) -> None:
    """Nothing is waited for, and nothing is left."""
    upstreams = Scripted()
    upstreams.serve(AGENT, read_head)
    with serving(upstreams, tls=tls.context) as edge:
        silent = plain_socket(edge)
        streaming = SecureClient(edge, tls).send(get())
        wait_until(lambda: len(edge._crowd) == 2 and upstreams.dials)
    assert silent.recv(1) == b""
    silent.close()
    streaming.close()
    assert edge._loop.is_closed()


def test_connect_leads_to_a_sandbox(edge: Edge, tls: TLS, upstreams: Scripted) -> None:
    """The plain listener is proxy and host in one."""
    heads: list[dict[str, str]] = []

    def agent(sock: socket.socket) -> None:
        while True:
            heads.append(read_request(sock)[1])
            sock.sendall(answer(b"inside"))

    upstreams.serve(AGENT, agent)
    with Tunnelled(edge, tls) as client:
        for _ in range(2):
            assert client.send(get()).message()[2] == b"inside"
    assert {head["x-forwarded-proto"] for head in heads} == {"https"}
    assert {head["x-forwarded-for"] for head in heads} == {"127.0.0.1"}


def test_connect_works_for_clients_that_know_proxies(
    edge: Edge, tls: TLS, upstreams: Scripted
) -> None:
    """Such as the standard library's."""
    upstreams.serve(ControlPlane(), replying(answer(b"control")))
    for name, port in [("api.sandbox.test", 443), ("127.0.0.1", edge.tls_port)]:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", edge.port, context=trusting(tls), timeout=10 * SLOW
        )
        connection.set_tunnel(name, port)
        connection.request("GET", "/templates")
        assert connection.getresponse().read() == b"control"
        connection.close()


@pytest.mark.parametrize(
    "to", ["example.com:443", "127.0.0.1:22", f"{NAME}:80", "sandbox.test:443"]
)
def test_connect_leads_nowhere_else(edge: Edge, tls: TLS, to: str) -> None:
    """The edge is no open proxy."""
    with Tunnelled(edge, tls, to) as client:
        assert client.status == 403


def test_connect_needs_tls(tls: TLS) -> None:
    """And is not nested."""
    with serving(Scripted()) as edge, Tunnelled(edge, tls) as client:
        assert client.status == 501
    with (
        serving(Scripted(), tls=tls.context) as edge,
        SecureClient(edge, tls) as client,
    ):
        client.send(f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        assert client.message()[0] == 501


def test_a_client_that_does_not_wait_for_connect_is_cut(edge: Edge) -> None:
    """What it sent of its handshake has been read as something else."""
    with Client(edge) as client:
        client.send(f"CONNECT {NAME}:443 HTTP/1.1\r\nHost: x\r\n\r\n\x16".encode())
        assert b"\r\n\r\n" in client.read()


def test_curl_trusts_the_bundle(
    edge: Edge, tls: TLS, upstreams: Scripted, tmp_path: Path
) -> None:
    """With a user name in the URL, by a name of a sandbox, and through the proxy."""
    curl = needs_program("curl")
    upstreams.serve(AGENT, replying(answer(b"hello")))
    user = f"8080-{ID}-local.{SHORT}"
    ways = [
        [f"https://{user}@127.0.0.1:{edge.tls_port}/"],
        [
            f"https://{NAME}:{edge.tls_port}/",
            *("--resolve", f"{NAME}:{edge.tls_port}:127.0.0.1"),
        ],
        [f"https://{NAME}/", "--proxy", f"http://127.0.0.1:{edge.port}"],
    ]
    for way in ways:
        done = subprocess.run(
            [curl, "-sS", "--cacert", str(tls.bundle), *way],
            capture_output=True,
            text=True,
            timeout=20 * SLOW,
            env={"HOME": str(tmp_path)},
            check=False,
        )
        assert (done.stdout, done.stderr) == ("hello", "")
