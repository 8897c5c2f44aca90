"""Bodies flow both ways as they come, as fast as they are taken, and end as they end."""

from __future__ import annotations

import re
import socket
import threading

import pytest

from ppio_agent.sandbox.edge.server import Edge
from tests.sandbox.edge.edgekit import (
    AGENT,
    Client,
    Scripted,
    Upstream,
    answer,
    blocked_at,
    get,
    host,
    read_head,
    read_request,
)
from tests.support import SLOW

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MIB = 1024 * 1024


def post(length: int | None, more: bytes = b"") -> bytes:
    framing = (
        b"Transfer-Encoding: chunked\r\n"
        if length is None
        else b"Content-Length: %d\r\n" % length
    )
    return b"POST /up HTTP/1.1\r\n" + host() + framing + more + b"\r\n"


def ended(sock: socket.socket) -> bool:
    """Whether the edge closed this far end, by an end or a reset."""
    sock.settimeout(10 * SLOW)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def test_a_chunk_is_seen_before_the_next_is_sent(
    edge: Edge, upstreams: Scripted
) -> None:
    """The upstream waits for each to have been read: a held byte would be a hang."""
    seen = threading.Semaphore(0)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(CHUNKED)
        for n in range(5):
            sock.sendall(b"1\r\n%d\r\n" % n)
            assert seen.acquire(timeout=10 * SLOW)
        sock.sendall(b"0\r\n\r\n")
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        assert client.send(get()).head()[0] == 200
        for n in range(5):
            assert client.chunk() == b"%d" % n
            seen.release()
        assert client.chunk() == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_the_first_byte_of_an_upload_arrives_before_the_last_is_sent(
    edge: Edge, upstreams: Scripted, chunked: bool
) -> None:
    """Both with a length and in chunks."""
    first = threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        data = sock.recv(100)
        first.set()
        while not data.endswith((b"yz", b"0\r\n\r\n")):
            data += sock.recv(100)
        sock.sendall(answer(data))
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(None if chunked else 3))
        client.send(b"1\r\nx\r\n" if chunked else b"x")
        assert first.wait(10 * SLOW)
        client.send(b"2\r\nyz\r\n0\r\n\r\n" if chunked else b"yz")
        body = client.message()[2]
    assert body == (b"1\r\nx\r\n2\r\nyz\r\n0\r\n\r\n" if chunked else b"xyz")


def test_an_answer_may_begin_before_the_request_has_ended(
    edge: Edge, upstreams: Scripted
) -> None:
    """Both directions flow at once."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(CHUNKED)
        for _ in range(3):
            data = sock.recv(1)
            sock.sendall(b"1\r\n%b\r\n" % data)
        sock.sendall(b"0\r\n\r\n")
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(3)).head()
        for byte in (b"a", b"b", b"c"):
            assert client.send(byte).chunk() == byte
        assert client.chunk() == b""
        assert client.line() == b"\r\n"
        upstreams.servers[AGENT].script = lambda sock: sock.sendall(answer())
        assert client.send(get()).head()[0] == 200, "kept alive after both ended"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (60 * MIB), b""),
        (CHUNKED + b"%x\r\n" % (60 * MIB), b"\r\n0\r\n\r\n"),
    ],
    ids=["length", "chunk"],
)
def test_a_client_that_stops_reading_stops_the_upstream(
    edge: Edge, upstreams: Scripted, start: bytes, end: bytes
) -> None:
    """Nothing piles up in the edge; once it reads again, all of it comes."""
    sent: list[int] = []
    stalled = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.sendall(start)
        sent.append(blocked_at(sock, 60 * MIB))
        stalled.set()
        sock.settimeout(None)
        sock.sendall(b"x" * (60 * MIB - sent[0]) + end)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get())
        assert stalled.wait(30 * SLOW)
        assert sent[0] < 30 * MIB  # what kernels buffer, and 256 KiB
        assert len(client.message()[2]) == 60 * MIB


def test_an_upstream_that_stops_reading_stops_the_client(
    edge: Edge, upstreams: Scripted
) -> None:
    """The same the other way."""
    go_on = threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        assert go_on.wait(30 * SLOW)
        got = 0
        while got < 40 * MIB:
            got += len(sock.recv(1 << 20))
        sock.sendall(answer(b"%d" % got))
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(40 * MIB))
        sent = blocked_at(client.sock, 40 * MIB)
        assert sent < 30 * MIB
        go_on.set()
        client.sock.settimeout(30 * SLOW)
        client.send(b"x" * (40 * MIB - sent))
        assert client.message()[2] == b"%d" % (40 * MIB)


def rss() -> int:
    with open("/proc/self/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) * 1024


def test_a_large_body_passes_in_little_memory(edge: Edge, upstreams: Scripted) -> None:
    """100 MiB up and the same 100 MiB down."""
    piece = bytes(range(256)) * 256

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (100 * MIB))
        left = 100 * MIB
        while left:
            data = sock.recv(65536)
            left -= len(data)
            sock.sendall(data)

    def feed(sock: socket.socket) -> None:
        for _ in range(100 * MIB // len(piece)):
            sock.sendall(piece)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(100 * MIB))
        before = rss()
        feeder = threading.Thread(target=feed, args=(client.sock,))
        feeder.start()
        assert client.head()[1]["connection"] == "close"
        peak = before
        for _ in range(100 * MIB // len(piece)):
            assert client.read(len(piece)) == piece
            peak = max(peak, rss())
        feeder.join()
    assert peak - before < 16 * MIB


def test_urgent_bytes_stop_no_large_body(edge: Edge, upstreams: Scripted) -> None:
    """What TCP sends beside a body is no part of it, up or down."""

    def send(sock: socket.socket) -> None:
        sock.sendall(b"x" * 2 * MIB)
        sock.send(b"!", socket.MSG_OOB)
        sock.sendall(b"y" * 2 * MIB)

    def script(sock: socket.socket) -> None:
        _, _, body = read_request(sock)
        assert body == b"x" * 2 * MIB + b"y" * 2 * MIB
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (4 * MIB))
        send(sock)
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        send(client.send(post(4 * MIB)).sock)
        assert client.message()[2] == b"x" * 2 * MIB + b"y" * 2 * MIB


def test_the_next_request_follows_a_large_answer(
    edge: Edge, upstreams: Scripted
) -> None:
    """The body goes past h11, which still knows where it ends."""
    body = bytes(range(256)) * 4096 * 3

    def script(sock: socket.socket) -> None:
        while True:
            read_request(sock)
            sock.sendall(answer(body) + b"more than it said")

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        for _ in range(3):
            assert client.send(get()).message()[2] == body


def test_half_a_large_answer_is_cut(edge: Edge, upstreams: Scripted) -> None:
    """All that came is passed on first."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(b"x" * 5 * MIB)[: 4 * MIB])

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get()).head()
        assert 3.9 * MIB < len(client.read()) < 4 * MIB


def test_a_client_that_leaves_an_upload_closes_the_upstream(
    edge: Edge, upstreams: Scripted
) -> None:
    """It sees the connection end before the body does."""
    begun, cut = threading.Event(), threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        begun.set()
        if ended(sock):
            cut.set()

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(1000) + b"x" * 10)
        assert begun.wait(10 * SLOW)
    assert cut.wait(10 * SLOW)


def test_a_client_that_leaves_a_stream_closes_the_upstream(
    edge: Edge, upstreams: Scripted
) -> None:
    """Though the upstream says nothing at the time."""
    cut = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(CHUNKED + b"1\r\nx\r\n")
        if ended(sock):
            cut.set()

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get()).head()
        assert client.chunk() == b"x"
    assert cut.wait(10 * SLOW)


@pytest.mark.parametrize(
    "start",
    [CHUNKED + b"5\r\nhello\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"],
    ids=["chunks", "length"],
)
def test_half_an_answer_is_cut_not_ended(
    edge: Edge, upstreams: Scripted, start: bytes
) -> None:
    """What came is passed on, and then the connection ends without the end."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(start)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        status, headers = client.send(get()).head()
        assert status == 200
        rest = client.read()
    assert b"hello" in rest
    assert not rest.endswith(b"0\r\n\r\n")
    assert len(rest) < int(headers.get("content-length", "99"))


def test_half_an_answer_to_an_old_client_is_a_reset(
    edge: Edge, upstreams: Scripted
) -> None:
    """To HTTP/1.0 a plain end would look like the end of the body."""
    go_on = threading.Event()

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(CHUNKED + b"5\r\nhello\r\n")
        go_on.wait(10 * SLOW)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(get().replace(b"HTTP/1.1", b"HTTP/1.0"))
        _, headers = client.head()
        assert "transfer-encoding" not in headers
        assert client.read(5) == b"hello"
        go_on.set()
        with pytest.raises(ConnectionResetError):
            client.read()


def test_an_answer_that_ends_with_its_connection_is_ended(
    edge: Edge, upstreams: Scripted
) -> None:
    """An old server's body becomes chunks, and the client's connection stays."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello")

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        for _ in range(2):
            status, headers, body = client.send(get()).message()
            assert (status, body) == (200, b"hello")
            assert headers["transfer-encoding"] == "chunked"


def test_trailers_pass_both_ways(edge: Edge, upstreams: Scripted) -> None:
    """A body in chunks may say more at its end."""
    got: list[bytes] = []

    def script(sock: socket.socket) -> None:
        read_head(sock)
        data = b""
        while not data.endswith(b"\r\n\r\n"):
            data += sock.recv(1000)
        got.append(data)
        sock.sendall(CHUNKED + b"2\r\nok\r\n0\r\nX-Down: 2\r\n\r\n")
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(None) + b"1\r\nx\r\n0\r\nX-Up: 1\r\n\r\n").head()
        assert client.chunk() == b"ok"
        assert client.chunk() == b""
        assert client.line() == b"X-Down: 2\r\n"
    assert got[0].endswith(b"0\r\nX-Up: 1\r\n\r\n")


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
    ids=["HEAD", "204", "304"],
)
def test_answers_without_body_end_at_their_head(
    edge: Edge, upstreams: Scripted, method: bytes, reply: bytes
) -> None:
    """The next request on the same connection proves it."""

    def script(sock: socket.socket) -> None:
        while True:
            read_request(sock)
            sock.sendall(reply)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        for _ in range(2):
            status, headers = client.send(get().replace(b"GET", method, 1)).head()
            assert status == int(reply.split()[1])
            if b"Content-Length" in reply:
                assert headers["content-length"] == "5"
    assert upstreams.dials == [AGENT]


def test_interim_answers_pass(edge: Edge, upstreams: Scripted) -> None:
    """The body is sent only once the upstream has asked for it."""

    def script(sock: socket.socket) -> None:
        _, headers = read_head(sock)
        assert headers["expect"] == "100-continue"
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        sock.sendall(answer(sock.recv(4)))
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(4, b"Expect: 100-continue\r\n"))
        assert client.head() == (103, {"link": "</x>"})
        assert client.head() == (100, {})
        assert client.send(b"body").message()[2] == b"body"


def test_an_upstream_may_refuse_a_body_it_has_not_read(
    edge: Edge, upstreams: Scripted
) -> None:
    """Its answer reaches the client, though it closes over unread bytes."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(50 * MIB)).send(b"x" * 5 * MIB)
        assert client.head()[0] == 413
        assert client.read() == b"no"


@pytest.mark.parametrize("length", [None, 10, 5 * MIB], ids=["chunks", "few", "many"])
def test_an_answer_to_half_a_request_says_that_it_is_the_last(
    edge: Edge, upstreams: Scripted, length: int | None
) -> None:
    """The client sends no other request into a connection that is about to end."""

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(answer(b"no"))
        ended(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        _, headers, body = client.send(post(length)).message()
        assert (headers["connection"], body) == ("close", b"no")
        assert client.read() == b""


def test_an_answer_that_comes_before_a_large_upload_is_poured_is_the_last(
    edge: Edge, upstreams: Scripted
) -> None:
    """For it will be, although it is not yet."""

    class Narrow(Upstream):
        def connect(self) -> socket.socket:
            near = super().connect()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            return near

    told = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        told.wait(10 * SLOW)
        sock.sendall(b"ok")
        ended(sock)

    upstreams.servers[AGENT] = Narrow(script)
    with Client(edge) as client:
        client.send(post(5 * MIB) + b"x" * 200_000)
        assert client.head()[1]["connection"] == "close"
        told.set()
        assert client.read() == b"ok"


def test_an_upstream_that_never_answers_is_502(edge: Edge, upstreams: Scripted) -> None:
    """In JSON, without the key that would say that nothing was run."""

    def script(sock: socket.socket) -> None:
        read_request(sock)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        status, _, body = client.send(post(2) + b"{}").message()
        assert status == 502
        assert b'"code":502' in body
        assert b"port" not in body
        assert client.send(get()).message()[0] == 502, "the client may go on"


def test_what_is_not_http_is_502(edge: Edge, upstreams: Scripted) -> None:
    """The client never sees it."""

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        status, _, body = client.send(get()).message()
    assert status == 502
    assert b"SSH" not in body


def test_a_malformed_body_is_400_and_cuts_the_upstream(
    edge: Edge, upstreams: Scripted
) -> None:
    """The fault is the client's, whatever the upstream makes of it."""
    begun, cut = threading.Event(), threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        begun.set()
        if ended(sock):
            cut.set()

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(post(None) + b"1\r\nx\r\n")
        assert begun.wait(10 * SLOW)
        status, headers, _ = client.send(b"zz\r\n").message()
        assert (status, headers["connection"]) == (400, "close")
        assert client.read() == b""
    assert cut.wait(10 * SLOW)
