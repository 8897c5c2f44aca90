"""The server over real sockets."""

from __future__ import annotations

import contextvars
import inspect
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import waitress
from waitress.task import ThreadedTaskDispatcher

from ppio_agent.web import (
    SSE_HEADERS,
    Lane,
    Lanes,
    Relayed,
    Reply,
    Server,
    ServerConfig,
    read_body,
    sse_body,
)
from ppio_agent.web.loop import EpollLoop, Loop
from tests.fuzz.messages import REFUSED
from tests.support import SLOW, new_threads, wait_until
from tests.web.conftest import Serve
from tests.web.raw import RawClient


def hello(environ: Any, start_response: Any) -> Any:
    return Reply(200, [("Content-Type", "text/plain")], b"hello").respond(
        start_response
    )


def echo(environ: Any, start_response: Any) -> Any:
    return Reply(200, body=read_body(environ, 1 << 20)).respond(start_response)


def by_path(method: str, path: str, headers: Any) -> Lane:
    return Lane.EXPRESS if path == "/ping" else Lane.INVOKE


class Blocker:
    """An application that answers `/ping` at once and blocks all else on a gate."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.inside = 0
        self._lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] != "/ping":
            with self._lock:
                self.inside += 1
            self.gate.wait(20)
        return hello(environ, start_response)


@pytest.fixture
def blocker() -> Iterator[Blocker]:
    app = Blocker()
    yield app
    app.gate.set()


class Silence:
    """A source of events that has none; or those that a test gives it."""

    closed = False

    def __init__(self) -> None:
        self._wake = threading.Event()

    def read(self, after: int, timeout: float | None) -> list[Any]:
        self._wake.wait(timeout)
        return []


def _plain_loop(between: Any, inline: Any, succeed: Any) -> Loop:
    return Loop(between)


@pytest.fixture(params=[EpollLoop, _plain_loop], ids=["epoll", "plain"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test on either loop."""
    monkeypatch.setattr("ppio_agent.web.server.new_loop", request.param)


@pytest.mark.usefixtures("loop")
def test_requests_on_one_connection(serve: Serve) -> None:
    """The connection is kept, also after errors, empty answers and HEAD."""

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/empty":
            return Reply(204).respond(start_response)
        if environ["PATH_INFO"] == "/boom":
            raise ValueError("boom")
        return echo(environ, start_response)

    with RawClient(serve(app).port) as client:
        assert client.ask("/", "POST", b"one").body == b"one"
        assert client.ask("/boom").status == 500
        assert client.ask("/empty").status == 204
        assert client.ask("/", "HEAD").headers["content-length"] == "0"
        assert client.ask("/", "POST", b"two").body == b"two"


@pytest.mark.parametrize("length", [b"", b"Content-Length: 0\r\n"])
def test_who_expects_to_send_no_body_is_answered(serve: Serve, length: bytes) -> None:
    """There is nothing to go on with; a body that is expected comes after a 100."""
    server = serve(echo)
    head = b" /x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    with RawClient(server.port) as client:
        client.send(b"POST" + head + length + b"\r\n")
        assert client.answer().status == 200
        client.send(b"POST" + head + b"Content-Length: 2\r\n\r\n")
        assert client.head() == (100, {})
        client.send(b"ab")
        assert client.answer().body.endswith(b"ab")


@pytest.mark.usefixtures("loop")
def test_another_thread_may_answer_a_request(serve: Serve, blocker: Blocker) -> None:
    """With its id; the connection goes on, and the first thread with what it does."""
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        resume = environ.get("ppio.resume")
        if resume is not None:
            return resume().respond(start_response)
        if environ["PATH_INFO"] != "/relayed":
            return hello(environ, start_response)
        first = environ["ppio.request_id"]
        reply = Reply(200, [("X-First", first)], b"by another")
        assert environ["ppio.relay"](environ, lambda: reply)
        blocker.gate.wait(20)
        ended.set()
        raise Relayed

    server = serve(app, max_concurrency=3)
    with RawClient(server.port) as client:
        relayed = client.ask("/relayed")
        assert relayed.body == b"by another"
        assert relayed.headers["x-first"] == relayed.headers["x-request-id"]
        assert client.ask("/").body == b"hello"
        assert client.ask("/relayed").body == b"by another"
        blocker.gate.set()
        assert ended.wait(5)
        assert client.ask("/").body == b"hello"


def test_who_takes_over_a_closed_connection_still_learns_of_it(
    serve: Serve,
) -> None:
    """Whoever waits for the outcome must not be left to believe in a reader."""
    resumed = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        gone = environ["ppio.client_gone"]

        def resume() -> Reply:
            if gone():
                resumed.set()
            return Reply(200)

        environ["ppio.abort"]()
        wait_until(gone)
        environ["ppio.relay"](environ, resume)
        raise Relayed

    with RawClient(serve(app).port) as client:
        client.send_request("/")
        assert resumed.wait(5)


def test_without_a_thread_for_it_a_request_stays_where_it_is(serve: Serve) -> None:
    """Whoever wanted to give it away is told so."""

    def app(environ: Any, start_response: Any) -> Any:
        relays = server._dispatcher._relays
        relays.close(0)
        taken = environ["ppio.relay"](environ, lambda: None)
        return Reply(200, body=str(taken).encode()).respond(start_response)

    server = serve(app)
    with RawClient(server.port) as client:
        assert client.ask("/").body == b"False"
        assert client.ask("/").body == b"False"


@pytest.mark.usefixtures("loop")
def test_a_chunked_answer_keeps_its_connection(serve: Serve) -> None:
    """Waitress would close; a client with TLS would have to begin anew."""

    def app(environ: Any, start_response: Any) -> Any:
        return Reply(200, body=iter([b"a", b"", b"bc"])).respond(start_response)

    with RawClient(serve(app).port) as client:
        for _ in range(3):
            client.send_request()
            status, headers = client.head()
            assert (status, headers["transfer-encoding"]) == (200, "chunked")
            assert "connection" not in headers
            assert client.chunks() == [b"a", b"bc"]


@pytest.mark.usefixtures("loop")
def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    """Several requests in one packet."""
    with RawClient(serve(echo).port) as client:
        for n in range(5):
            client.send_request("/", "POST", b"%d" % n)
        assert [client.answer().body for _ in range(5)] == [b"%d" % n for n in range(5)]


@pytest.mark.usefixtures("loop")
def test_a_large_answer_arrives_whole(serve: Serve) -> None:
    """More than the socket and the buffer take at once."""
    data = os.urandom(5 << 20)

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/pieces":
            pieces = (data[n : n + 70_000] for n in range(0, len(data), 70_000))
            return Reply(200, body=pieces).respond(start_response)
        return Reply(200, body=data).respond(start_response)

    with RawClient(serve(app).port) as client:
        assert client.ask().body == data
        assert client.ask("/pieces").body == data


@pytest.mark.usefixtures("loop")
def test_a_client_that_closes_is_forgotten(serve: Serve) -> None:
    """Its connection does not stay in the loop."""
    server = serve(hello)
    with RawClient(server.port) as client:
        client.ask()
        assert server.stats()["connections"] == 1
    wait_until(lambda: server.stats()["connections"] == 0)


def test_the_dispatcher_parameter_of_waitress_is_there(serve: Serve) -> None:
    """It is private to waitress: lanes rest on its presence and its effect."""
    parameters = inspect.signature(waitress.create_server).parameters
    assert "_dispatcher" in parameters
    assert {"add_task", "shutdown"} <= set(dir(ThreadedTaskDispatcher))
    names: list[str] = []

    def app(environ: Any, start_response: Any) -> Any:
        names.append(threading.current_thread().name)
        return hello(environ, start_response)

    server = serve(app, lanes=Lanes(classify=by_path))
    with RawClient(server.port) as client:
        client.ask("/ping")
        client.ask("/else")
    assert [name.rpartition("-")[0] for name in names] == [
        "ppio-web-express",
        "ppio-web-loop",
    ]


def test_pings_do_not_wait_for_blocked_handlers(serve: Serve, blocker: Blocker) -> None:
    """Every invoke thread blocks and the queue is full: 100 pings, 95 in < 20 ms."""
    server = serve(
        blocker, lanes=Lanes(classify=by_path), max_concurrency=4, max_queue=2
    )
    busy = [RawClient(server.port) for _ in range(6)]
    for client in busy:
        client.send_request("/invocations", "POST", b"{}")
    wait_until(lambda: blocker.inside == 4)
    times = []
    with RawClient(server.port) as client:
        for _ in range(100):
            began = time.perf_counter()
            assert client.ask("/ping").status == 200
            times.append(time.perf_counter() - began)
    assert sorted(times)[94] < 0.02 * SLOW
    blocker.gate.set()
    assert [client.answer().status for client in busy] == [200] * 6
    for client in busy:
        client.socket.close()


def test_a_service_with_its_own_form_of_errors_has_it_in_refusals_too(
    serve: Serve,
) -> None:
    """What the server answers without the application looks like the rest."""

    def own(error: BaseException, request_id: str | None, *, headers: Any) -> Reply:
        body = f"{getattr(error, 'http_status', 0)} for {request_id}"
        return Reply(400, headers, body.encode())

    server = serve(lambda *_: [], problem=own)
    with RawClient(server.port) as client:
        answer = client.ask("/", Content_Length="x", X_Request_Id="r1")

    assert (answer.status, answer.body) == (400, b"400 for r1")
    assert answer.headers["x-request-id"] == "r1"


def test_of_three_at_once_one_is_refused(serve: Serve, blocker: Blocker) -> None:
    """One slot, one place: the third hears 503 in < 50 ms, the others are served."""
    server = serve(blocker, max_concurrency=1, max_queue=1)
    clients = [RawClient(server.port) for _ in range(3)]
    for client in clients[:2]:
        client.send_request("/invocations", "POST", b"{}")
    wait_until(lambda: server.stats()["lanes"]["invoke"]["waiting"] == 1)
    began = time.perf_counter()
    refused = clients[2].ask("/invocations", "POST", b"{}", X_Request_Id="r3")
    assert time.perf_counter() - began < 0.05 * SLOW
    assert refused.status == 503
    assert refused.json()["code"] == "server_busy"
    assert refused.json()["retryable"] is True
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["x-request-id"] == refused.json()["request_id"] == "r3"
    blocker.gate.set()
    assert [client.answer().status for client in clients[:2]] == [200, 200]
    assert clients[2].ask("/invocations", "POST", b"{}").status == 200
    for client in clients:
        client.socket.close()


def test_a_silent_stream_begins_at_once_and_beats(serve: Serve) -> None:
    """Head and first bytes in < 100 ms, then a comment each interval."""

    def app(environ: Any, start_response: Any) -> Any:
        body = sse_body(Silence(), dialect="bare", heartbeat=0.2)
        return Reply(200, SSE_HEADERS, body).respond(start_response)

    with RawClient(serve(app).port) as client:
        began = time.perf_counter()
        client.send_request()
        status, headers = client.head()
        assert client.chunk() == b": open\n\n"
        assert time.perf_counter() - began < 0.1 * SLOW
        assert (status, headers["content-type"]) == (
            200,
            "text/event-stream; charset=utf-8",
        )
        began = time.perf_counter()
        assert [client.chunk() for _ in range(3)] == [b": hb\n\n"] * 3
        assert 0.55 <= time.perf_counter() - began < 1.0 * SLOW


def test_a_client_that_leaves_a_silent_stream_is_seen(serve: Serve) -> None:
    """Within 0.6 s, though nothing is written."""
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        def body() -> Iterator[bytes]:
            try:
                gone = environ["ppio.client_gone"]
                yield from sse_body(Silence(), dialect="bare", client_gone=gone)
            finally:
                ended.set()

        return Reply(200, SSE_HEADERS, body()).respond(start_response)

    with RawClient(serve(app).port) as client:
        client.send_request()
        client.head()
        client.chunk()
    began = time.perf_counter()
    assert ended.wait(5)
    assert time.perf_counter() - began < 0.6 * SLOW


def test_client_gone_is_false_while_the_client_waits(serve: Serve) -> None:
    """Also when it has sent its next request already."""
    seen: list[bool] = []
    gate = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        gate.wait(10)
        seen.append(environ["ppio.client_gone"]())
        return hello(environ, start_response)

    with RawClient(serve(app).port) as client:
        client.send_request("/first")
        wait_until(lambda: True)
        client.send_request("/second")
        gate.set()
        client.answer()
        client.answer()
    assert seen == [False, False]


def test_abort_frees_a_writer_whose_reader_takes_nothing(serve: Serve) -> None:
    """Waitress has no timeout there; the connection is closed from the loop."""
    handle: dict[str, Any] = {}
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        handle["abort"] = environ["ppio.abort"]

        def body() -> Iterator[bytes]:
            try:
                while True:
                    handle["written"] = handle.get("written", 0) + 1
                    yield b"x" * (1 << 20)
            finally:
                ended.set()

        return Reply(200, body=body()).respond(start_response)

    server = serve(app)
    with RawClient(server.port) as client:
        client.send_request()
        client.head()
        before = -1
        while before != handle["written"]:  # until the writer stands still
            before = handle["written"]
            threading.Event().wait(0.1)
        assert not ended.is_set()
        handle["abort"]()
        assert ended.wait(5)
        wait_until(lambda: server.stats()["connections"] == 0)


def test_a_reader_that_takes_nothing_is_closed_in_time(serve: Serve) -> None:
    """After `write_timeout`, and other clients do not notice."""
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/small":
            return hello(environ, start_response)

        def body() -> Iterator[bytes]:
            try:
                while True:
                    yield b"x" * (1 << 20)
            finally:
                ended.set()

        return Reply(200, body=body()).respond(start_response)

    server = serve(app, write_timeout=0.3)
    with RawClient(server.port) as slow, RawClient(server.port) as quick:
        slow.send_request("/stream")
        slow.head()
        worst = 0.0
        while not ended.is_set():
            began = time.perf_counter()
            assert quick.ask("/small").body == b"hello"
            worst = max(worst, time.perf_counter() - began)
        assert worst < 0.25 * SLOW


def test_200_clients_are_served_at_once(serve: Serve) -> None:
    """More than waitress's default of 100 connections, each with a blocking handler."""
    together = threading.Barrier(200)

    def app(environ: Any, start_response: Any) -> Any:
        together.wait(20)
        return hello(environ, start_response)

    server = serve(app, max_concurrency=200)
    clients = [RawClient(server.port) for _ in range(200)]
    for client in clients:
        client.send_request()
    assert {client.answer().status for client in clients} == {200}
    for client in clients:
        client.socket.close()


def test_contexts_of_users_do_not_mix(serve: Serve) -> None:
    """1,000 requests of two users over few threads; each sees its own values only."""
    user: contextvars.ContextVar[str | None] = contextvars.ContextVar(
        "user", default=None
    )

    def app(environ: Any, start_response: Any) -> Any:
        def body() -> Iterator[bytes]:
            yield str(user.get()).encode()
            user.set(environ["HTTP_X_USER"])
            yield b"-" + str(user.get()).encode()

        return Reply(200, body=body()).respond(start_response)

    port = serve(app, max_concurrency=2).port

    def ask(name: str) -> set[bytes]:
        with RawClient(port) as client:
            return {client.ask(X_User=name).body for _ in range(500)}

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(ask, ["alice", "bob"]))
    assert answers == [{b"None-alice"}, {b"None-bob"}]


@pytest.mark.parametrize("chunked", [False, True])
def test_exactly_the_limit_passes(serve: Serve, chunked: bool) -> None:
    """1 MiB is accepted, one byte more is a 413, with and without a length."""
    port = serve(echo).port

    def post(size: int) -> Any:
        with RawClient(port) as client:
            body = b"x" * size
            if not chunked:
                return client.ask("/", "POST", body)
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
            return client.ask("/", "POST", framed, Transfer_Encoding="chunked")

    assert len(post(1 << 20).body) == 1 << 20
    refused = post((1 << 20) + 1)
    assert refused.status == 413
    assert refused.json()["code"] == "request_too_large"
    assert refused.json()["limit"] == 1 << 20
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_the_server_stops_reading_a_body_without_end(serve: Serve) -> None:
    """Its own second line, long before memory is full."""
    server = serve(echo)
    with RawClient(server.port) as client:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        client.send(head)
        answer = client.answer()
        assert (answer.status, answer.json()["code"]) == (413, "request_too_large")
        assert client.closed()


@pytest.mark.usefixtures("loop")
def test_a_client_that_sends_too_much_still_reads_why(serve: Serve) -> None:
    """What it goes on sending is thrown away; a reset would take the answer with it."""
    server = serve(echo)
    with RawClient(server.port) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        for _ in range(64):
            client.send(b"x" * (1 << 16))
        assert client.answer().status == 413
        assert client.closed()
        client.send(b"x" * (1 << 16))
    wait_until(lambda: server.stats()["connections"] == 0)


@pytest.mark.usefixtures("loop")
def test_a_refused_client_that_never_closes_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Throwing away goes on for a while only."""
    monkeypatch.setattr("ppio_agent.web.loop._SWEEP_EVERY", 0.1)
    monkeypatch.setattr("ppio_agent.web.loop._LONGEST_WAIT", 0.1)
    monkeypatch.setattr("ppio_agent.web.channel._LINGER", 0.2)
    server = serve(hello)
    with RawClient(server.port) as client:
        client.send(b"NONSENSE\r\n\r\n")
        assert client.answer().status == 400
        wait_until(lambda: server.stats()["connections"] == 0)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nBad Header: x\r\n\r\n", 400, "bad_request"),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            501,
            "not_implemented",
        ),
        (
            b"GET / HTTP/1.1\r\nX-Big: " + b"x" * 300_000 + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "bad_request",
        ),
    ],
)
def test_what_cannot_be_read_is_a_problem(
    serve: Serve, request_bytes: bytes, status: int, code: str
) -> None:
    """In our form, with a request id; the connection closes."""
    server = serve(hello, headers=[("X-PPIO-Agent", "1")])
    with RawClient(server.port) as client:
        client.send(request_bytes)
        answer = client.answer()
        assert (answer.status, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert answer.headers["x-ppio-agent"] == "1"
        assert client.closed()


def test_nothing_is_served_behind_what_was_not_understood(serve: Serve) -> None:
    """It may be a part of that: one answer, and the connection ends."""
    served: list[str] = []

    def app(environ: Any, start_response: Any) -> Any:
        served.append(environ["PATH_INFO"])
        return echo(environ, start_response)

    server = serve(app)
    second = b"GET /second HTTP/1.1\r\nHost: test\r\n\r\n"
    for name, (head, body) in REFUSED.items():
        with RawClient(server.port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: test\r\n" + head + b"\r\n" + body)
            with suppress(OSError):  # it was refused before all of it was sent
                client.send(second)
            answer = client.answer()
            assert answer.status in {400, 431, 501}, name
            assert answer.headers["connection"] == "close", name
            assert client.rest() == b"", name
    assert served == []


def test_a_hop_by_hop_header_is_dropped(serve: Serve) -> None:
    """Waitress would answer 500."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Connection", "keep-alive"), ("X-A", "1")])
        return [b"ok"]

    with RawClient(serve(app).port) as client:
        answer = client.ask()
        assert (answer.status, answer.body) == (200, b"ok")
        assert "connection" not in answer.headers
        assert answer.headers["content-length"] == "2"


def test_an_injected_header_does_not_reach_the_client(serve: Serve) -> None:
    """It is a 500 with an id."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-A", "1\r\nSet-Cookie: evil=1")])
        return [b"ok"]

    with RawClient(serve(app).port) as client:
        answer = client.ask()
        assert answer.status == 500
        assert "set-cookie" not in answer.headers
        assert "x-request-id" in answer.headers


def test_a_body_that_fails_midway_is_cut_off(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """The client can tell: there is no last chunk. It is logged once."""

    def app(environ: Any, start_response: Any) -> Any:
        def body() -> Iterator[bytes]:
            yield b"some"
            raise ValueError("boom")

        return Reply(200, body=body()).respond(start_response)

    with RawClient(serve(app).port) as client:
        client.send_request()
        client.head()
        assert client.chunk() == b"some"
        assert client.rest() == b""
    assert len([r for r in caplog.records if r.exc_info]) == 1


def test_lengths_that_lie_do_not_break_the_next_answer(serve: Serve) -> None:
    """What is too much is left out; too little closes the connection."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "3")])
        return [b"long", b"er"] if environ["PATH_INFO"] == "/long" else [b"a"]

    server = serve(app)
    with RawClient(server.port) as client:
        assert client.ask("/long").body == b"lon"
        client.send_request("/short")
        assert client.head()[1]["content-length"] == "3"
        assert client.rest() == b"a"


def test_old_clients_are_understood(serve: Serve) -> None:
    """HTTP/1.0 has no chunks; `Connection` decides whether it stays open."""

    def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/stream":
            return Reply(200, body=iter([b"a", b"b"])).respond(start_response)
        return hello(environ, start_response)

    server = serve(app)
    with RawClient(server.port) as client:
        client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert client.answer().headers["connection"].lower() == "keep-alive"
        client.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"ab", "close")


def test_connection_close_is_obeyed(serve: Serve) -> None:
    """With the whole answer before it."""
    with RawClient(serve(hello).port) as client:
        answer = client.ask(Connection="close")
        assert (answer.body, answer.headers["connection"]) == (b"hello", "close")
        assert client.closed()


def test_a_client_may_ask_before_it_sends_its_body(serve: Serve) -> None:
    """`Expect: 100-continue`, as curl does for large bodies."""
    with RawClient(serve(echo).port) as client:
        client.send(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert client.head()[0] == 100
        client.send(b"hello")
        assert client.answer().body == b"hello"


def test_the_environ_is_that_of_wsgi(serve: Serve) -> None:
    """With the keys of PEP 3333 and ours; untrusted proxy headers are left out."""
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        return hello(environ, start_response)

    server = serve(app)
    with RawClient(server.port) as client:
        began = time.monotonic()
        client.ask("//a%20b?x=1", X_Forwarded_For="6.6.6.6", X_Token="t")
    assert seen["PATH_INFO"] == "/a b"
    assert (seen["QUERY_STRING"], seen["REQUEST_URI"]) == ("x=1", "//a%20b?x=1")
    assert (seen["REQUEST_METHOD"], seen["SERVER_PROTOCOL"]) == ("GET", "HTTP/1.1")
    assert (seen["REMOTE_ADDR"], seen["SERVER_PORT"]) == ("127.0.0.1", str(server.port))
    assert seen["HTTP_X_TOKEN"] == "t"
    assert "HTTP_X_FORWARDED_FOR" not in seen
    assert seen["wsgi.version"] == (1, 0)
    assert seen["wsgi.input_terminated"] is True
    assert began <= seen["ppio.arrived"] <= time.monotonic()


def test_a_unix_socket_is_served_and_removed(serve: Serve, tmp_path: Path) -> None:
    """The local platform's control plane listens like this."""
    path = tmp_path / "control.sock"
    server = serve(hello, unix_socket=str(path))
    assert server.url == f"unix:{path}"
    assert path.stat().st_mode & 0o777 == 0o600
    with RawClient(str(path)) as client:
        assert client.ask().body == b"hello"
        assert client.ask().body == b"hello"
    server.close()
    assert not path.exists()


def test_a_taken_port_is_an_error(serve: Serve) -> None:
    """At start, as an OSError; nothing is left behind."""
    taken = serve(hello).port
    other = Server(hello, port=taken)
    with pytest.raises(OSError, match="is taken by another program"):
        other.start()
    assert other.close()


def test_a_server_starts_once(serve: Serve) -> None:
    """Neither twice nor after its close."""
    server = serve(hello)
    with pytest.raises(RuntimeError):
        server.start()
    server.close()
    with pytest.raises(RuntimeError):
        server.start()


def test_all_addresses_of_a_name_have_one_port() -> None:
    """`localhost` may be two addresses."""
    with Server(hello, host="localhost") as server:
        found = socket.getaddrinfo("localhost", server.port, type=socket.SOCK_STREAM)
        for family, kind, proto, _, address in found:
            with socket.socket(family, kind, proto) as client:
                client.connect(address)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:0"), ("0.0.0.0", "http://127.0.0.1:0"),
     ("::1", "http://[::1]:0"), ("example.org", "http://example.org:0")],
)  # fmt: skip
def test_the_url_can_be_asked(host: str, url: str) -> None:
    """A wildcard address is no address to connect to."""
    assert Server(hello, host=host).url == url


def test_a_drain_lets_running_requests_end(serve: Serve, blocker: Blocker) -> None:
    """New connections are refused at once, new invocations get 503 and a close."""
    told: list[str] = []
    server = serve(
        blocker, lanes=Lanes(classify=by_path), on_drain=lambda: told.append("drain")
    )
    with RawClient(server.port) as running, RawClient(server.port) as idle:
        running.send_request("/invocations", "POST", b"{}")
        wait_until(lambda: blocker.inside == 1)
        assert idle.ask("/ping").status == 200
        assert not server.drain(timeout=0.05)
        assert told == ["drain"]
        with pytest.raises(ConnectionRefusedError):
            RawClient(server.port)
        refused = idle.ask("/invocations", "POST", b"{}")
        assert (refused.status, refused.json()["code"]) == (503, "server_draining")
        assert refused.headers["connection"] == "close"
        assert idle.closed()
        blocker.gate.set()
        assert server.drain(timeout=5)
        assert running.answer().status == 200
        assert told == ["drain"]


def test_close_ends_requests_that_are_under_way(serve: Serve) -> None:
    """Streams are cut, threads joined; twice is harmless, from any thread."""
    loops = new_threads("ppio-web-loop")
    ended = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        def body() -> Iterator[bytes]:
            try:
                yield from sse_body(Silence(), dialect="bare", heartbeat=0.05)
            finally:
                ended.set()

        return Reply(200, SSE_HEADERS, body()).respond(start_response)

    server = serve(app)
    with RawClient(server.port) as client:
        client.send_request()
        client.head()
        assert server.close()
        assert ended.is_set()
        assert client.closed() or client.rest() is not None
    assert server.close()
    assert loops() == []


def test_serve_forever_returns_when_closed() -> None:
    """From another thread, or a signal handler."""
    server = Server(hello)
    runner = threading.Thread(target=server.serve_forever)
    runner.start()
    wait_until(lambda: server.port)
    with RawClient(server.port) as client:
        assert client.ask().status == 200
    server.close()
    runner.join(5)
    assert not runner.is_alive()


@pytest.mark.usefixtures("loop")
def test_idle_connections_are_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `connection_timeout`; the loop looks every few seconds."""
    monkeypatch.setattr("ppio_agent.web.loop._SWEEP_EVERY", 0.1)
    server = serve(hello, connection_timeout=1)
    for listener in server._listeners:
        listener.adj.cleanup_interval = 0
        listener.next_channel_cleanup = 0
    with RawClient(server.port) as client:
        client.ask()
        assert client.closed()


@pytest.mark.usefixtures("loop")
def test_nobody_wakes_up_for_a_connection_that_is_idle(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for one with a request that is not complete; all is answered at once."""
    monkeypatch.setattr("ppio_agent.web.loop._LONGEST_WAIT", 0.01)
    server = serve(hello)
    waits: list[float | None] = []
    wait = server._loop._wait

    def noted(timeout: float | None) -> None:
        waits.append(timeout)
        wait(timeout)

    monkeypatch.setattr(server._loop, "_wait", noted)
    with RawClient(server.port) as client:
        client.send(b"GET / HTTP/1.1\r\n")
        wait_until(lambda: waits[3:] and set(waits[-3:]) == {0.01})
        client.send(b"Host: test\r\n\r\n")
        assert client.answer().status == 200
        wait_until(lambda: (waits[-1] or 0) > 1, what="the loop sleeps")
        assert client.ask().status == 200
    wait_until(lambda: waits[-1] is None, what="it sleeps for as long as it takes")


@pytest.mark.usefixtures("loop")
def test_too_many_connections_wait_for_their_turn(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit none is accepted; as soon as one leaves, the next is."""
    monkeypatch.setattr(ServerConfig, "connection_limit", lambda self: 6)
    server = serve(hello)
    clients = [RawClient(server.port) for _ in range(8)]
    for client in clients:
        client.send_request()
    for client in clients:
        assert client.answer().status == 200
        # Two of the six are the listener and the pipe that wakes the loop.
        assert server.stats()["connections"] <= 4
        client.socket.close()


def test_a_loop_that_breaks_is_logged(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the server says so rather than stay there deaf."""
    server = serve(hello)

    def broken() -> None:
        raise RuntimeError("broken loop")

    runner = threading.Thread(target=server.serve_forever)
    runner.start()
    assert not server.broken
    server._loop.call(broken)
    runner.join(5)
    assert not runner.is_alive()
    assert "broken loop" in caplog.text
    assert server.broken
    assert server.close()
