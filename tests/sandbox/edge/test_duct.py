"""The pipe between two sockets holds no more than a direction may."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.edge import duct
from ppio_agent.sandbox.edge.duct import open_duct
from ppio_agent.sandbox.edge.waits import tried

Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.skipif(
    not hasattr(duct.os, "splice"), reason="there are no ducts on this system"
)


@pytest.fixture
def pairs() -> Iterator[tuple[Pair, Pair]]:
    """Two connections whose kernels buffer more than a duct does."""
    found = socket.socketpair(), socket.socketpair()
    for sock in (*found[0], *found[1]):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        sock.setblocking(False)
    yield found
    for sock in (*found[0], *found[1]):
        sock.close()


def test_it_is_filled_with_a_quarter_of_a_mebibyte(pairs: tuple[Pair, Pair]) -> None:
    """However much is there: the rest makes its sender wait."""
    (out, near), (sink, _) = pairs
    while tried(lambda: out.send(b"x" * 65536)):
        pass

    with open_duct(near, sink) as opened:
        assert opened is not None
        assert 0 < opened.fill(1 << 30) <= 256 * 1024


def test_what_is_left_comes_first(pairs: tuple[Pair, Pair]) -> None:
    (out, near), (sink, far) = pairs
    with open_duct(near, sink) as opened:
        assert opened is not None
        out.send(b"abcdef")

        assert opened.fill(4) == 4
        assert opened.drain(2) == 2
        assert opened.drain(2) == 2
        assert opened.fill(10) == 2
        assert opened.drain(2) == 2
        out.close()
        assert opened.fill(10) == 0

    assert far.recv(100) == b"abcdef"
