"""One connection: readers that take nothing, clients that dribble, forked children."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ppio_agent.web import Lane, Lanes, Reply, Server
from tests.support import wait_until
from tests.web.conftest import Serve
from tests.web.raw import RawClient

BIG = b"x" * (3 << 20)


def by_path(method: str, path: str, headers: Any) -> Lane:
    return Lane.INVOKE if path == "/invocations" else Lane.EXPRESS


def slow_reader(port: int) -> RawClient:
    """A client whose socket takes little before it is read."""
    client = RawClient(port)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    return client


@pytest.mark.parametrize("size", [30_000, 300_000, 600_000])
def test_what_a_reader_has_not_taken_leaves_while_the_handler_is_silent(
    serve: Serve, size: int
) -> None:
    """To the last byte, and the connection is not given up."""
    gate = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        def body() -> Iterator[bytes]:
            for _ in range(size // 10_000):
                yield b"y" * 10_000
            gate.wait(20)
            yield b"tail"

        return Reply(200, body=body()).respond(start_response)

    server = serve(app)
    with slow_reader(server.port) as client:
        client.send_request("/invocations")
        wait_until(lambda: server.stats()["lanes"]["invoke"]["busy"] == 1)
        whole = b""
        try:
            while whole.count(b"y") < size:
                whole += client.socket.recv(1 << 16)
        finally:
            gate.set()
        while b"tail" not in whole:
            piece = client.socket.recv(1 << 16)
            assert piece, "cut before its end"
            whole += piece


@pytest.mark.parametrize("requests", [1, 300])
def test_readers_of_large_answers_hold_no_thread(serve: Serve, requests: int) -> None:
    """However many do not read: what is in memory is buffered, and others are served.

    Nor do clients that send request after request and read no answer.
    """

    def app(environ: Any, start_response: Any) -> Any:
        body = BIG if environ["PATH_INFO"] == "/big" else b"ok"
        return Reply(200, body=body).respond(start_response)

    server = serve(app, lanes=Lanes(classify=by_path))
    request = b"GET /big HTTP/1.1\r\nHost: test\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(slow_reader(server.port))
            client.send(request * requests)
        wait_until(lambda: server._dispatcher.unfinished == 0)
        with RawClient(server.port, timeout=5) as other:
            assert other.ask("/ping").body == b"ok"
        assert client.answer().body == BIG
        if requests > 1:
            assert client.answer().body == BIG, "the next one follows"


def test_a_reader_of_nothing_is_closed_in_the_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After `write_timeout`, although no thread waits for it."""
    monkeypatch.setattr("ppio_agent.web.loop._SWEEP_EVERY", 0.05)

    def app(environ: Any, start_response: Any) -> Any:
        return Reply(200, body=BIG).respond(start_response)

    server = serve(app, write_timeout=0.3)
    with slow_reader(server.port) as client:
        client.send_request("/")
        wait_until(lambda: server.stats()["connections"] == 1)
        wait_until(lambda: server.stats()["connections"] == 0)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\nX-",
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 900\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    ],
)
def test_a_request_that_dribbles_is_given_up(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """Byte after byte would keep a connection for ever, and there are only so many."""
    monkeypatch.setattr("ppio_agent.web.loop._SWEEP_EVERY", 0.05)
    server = serve(lambda e, s: Reply(200).respond(s), request_timeout=0.3)
    with RawClient(server.port) as client:
        assert client.ask("/").status == 200
        client.send(begin)
        began = time.monotonic()
        with contextlib.suppress(OSError):
            while server.stats()["connections"]:
                client.send(b"a")
                threading.Event().wait(0.01)
                assert time.monotonic() - began < 10
        wait_until(lambda: server.stats()["connections"] == 0)


@pytest.mark.parametrize("part", [b"5;a=" + b"b" * 99, b"0\r\nX-T: " + b"t" * 99])
def test_endless_chunk_lines_and_trailers_are_refused(
    serve: Serve, part: bytes
) -> None:
    """They cost ever more time, and say nothing."""
    server = serve(lambda e, s: Reply(200).respond(s))
    with RawClient(server.port) as client:
        client.send(b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(part)
        with contextlib.suppress(OSError):
            for _ in range(100):
                client.send(b"x" * 1000)
        refused = client.answer()
        assert (refused.status, refused.json()["code"]) == (400, "bad_request")


def _fork_in_handler(environ: Any, start_response: Any) -> Any:
    child = 0
    if environ["PATH_INFO"] == "/fork":
        child = os.fork()
        if child:
            os.waitpid(child, 0)
    name = threading.current_thread().name.encode()
    return Reply(200, body=name).respond(start_response)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_that_comes_back_ends_there(serve: Serve) -> None:
    """It has the parent's sockets: it must not answer, nor serve others."""
    server: Server = serve(_fork_in_handler)
    with RawClient(server.port) as client:
        for _ in range(3):
            assert client.ask("/fork").status == 200
            assert client.ask("/").status == 200
    wait_until(lambda: server.stats()["connections"] == 0)
