"""What moves bytes between two sockets holds no more than a direction may."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppio_agent.sandbox.edge.duct import Halt, open_duct
from ppio_agent.sandbox.edge.waits import tried
from tests.support import SLOW, wait_until

Pair = tuple[socket.socket, socket.socket]

QUARTER = 256 * 1024


@pytest.fixture(params=["pipe", "copy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How bytes are moved."""
    if request.param == "copy":
        monkeypatch.delattr(os, "splice", raising=False)
    elif not hasattr(os, "splice"):
        pytest.skip("this system moves no bytes inside the kernel")
    return str(request.param)


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


def fill(sock: socket.socket) -> int:
    """Send until there is no room; how many bytes."""
    sent = 0
    while size := tried(lambda: sock.send(b"x" * 65536)):
        sent += size
    return sent


def empty(sock: socket.socket) -> int:
    """Receive until there is nothing; how many bytes."""
    return sum(map(len, iter(lambda: tried(lambda: sock.recv(65536)) or b"", b"")))


def test_it_holds_a_quarter_of_a_mebibyte_at_most(pairs: tuple[Pair, Pair]) -> None:
    """However much is there: the rest makes its sender wait."""
    (out, near), (sink, far) = pairs
    assert fill(out) > QUARTER
    fill(sink)
    with open_duct(near, sink, 1 << 30) as duct:
        assert duct.move() is Halt.SINK
        assert 0 < duct.held <= QUARTER
        assert duct.left == 1 << 30

        empty(far)
        duct.move()
        assert duct.left < 1 << 30


def test_it_moves_so_many_bytes_and_leaves_the_others(
    pairs: tuple[Pair, Pair],
) -> None:
    """As they come; what is in the way is said."""
    (out, near), (sink, far) = pairs
    with open_duct(near, sink, 6) as duct:
        assert duct.move() is Halt.SOURCE
        out.send(b"abcd")
        assert duct.move() is Halt.SOURCE
        assert duct.left == 2
        out.send(b"efgh")
        assert duct.move() is Halt.TURN
        assert (duct.left, duct.held) == (0, 0)
    assert far.recv(100) == b"abcdef"
    assert near.recv(100) == b"gh"


def test_it_says_that_the_source_has_ended(pairs: tuple[Pair, Pair]) -> None:
    """Once all that came before is moved."""
    (out, near), (sink, far) = pairs
    out.send(b"abc")
    out.close()
    with open_duct(near, sink, 6) as duct:
        assert duct.move() is Halt.END
        assert duct.left == 3
    assert far.recv(100) == b"abc"


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_an_urgent_byte_stops_nothing(pairs: tuple[Pair, Pair], ended: bool) -> None:
    """It is passed over, and what follows it moved, as long as that may be."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        out = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    _, (sink, far) = pairs
    with out, near:
        near.setblocking(False)
        for data in (b"ab", b"cd"):
            out.send(data)
            out.send(b"!", socket.MSG_OOB)
        out.send(b"x" * 10_000)
        if ended:
            out.shutdown(socket.SHUT_WR)
        with open_duct(near, sink, 1 << 20) as duct:
            left = (1 << 20) - 10_004
            # The first becomes an ordinary byte as the second comes, on some systems.
            wait_until(lambda: duct.move() is not Halt.TURN and duct.left <= left)
            assert duct.move() is (Halt.END if ended else Halt.SOURCE)
    assert far.recv(20_000).replace(b"!", b"") == b"abcd" + b"x" * 10_000


def test_others_have_their_turn(pairs: tuple[Pair, Pair]) -> None:
    """Though it could go on for as long as both sides are quick."""
    (out, near), (sink, far) = pairs
    with ThreadPoolExecutor(2) as pool:
        out.setblocking(True)
        far.settimeout(10 * SLOW)
        size = 64 << 20
        sent = pool.submit(out.sendall, b"x" * size)

        def read() -> int:
            got = 0
            while got < size:
                got += len(far.recv(1 << 20))
            return got

        got = pool.submit(read)
        most = 0
        with open_duct(near, sink, size) as duct:
            while duct.left:
                before = duct.left
                duct.move()
                most = max(most, before - duct.left)
        assert most <= 4 << 20
        assert (sent.result(), got.result()) == (None, size)


def test_a_side_that_is_gone_is_told_by_what_is_held(
    pairs: tuple[Pair, Pair],
) -> None:
    (out, near), (sink, far) = pairs
    out.send(b"abc")
    far.close()
    with open_duct(near, sink, 6) as duct:
        with pytest.raises(BrokenPipeError):
            duct.move()
        assert duct.held


def test_buffers_are_bounded_where_both_ends_are_on_this_machine() -> None:
    """What waits in them has left the cache by the time it is read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = [socket.create_connection(listener.getsockname()) for _ in range(2)]
        fars = [listener.accept()[0] for _ in range(2)]
    with open_duct(ends[0], ends[1], 1):
        for sock, buffer in zip(
            ends, (socket.SO_RCVBUF, socket.SO_SNDBUF), strict=True
        ):
            # The system doubles it, for what it needs itself.
            assert sock.getsockopt(socket.SOL_SOCKET, buffer) <= 2 * QUARTER
    for sock in (*ends, *fars):
        sock.close()
