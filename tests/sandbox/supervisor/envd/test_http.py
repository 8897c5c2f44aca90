"""envd's HTTP connection: whole requests in, streamed answers out, nothing blocks."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.budget import FAIR_SHARE, Budget
from ppio_agent.sandbox.supervisor.envd.http import MAX_BODY, Connection, Request
from ppio_agent.sandbox.supervisor.loop import Loop
from tests.support import wait_until

Handler = Callable[[Request, Connection], None]


class Peer:
    """A client, and the connection on a loop in a thread of its own."""

    def __init__(self, handler: Handler) -> None:
        self.loop = Loop()
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(10)
        self.budget = Budget()
        self.connection = Connection(self.loop, theirs, handler, self.budget)
        self._wake, watched = socket.socketpair()
        self._watched = watched
        self.loop.watch(watched.fileno(), 1, self._woken)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def ask(self, data: bytes, size: int = 1) -> tuple[int, bytes]:
        """Send a request as it is and return status and body of the answer."""
        self.sock.sendall(data)
        return self.answer(size)

    def answer(self, size: int = 1) -> tuple[int, bytes]:
        """Read one answer to its end, `size` bytes at once.

        One by one leaves a further answer alone.
        """
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        http.send(h11.EndOfMessage())
        status, body = 0, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(self.sock.recv(size))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, body

    def wake(self) -> None:
        """Let the loop look at its timers."""
        self._wake.send(b"w")

    def _woken(self, _: int) -> None:
        if self._watched.recv(1) == b"x":
            self.loop.stop()

    def close(self) -> None:
        """End the thread."""
        self._wake.send(b"x")
        self._thread.join(10)
        self.connection.close()
        for sock in (self.sock, self._wake, self._watched):
            sock.close()


MakePeer = Callable[[Handler], Peer]


@pytest.fixture
def peer() -> Iterator[MakePeer]:
    """Make peers that end with the test."""
    made: list[Peer] = []

    def make(handler: Handler) -> Peer:
        made.append(Peer(handler))
        return made[-1]

    yield make
    for each in made:
        each.close()


def echo(request: Request, connection: Connection) -> None:
    """Answer with what was asked."""

    def answer(body: bytes) -> None:
        connection.reply_json(200, [request.method, request.path, body.decode()])

    connection.collect(answer)


GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"


def test_requests_of_one_connection_are_answered_in_order(peer: MakePeer) -> None:
    """Also when they come in one piece, with a length or chunked."""
    client = peer(echo)
    post = b"POST /b HTTP/1.1\r\nHost: x\r\n"
    client.sock.sendall(
        GET
        + post
        + b"Content-Length: 3\r\n\r\none"
        + post
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
    )

    assert [json.loads(client.answer()[1]) for _ in range(3)] == [
        ["GET", "/a", ""],
        ["POST", "/b", "one"],
        ["POST", "/b", "two"],
    ]


def test_a_large_body_is_refused_while_much_is_held_for_others(
    peer: MakePeer,
) -> None:
    """A small one is not, and what was held is given back."""
    client = peer(echo)
    post = b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    client.budget.change(32 * 2**20)
    assert client.ask(post % 3 + b"one")[0] == 200
    large = b"x" * (FAIR_SHARE + 1)
    assert client.ask(post % len(large) + large, 65536)[0] == 429
    client.budget.change(-32 * 2**20)

    assert client.ask(post % len(large) + large, 65536)[0] == 200
    wait_until(lambda: client.budget.held == 0)


def test_a_client_that_waits_to_be_asked_for_the_body_is_asked(peer: MakePeer) -> None:
    """`Expect: 100-continue` is answered before the body."""
    client = peer(echo)
    client.sock.sendall(
        b"POST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )

    assert client.sock.recv(1000).startswith(b"HTTP/1.1 100 ")
    assert client.ask(b"ok")[0] == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"NO SENSE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000, 431),
        (
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
            b"Content-Length: 2\r\n\r\n",
            400,
        ),
    ],
    ids=["no host", "no head", "long head", "two lengths"],
)
def test_a_bad_head_is_refused_and_the_connection_closed(
    peer: MakePeer, head: bytes, status: int
) -> None:
    """The answer is a Connect error."""
    client = peer(echo)
    found, body = client.ask(head)

    assert found == status
    assert json.loads(body)["code"] == "invalid_argument"
    assert client.sock.recv(1) == b""


def test_a_body_over_the_limit_is_refused_before_it_is_whole(peer: MakePeer) -> None:
    """It is not kept in memory."""
    client = peer(echo)
    length = MAX_BODY + 100_000
    client.sock.sendall(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length
    )
    with contextlib.suppress(OSError):  # it may close before all is sent
        client.sock.sendall(bytes(length - 1))

    assert client.answer()[0] == 413


def test_a_head_is_answered_by_a_head(peer: MakePeer) -> None:
    """As long as the answer to a GET would be; the connection serves on."""
    one = peer(lambda request, there: there.reply(501, request.path.encode()))
    one.sock.sendall(b"HEAD /four HTTP/1.1\r\nHost: x\r\n\r\n")
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += one.sock.recv(1)

    assert head.startswith(b"HTTP/1.1 501")
    assert b"content-length: 5\r\n" in head
    assert one.ask(b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n") == (501, b"/next")


def test_a_body_that_is_not_wanted_is_dropped(peer: MakePeer) -> None:
    """The client reads why, and goes on; it is told before it has sent it all."""

    def refuse(request: Request, connection: Connection) -> None:
        connection.reply(403, request.path.encode())

    client = peer(refuse)
    client.sock.sendall(
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 900000\r\n\r\n"
    )
    assert client.answer() == (403, b"/a")
    client.sock.sendall(bytes(900_000))

    assert client.ask(GET) == (403, b"/a")


def test_a_body_that_was_not_asked_for_ends_the_connection(peer: MakePeer) -> None:
    """Nobody knows whether it will come: the next request could be taken for it."""
    client = peer(lambda request, connection: connection.reply(403))
    client.sock.sendall(
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
        b"Expect: 100-continue\r\n\r\n"
    )

    assert client.answer()[0] == 403
    assert client.sock.recv(10) == b""


def test_a_body_is_handed_on_as_it_comes(peer: MakePeer) -> None:
    """Each piece before the next is read; nothing after the answer."""
    pieces: list[bytes] = []
    taken = threading.Event()

    def take(request: Request, connection: Connection) -> None:
        def on_data(data: bytes) -> None:
            pieces.append(data)
            taken.set()

        connection.receive(on_data, lambda: connection.reply(200, b"".join(pieces)))

    client = peer(take)
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\none")
    assert taken.wait(5)
    assert pieces == [b"one"]
    assert client.ask(b"two") == (200, b"onetwo")


def test_a_client_waits_while_it_is_held(peer: MakePeer) -> None:
    """Nothing of it is lost, and its end is seen only then."""
    pieces: list[bytes] = []
    held = threading.Event()

    def take(request: Request, connection: Connection) -> None:
        def on_data(data: bytes) -> None:
            pieces.append(data)
            connection.hold()
            held.set()

        connection.receive(on_data, lambda: connection.reply(200, b"".join(pieces)))

    client = peer(take)
    client.sock.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\none")
    assert held.wait(5)
    client.sock.sendall(b"two" + GET)
    client.loop.call_later(0.05, client.connection.release)
    client.wake()
    wait_until(lambda: len(pieces) == 2)
    assert pieces == [b"one", b"two"]
    client.loop.call_later(0, client.connection.release)
    client.wake()

    assert client.answer() == (200, b"onetwo")


def test_a_source_is_asked_as_fast_as_the_client_reads(peer: MakePeer) -> None:
    """So that an answer of any length takes no memory."""
    backlogs: list[int] = []

    def answer(request: Request, connection: Connection) -> None:
        def more() -> None:
            backlogs.append(connection.backlog)
            connection.write(bytes(100_000))
            if len(backlogs) == 50:
                connection.end()

        connection.source = more
        connection.begin(200, {})

    client = peer(answer)
    status, body = client.ask(GET, 65536)

    assert (status, len(body)) == (200, 5_000_000)
    assert backlogs == [0] * 50


def test_a_failing_handler_is_a_500_and_no_more(peer: MakePeer) -> None:
    """The loop, and so the sandbox, goes on."""

    def fail(request: Request, connection: Connection) -> None:
        raise LookupError(request.path)

    status, body = peer(fail).ask(GET)

    assert status == 500
    assert json.loads(body)["code"] == "internal"


def test_each_piece_of_a_stream_leaves_at_once_and_whole(peer: MakePeer) -> None:
    """One piece is one chunk, seen before the next is written."""
    streams: list[Connection] = []

    def begin(request: Request, connection: Connection) -> None:
        connection.begin(200, {"content-type": "text/plain"})
        connection.write(b"one")
        streams.append(connection)

    client = peer(begin)
    client.sock.sendall(GET)
    seen = b""
    while b"one" not in seen:
        seen += client.sock.recv(1000)
    assert seen.endswith(b"\r\n\r\n3\r\none\r\n")

    client.loop.call_later(0, lambda: streams[0].write(b"three"))
    client.sock.sendall(GET)  # wakes the loop; it waits behind the stream
    assert client.sock.recv(1000) == b"5\r\nthree\r\n"


def test_a_client_that_leaves_is_told_of_once(peer: MakePeer) -> None:
    """`on_gone` is called, and later writes go nowhere."""
    gone = threading.Event()
    calls: list[str] = []

    def begin(request: Request, connection: Connection) -> None:
        def on_gone() -> None:
            calls.append("gone")
            connection.write(b"nobody")
            connection.end()
            gone.set()

        connection.begin(200, {})
        connection.on_gone = on_gone

    client = peer(begin)
    client.sock.sendall(GET)
    client.sock.recv(10)
    client.sock.close()

    assert gone.wait(5)
    client.connection.close()
    assert calls == ["gone"]


def test_what_a_slow_client_does_not_take_is_counted(peer: MakePeer) -> None:
    """The backlog grows, nothing blocks, and all of it arrives in the end."""
    backlogs: list[int] = []
    written = threading.Event()

    def flood(request: Request, connection: Connection) -> None:
        connection.begin(200, {})
        for _ in range(200):
            connection.write(b"x" * 10_000)
        backlogs.append(connection.backlog)
        connection.end()
        written.set()

    client = peer(flood)
    client.sock.sendall(GET)
    assert written.wait(10)
    status, body = client.answer(65536)

    assert status == 200
    assert body == b"x" * 2_000_000
    assert backlogs[0] > 1_000_000


@settings(max_examples=60, deadline=None)
@given(data=st.lists(st.binary(max_size=40), max_size=6))
def test_no_input_breaks_the_loop(data: list[bytes]) -> None:
    """Any bytes are answered, refused or waited upon."""
    client = Peer(echo)
    try:
        for piece in data:
            client.sock.sendall(piece)
    except OSError:
        pass
    finally:
        assert client._thread.is_alive()
        client.close()
