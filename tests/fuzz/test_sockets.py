"""A real server under noise: every connection ends, and the next caller is served."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.messages import STREAMS
from tests.fuzz.support import fuzz, spoiled
from tests.serving.support import Http, make_app
from tests.support import SLOW
from tests.wire.support import cuts

NOISE = st.binary(max_size=300)
LAST = b"\r\n\r\nGET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
LIVE = (
    b"POST /invocations HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n"
    b"Content-Length: 2\r\n\r\n{}"
)


@frozen
class Server:
    """A served app, and the errors that it has logged."""

    http: Http
    errors: list[str]


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@pytest.fixture(scope="module", params=[False, True], ids=["table", "flask"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    app = make_app(through_flask=request.param, retention=1.0)
    app.entrypoint(lambda request: iter("abc"))
    with app.server(host="127.0.0.1", port=0) as running:
        yield Server(Http(running), errors.found)
    logging.getLogger().removeHandler(errors)


def talk(connection: socket.socket, pieces: list[bytes], *, last: bytes) -> bytes:
    """Send all, say that there is no more, and return what the server has sent."""
    answer = b""
    with suppress(OSError):  # it may close before all is sent
        for piece in [*pieces, last]:
            connection.sendall(piece)
        if last:
            connection.settimeout(0.02)
            with suppress(TimeoutError):  # it waits for the rest of a request
                answer = connection.recv(1 << 16)
        connection.shutdown(socket.SHUT_WR)
    connection.settimeout(10 * SLOW)
    with suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            answer += piece
    return answer


@fuzz(60, share=0.05)
@given(cuts(spoiled(st.just(LIVE) | STREAMS) | NOISE), st.sampled_from([b"", LAST]))
def test_noise_ends_in_an_answer_or_a_close(
    server: Server, pieces: list[bytes], last: bytes
) -> None:
    """The client says when it is through; the server is as good as new then."""
    address = ("127.0.0.1", server.http.port)
    with socket.create_connection(address, timeout=10 * SLOW) as connection:
        answer = talk(connection, pieces, last=last)
    assert answer[:7] in (b"", b"HTTP/1.")
    assert answer == b"" or b"x-request-id: " in answer.lower()
    assert server.http.get("/ping").status == 200
    assert server.errors == []
