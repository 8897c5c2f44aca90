"""One socket of the edge holds little, notices its end, and closes politely."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h11
import pytest

from ppio_agent.sandbox.edge import line, pour
from ppio_agent.sandbox.edge.duct import Duct
from ppio_agent.sandbox.edge.line import Line
from ppio_agent.sandbox.edge.pump import Peer, PeerError

REQUEST = b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"

Run = Callable[[Coroutine[object, object, None]], None]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    yield loop
    loop.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        far = socket.create_connection(listener.getsockname())
        near, _ = listener.accept()
    far.settimeout(10)
    yield near, far
    near.close()
    far.close()


@pytest.fixture
def far(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    """The other side's end."""
    return pair[1]


@pytest.fixture
def peer(
    loop: asyncio.AbstractEventLoop, pair: tuple[socket.socket, socket.socket]
) -> Iterator[Peer]:
    """The edge's end, towards a client."""
    peer = Peer(pair[0], h11.SERVER, loop)
    yield peer
    peer.close()


@pytest.fixture
def run(loop: asyncio.AbstractEventLoop) -> Run:
    def run(work: Awaitable[None]) -> None:
        loop.run_until_complete(asyncio.wait_for(work, 20))

    return run


async def turns(count: int = 20) -> None:
    """Let the loop look at its sockets."""
    for _ in range(count):
        await asyncio.sleep(0)


async def send_on(peer: Peer) -> None:
    """Send until it fails."""
    while True:
        await peer.send(h11.Data(data=b"x" * 65536))


def test_little_is_read_ahead(peer: Peer, far: socket.socket, run: Run) -> None:
    """Nobody takes what comes, so the kernel makes the sender wait."""

    async def story() -> None:
        far.settimeout(0)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sent += far.send(b"x" * 65536)
                await turns()
        assert len(peer._inbox) < 128 * 1024
        assert sent > len(peer._inbox)

    run(story())


def test_many_small_pieces_are_one_inbox(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """Byte by byte, a head is the same head."""

    async def story() -> None:
        for byte in REQUEST:
            far.send(bytes([byte]))
            await turns(2)
        event = await peer.next_event(5)
        assert type(event) is h11.Request
        assert event.target == b"/x"

    run(story())


def test_what_came_before_the_end_is_given_first(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """And then it is said that no more will come."""

    async def story() -> None:
        far.sendall(REQUEST + b"half")
        far.close()
        assert type(await peer.next_event(5)) is h11.Request
        assert [bytes(event.data) for event in await peer.body()] == [b"half"]
        for _ in range(2):
            with pytest.raises(PeerError) as caught:
                await peer.body()
            assert (caught.value.peer, caught.value.status) == (peer, 0)

    run(story())


def test_a_body_is_read_only_where_there_is_one(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """Asked otherwise, it does not wait for ever."""

    async def story() -> None:
        far.sendall(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\nmore")
        await peer.next_event(5)
        assert [type(event) for event in await peer.body()] == [h11.EndOfMessage]
        with pytest.raises(PeerError):
            await peer.body()

    run(story())


def test_the_end_is_noticed_while_nothing_is_asked(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """Whoever is in the middle of something is told; later it is too late to begin."""

    async def story() -> None:
        noticed = asyncio.Event()
        with peer.at_end(noticed.set):
            far.close()
            await noticed.wait()
        with pytest.raises(PeerError), peer.at_end(noticed.set):
            pass

    run(story())


@pytest.mark.parametrize("how", ["end", "reset"])
def test_the_end_is_noticed_while_nothing_is_read(
    peer: Peer, far: socket.socket, run: Run, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that leaves while what it sent is not taken holds nothing any longer."""
    monkeypatch.setattr(line, "_LOOK_EVERY", 0.02)
    left = asyncio.Event()

    async def story() -> None:
        for _ in range(2):
            far.sendall(b"x" * 40_000)
            await turns()
        with peer.at_end(left.set):
            if how == "reset":
                linger = struct.pack("ii", 1, 0)
                far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            far.close()
            await left.wait()
        assert not peer.ended

    run(story())


def test_one_that_takes_nothing_is_given_up(
    peer: Peer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Line, "stalled", 0.05)

    async def story() -> None:
        with pytest.raises(PeerError) as info:
            await peer.send_raw(b"x" * 30_000_000)
        assert isinstance(info.value.__cause__, TimeoutError)

    run(story())


def test_sending_to_one_that_is_gone_fails(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """As the peer's doing, whatever the system calls it."""

    async def story() -> None:
        far.sendall(REQUEST + b"0123456789")
        await peer.next_event(5)
        far.close()
        await peer.send(h11.Response(status_code=200, headers=[]))
        with pytest.raises(PeerError):
            await send_on(peer)

    run(story())


@pytest.fixture(params=["spliced", "copied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How bodies are poured."""
    if request.param == "copied":
        monkeypatch.delattr(os, "splice", raising=False)
    return str(request.param)


async def pouring(peer: Peer, near: socket.socket, far: socket.socket) -> Peer:
    """Return a source, and bring `peer` to where a body of ten million may follow."""
    source = Peer(near, h11.CLIENT, asyncio.get_running_loop())
    far.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    await peer.next_event(5)
    length = [("Content-Length", "10000000")]
    await peer.send(h11.Response(status_code=200, headers=length))
    return source


def test_pouring_waits_for_both_sides(
    peer: Peer, far: socket.socket, run: Run, way: str
) -> None:
    """A large body arrives whole through sockets that hold little, with pauses."""
    body = bytes(range(256)) * 4096 * 9 + b"!" * (10_000_000 - 256 * 4096 * 9)
    near, out = socket.socketpair()
    out.settimeout(10)
    received = bytearray()

    def read() -> None:
        while data := far.recv(70_000):
            received.extend(data)

    with ThreadPoolExecutor(2) as pool:

        async def story() -> None:
            source = await pouring(peer, near, far)
            sent = pool.submit(out.sendall, body)
            done = pool.submit(read)
            await peer.pour(source, len(body))
            await peer.send(h11.EndOfMessage())
            peer.close()
            source.close()
            await asyncio.wrap_future(sent)
            await asyncio.wrap_future(done)

        run(story())
    out.close()
    assert bytes(received).partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize("who", ["source", "source at once", "sink", "closed here"])
def test_pouring_ends_with_either_side(
    peer: Peer, far: socket.socket, run: Run, way: str, who: str
) -> None:
    """In the middle of a body that is an error, said of the side that went."""
    near, out = socket.socketpair()

    async def story() -> None:
        source = await pouring(peer, near, far)
        if who == "source at once":
            out.close()
            await turns()
        task = asyncio.ensure_future(peer.pour(source, 10_000_000))
        if who != "source at once":
            out.sendall(b"x" * 5000)
            await turns()
        if who == "source":
            out.close()
        elif who == "sink":
            far.close()
            out.sendall(b"x" * 5000)
            await turns()
            out.sendall(b"x" * 5000)
        elif who == "closed here":
            source.close()
        with pytest.raises(PeerError) as info:
            await task
        assert info.value.peer is (peer if who == "sink" else source)
        source.close()

    run(story())
    out.close()


def test_pouring_fails_if_its_source_is_closed_before_it_begins(
    peer: Peer, far: socket.socket, run: Run, way: str
) -> None:
    """While what was read ahead is sent to a side that is slow."""
    near, out = socket.socketpair()

    async def story() -> None:
        source = await pouring(peer, near, far)
        out.sendall(b"x" * 5000)
        await turns()
        with contextlib.suppress(BlockingIOError):
            while True:
                peer.sock.send(b"x" * 65536)
        task = asyncio.ensure_future(peer.pour(source, 10_000_000))
        await turns()
        source.close()
        far.settimeout(0)
        while not task.done():
            with contextlib.suppress(BlockingIOError):
                far.recv(1 << 20)
            await asyncio.sleep(0)
        with pytest.raises(PeerError) as info:
            await task
        assert info.value.peer is source
        assert not peer.waiters

    run(story())
    out.close()


def test_a_side_that_takes_all_the_time_is_not_given_up(
    peer: Peer, far: socket.socket, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was in the way at first, and never is again."""
    monkeypatch.setattr(Line, "stalled", 0.05)
    near, out = socket.socketpair()

    class Busy(Duct):
        """Moves a byte at a time for far longer than one that is stalled has."""

        pauses = 1
        ends_at = 0.0

        def _fill(self) -> int:
            now = asyncio.get_running_loop().time()
            self.ends_at = self.ends_at or now + 0.15
            return 1 if now < self.ends_at else self.left

        def _drain(self) -> int:
            if self.pauses:
                self.pauses -= 1
                raise BlockingIOError
            return self.held

    @contextlib.contextmanager
    def open_busy(*which: Any) -> Iterator[Duct]:
        yield Busy(*which)

    monkeypatch.setattr(pour, "open_duct", open_busy)

    async def story() -> None:
        source = await pouring(peer, near, far)
        out.send(b"xx")
        await peer.pour(source, 10_000_000)
        source.close()

    run(story())
    out.close()


def test_poured_bytes_are_the_same_bytes(
    peer: Peer,
    far: socket.socket,
    run: Run,
    loop: asyncio.AbstractEventLoop,
    way: str,
) -> None:
    """Those already read, those to come, and none that follow."""
    body = bytes(range(256)) * 100
    near, out = socket.socketpair()
    out.settimeout(10)

    async def story() -> None:
        source = Peer(near, h11.CLIENT, loop)
        await source.send(
            h11.Request(method="GET", target="/", headers=[("Host", "h")]),
            h11.EndOfMessage(),
        )
        far.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.next_event(5)
        length = [("Content-Length", str(len(body)))]
        await peer.send(h11.Response(status_code=200, headers=length))
        out.sendall(body[:1000])
        await turns()
        out.sendall(body[1000:] + b"more")
        await peer.pour(source, len(body))
        await peer.send(h11.EndOfMessage())
        peer.close()
        assert not source.finished
        source.close()

    run(story())
    out.close()
    received = b"".join(iter(lambda: far.recv(65536), b""))
    assert received.partition(b"\r\n\r\n")[2] == body


def test_lingering_lets_the_last_answer_be_read(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """Though more of the request keeps coming, which nobody wants."""

    async def story() -> None:
        far.sendall(REQUEST)
        await peer.next_event(5)
        await peer.send(
            h11.Response(status_code=413, headers=[("Content-Length", "0")]),
            h11.EndOfMessage(),
        )
        lingering = asyncio.ensure_future(peer.linger())
        for _ in range(10):
            far.sendall(b"x" * 10_000)
            await turns()
        assert far.recv(65536).startswith(b"HTTP/1.1 413")
        assert far.recv(65536) == b""
        far.close()
        await lingering

    run(story())


def test_lingering_ends_though_the_other_side_stays(
    peer: Peer, far: socket.socket, run: Run
) -> None:
    """After a second."""
    run(peer.linger())
    assert peer.ended


def test_close_wakes_who_waits(
    peer: Peer, run: Run, loop: asyncio.AbstractEventLoop
) -> None:
    """With an error; a second close does nothing."""

    async def story() -> None:
        waiting = loop.create_task(peer.next_event())
        await turns()
        peer.close()
        peer.close()
        with pytest.raises(PeerError):
            await waiting

    run(story())
