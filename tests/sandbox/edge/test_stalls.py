"""What waits for a side that takes nothing ends; what is merely silent goes on."""

from __future__ import annotations

import select
import socket
import threading
from contextlib import suppress

import pytest

from ppio_agent.sandbox.edge.line import Line
from ppio_agent.sandbox.edge.server import Edge
from tests.sandbox.edge.edgekit import (
    AGENT,
    Client,
    Scripted,
    host,
    read_head,
)
from tests.support import SLOW

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PIECE = b"x" * 65536
POST = b"POST /up HTTP/1.1\r\n" + host()


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (b"Transfer-Encoding: chunked\r\n", b"10000\r\n" + PIECE + b"\r\n"),
        (b"Content-Length: 40000000\r\n", PIECE),
    ],
    ids=["chunks", "length"],
)
def test_an_upload_that_is_not_taken_ends(
    edge: Edge,
    upstreams: Scripted,
    monkeypatch: pytest.MonkeyPatch,
    framing: bytes,
    data: bytes,
) -> None:
    """Who neither reads nor answers is not waited for without end."""
    monkeypatch.setattr(Line, "stalled", 0.1)
    done = threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        done.wait(30 * SLOW)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(POST + framing + b"\r\n")
        client.sock.settimeout(0.3)
        with suppress(OSError):
            while not select.select([client.sock], [], [], 0)[0]:
                client.sock.sendall(data)
        client.sock.settimeout(10 * SLOW)
        assert client.message()[0] == 502
    done.set()


def test_an_answer_goes_on_though_the_upload_is_not_taken(
    edge: Edge, upstreams: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And though it is silent meanwhile."""
    monkeypatch.setattr(Line, "stalled", 0.02)
    done = threading.Event()

    def script(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(CHUNKED + b"1\r\nx\r\n")
        done.wait(0.2)
        sock.sendall(b"1\r\ny\r\n0\r\n\r\n")
        done.wait(30 * SLOW)

    upstreams.serve(AGENT, script)
    with Client(edge) as client:
        client.send(POST + b"Content-Length: 40000000\r\n\r\n")
        client.sock.settimeout(0.05)
        with suppress(OSError):
            client.sock.sendall(PIECE * 600)
        client.sock.settimeout(10 * SLOW)
        assert client.message()[2] == b"xy"
    done.set()
