"""Streams: read as they come, closed from anywhere, never quietly short."""

from __future__ import annotations

import gc
import os
import signal
import ssl
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    ClientClosedError,
    NetworkError,
    ProtocolError,
    RequestTimeoutError,
    ResponseTooLargeError,
    ServiceUnavailableError,
    StreamClosedError,
)
from ppio_agent.testing import (
    FaultServer,
    Peer,
    Received,
    chunks,
    cut,
    in_turn,
    reply,
    reset,
    silence,
)
from ppio_agent.transport import (
    CallHandle,
    RawStream,
    Request,
    Transport,
    TransportConfig,
)
from tests.support import SLOW, wait_until

Serve = Callable[..., FaultServer]


def _request(server: FaultServer, **more: object) -> Request:
    return Request(method="POST", url=server.url, body=b"{}", **more)


def _all(stream: RawStream) -> bytes:
    return b"".join(iter(stream.read, b""))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_stream_is_read_to_its_end(
    serve: Serve, transport: Transport, chunked: bool
) -> None:
    """In chunks or until the connection is closed; the end stays the end."""
    server = serve(chunks(b"data: 1\n\n", b"data: 2\n\n", chunked=chunked))
    with transport.stream(_request(server)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert not stream.closed
        assert _all(stream) == b"data: 1\n\ndata: 2\n\n"
        assert stream.read() == b""
        assert stream.closed
    assert transport._pool().idle == int(chunked)


@pytest.mark.parametrize("chunked", [True, False])
def test_each_piece_is_there_at_once(
    serve: Serve, transport: Transport, chunked: bool
) -> None:
    """Nothing is held back until more has come."""
    go = threading.Event()

    def slowly(peer: Peer, _request: Received) -> None:
        for piece in (b"two", b"three"):
            go.wait(5.0)
            go.clear()
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        peer.send(b"0\r\n\r\n" if chunked else b"")
        peer.close()

    server = serve(chunks(b"one", chunked=chunked, then=slowly))
    with transport.stream(_request(server)) as stream:
        for expected in (b"one", b"two", b"three", b""):
            assert stream.read() == expected
            go.set()


def test_a_compressed_stream_is_read_as_it_comes(
    serve: Serve, transport: Transport
) -> None:
    """Each flush of the peer is a piece."""
    import zlib

    packer = zlib.compressobj(wbits=31)
    pieces = [packer.compress(b"one") + packer.flush(zlib.Z_SYNC_FLUSH)]
    pieces.append(packer.compress(b"two" * 100_000) + packer.flush())
    server = serve(chunks(*pieces, headers={"Content-Encoding": "gzip"}))
    with transport.stream(_request(server)) as stream:
        assert _all(stream) == b"one" + b"two" * 100_000


@pytest.mark.parametrize("aborted", [False, True])
def test_time_and_abort_count_inside_what_is_decompressed(
    serve: Serve, transport: Transport, aborted: bool
) -> None:
    """A small answer can be a lot to read, without a look at the network."""
    import gzip

    packed = gzip.compress(bytes(1 << 22))
    server = serve(chunks(packed, headers={"Content-Encoding": "gzip"}))
    call = CallHandle()
    later = threading.Event()

    def clock() -> float:
        if later.is_set() and aborted:
            call.abort(StreamClosedError("enough"))
        return float(later.is_set() and not aborted)

    request = _request(server, deadline=Deadline(1.0, clock=clock))
    with transport.stream(request, call=call) as stream:
        assert stream.read()
        later.set()
        with pytest.raises((RequestTimeoutError, StreamClosedError)) as caught:
            stream.response()
    assert isinstance(caught.value, StreamClosedError) == aborted


# Acceptance 8


@pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until close"])
@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plain"])
def test_close_wakes_the_reader(
    serve: Serve,
    request: pytest.FixtureRequest,
    secure: bool,
    chunked: bool,
) -> None:
    """During silence both threads go on: ten times in a row, mostly within 10 ms."""
    context, config = None, TransportConfig()
    if secure:
        context, bundle = request.getfixturevalue("tls")
        config = TransportConfig(ca_bundle=str(bundle))
    server = serve(chunks(b"one", chunked=chunked, then=silence), tls=context)
    took: list[float] = []
    with Transport(config) as transport:
        for _ in range(10):
            stream = transport.stream(_request(server))
            assert stream.read() == b"one"
            woken: list[float] = []

            def read() -> None:
                with pytest.raises(StreamClosedError):
                    stream.read()  # noqa: B023 - the thread ends in this turn
                woken.append(time.monotonic())  # noqa: B023

            reader = threading.Thread(target=read)
            reader.start()
            wait_until(lambda: stream._state._reading)  # noqa: B023 - as above
            threading.Event().wait(0.01)
            start = time.monotonic()
            stream.close()
            closed = time.monotonic()
            reader.join(5.0)
            took.append(max(closed, woken[0]) - start)
            with pytest.raises(StreamClosedError):
                stream.read()
        wait_until(lambda: transport._pool().size == 0)
    assert median(took) < 0.01 * SLOW


def test_close_is_idempotent_and_drops_the_connection(
    serve: Serve, transport: Transport
) -> None:
    """What is left of the answer must not reach the next call."""
    server = serve(chunks(b"one", then=silence))
    stream = transport.stream(_request(server))
    stream.close()
    stream.close()
    assert stream.closed
    assert transport._pool().size == 0
    with pytest.raises(StreamClosedError):
        stream.read()


def test_a_signal_handler_may_close(serve: Serve, transport: Transport) -> None:
    """It runs on top of the reader, in the same thread."""
    server = serve(chunks(b"one", then=silence))
    stream = transport.stream(_request(server))
    before = signal.signal(signal.SIGALRM, lambda *_: stream.close())
    try:
        assert stream.read() == b"one"
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(StreamClosedError):
            stream.read()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert transport._pool().size == 0


def test_an_abandoned_stream_closes_itself(serve: Serve, transport: Transport) -> None:
    """With a warning that names the request."""
    server = serve(chunks(b"one", then=silence, headers={"X-Request-Id": "r-7"}))
    stream = transport.stream(_request(server))
    assert not stream.closed
    with pytest.warns(ResourceWarning, match="r-7"):  # noqa: PT031 - one thing: it goes
        del stream
        gc.collect()
    assert transport._pool().size == 0


@pytest.mark.parametrize("how", ["read", "closed", "whole"])
def test_a_stream_that_was_dealt_with_does_not_warn(
    serve: Serve, transport: Transport, how: str
) -> None:
    """Read to its end, or closed."""
    server = serve(chunks(b"one"))
    stream = transport.stream(_request(server))
    if how == "read":
        _all(stream)
    elif how == "closed":
        stream.close()
    else:
        stream.response()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del stream
        gc.collect()


def test_a_stream_has_one_reader(serve: Serve, transport: Transport) -> None:
    """A second one is refused, the first goes on."""
    server = serve(chunks(then=silence))
    with transport.stream(_request(server)) as stream:
        ended: list[Exception] = []

        def read() -> None:
            try:
                stream.read()
            except StreamClosedError as error:
                ended.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: stream._state._reading)
        with pytest.raises(RuntimeError, match="one reader"):
            stream.read()
        assert ended == []
        stream.close()
        reader.join(5.0)
        assert len(ended) == 1


# Ends that are none


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n", NetworkError),
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\none", NetworkError),
        (b"Content-Length: 9\r\n\r\none", NetworkError),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\nzz\r\n", ProtocolError),
    ],
)
def test_a_cut_stream_is_an_error(
    serve: Serve, transport: Transport, data: bytes, error: type[Exception]
) -> None:
    """After what had come before."""
    server = serve(cut(b"HTTP/1.1 200 OK\r\n" + data))
    stream = transport.stream(_request(server))
    with pytest.raises(error) as caught:
        _all(stream)
    assert caught.value.request_id == stream.request_id
    assert stream.closed
    assert transport._pool().size == 0


def test_a_reset_is_no_end(serve: Serve, transport: Transport) -> None:
    """Also where the end of the connection is the end of the answer."""
    server = serve(chunks(b"one", chunked=False, then=reset()))
    stream = transport.stream(_request(server))
    with pytest.raises(NetworkError, match="broke"):
        _all(stream)


def test_silence_has_a_limit(serve: Serve, transport: Transport) -> None:
    """Counted from the last byte, whatever it was."""

    def beat(peer: Peer, _request: Received) -> None:
        for _ in range(4):
            peer.stop.wait(0.1)
            peer.send(b"2\r\n:\n\r\n")
        peer.wait_closed()

    server = serve(chunks(then=beat))
    start = time.monotonic()
    stream = transport.stream(_request(server, idle_timeout=0.25))
    for _ in range(4):
        assert stream.read() == b":\n"
    with pytest.raises(RequestTimeoutError) as caught:
        stream.read()
    assert caught.value.phase == "idle"
    assert 0.6 < time.monotonic() - start < 0.8 * SLOW


def test_silence_before_the_head_counts(serve: Serve, transport: Transport) -> None:
    """A stream without a deadline must not wait for ever."""
    server = serve(silence)
    with pytest.raises(RequestTimeoutError, match=r"silent for 0\.1 s"):
        transport.stream(_request(server, idle_timeout=0.1))


def test_the_deadline_bounds_the_whole_stream(
    serve: Serve, transport: Transport
) -> None:
    """However alive it is."""
    server = serve(chunks(b"one", then=silence))
    stream = transport.stream(
        _request(server, deadline=Deadline.after(0.2), idle_timeout=9.0)
    )
    assert stream.read() == b"one"
    with pytest.raises(RequestTimeoutError) as caught:
        stream.read()
    assert caught.value.phase == "body"


# Whole answers


def test_a_stream_can_be_read_as_a_response(serve: Serve, transport: Transport) -> None:
    """For what turned out to be no stream."""
    server = serve(reply(200, b'{"a":1}', {"X-Request-Id": "r-1"}))
    response = transport.stream(_request(server)).response()
    assert (response.status, response.json()) == (200, {"a": 1})
    assert response.request_id == "r-1"
    stream = transport.stream(_request(server))
    with pytest.raises(ResponseTooLargeError):
        stream.response(3)
    assert stream.closed


def test_opening_a_stream_follows_the_table(serve: Serve) -> None:
    """Errors are raised at once, further attempts are made."""
    server = serve(in_turn(reply(503), chunks(b"one"), reply(503)))
    request = _request(server, headers={"Idempotency-Key": "k"})
    with Transport(random=lambda: 0.0) as transport:
        with transport.stream(request) as stream:
            assert (_all(stream), stream.attempts) == (b"one", 2)
        with pytest.raises(ServiceUnavailableError) as caught:
            transport.stream(request)
        assert caught.value.attempts == 4
        assert not transport._pool()._calls


def test_streams_end_with_the_transport(serve: Serve) -> None:
    """A reader wakes, one that is not read fails when it is."""
    server = serve(chunks(b"one", then=silence))
    transport = Transport()
    stream = transport.stream(_request(server))
    transport.close()
    with pytest.raises(ClientClosedError):
        stream.read()
    assert stream.closed
    stream.close()


def test_a_call_handle_ends_its_stream(serve: Serve, transport: Transport) -> None:
    """With the error it is given."""
    server = serve(chunks(b"one", then=silence))
    call = CallHandle()
    stream = transport.stream(_request(server), call=call)
    assert stream.read() == b"one"
    call.abort(ServiceUnavailableError("enough"))
    with pytest.raises(ServiceUnavailableError, match="enough"):
        stream.read()


def test_a_stream_shows_little(serve: Serve, transport: Transport) -> None:
    """Status and state."""
    server = serve(chunks(b"one"))
    with transport.stream(_request(server)) as stream:
        assert repr(stream) == "<RawStream 200 open>"
    assert repr(stream) == "<RawStream 200 closed>"


def test_tls_without_a_trusted_certificate_is_refused(
    serve: Serve, transport: Transport, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """At once, and not tried again."""
    server = serve(reply(), tls=tls[0])
    with pytest.raises(NetworkError, match="not trusted") as caught:
        transport.stream(_request(server))
    assert (caught.value.attempts, caught.value.retryable) == (1, False)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("reading", [False, True])
def test_a_forked_child_reads_nothing_of_a_stream(
    serve: Serve, transport: Transport, reading: bool
) -> None:
    """It would take away what its parent waits for, even while that reads."""
    go = threading.Event()

    def script(peer: Peer, _request: Received) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
        go.wait(5.0 * SLOW)
        peer.send(b"two")

    stream = transport.stream(_request(serve(script)))
    assert stream.read() == b"one"
    rest: list[bytes] = []
    reader = threading.Thread(target=lambda: rest.append(_all(stream)))
    if reading:
        reader.start()
        wait_until(lambda: stream._state._reading)
    pid = os.fork()
    if pid == 0:
        failed = True
        try:
            with pytest.raises(StreamClosedError, match="the process that opened"):
                stream.read()
            stream.close()
            failed = not stream.closed
        finally:
            os._exit(failed)
    assert os.waitpid(pid, 0)[1] == 0
    go.set()
    if not reading:
        reader.start()
    reader.join(5.0 * SLOW)
    assert rest == [b"two"]


def test_a_forked_child_may_close_a_stream_first(
    serve: Serve, transport: Transport
) -> None:
    """It only lets go of its own end of the connection."""
    with transport.stream(_request(serve(chunks(b"one", b"two")))) as stream:
        pid = os.fork()
        if pid == 0:
            stream.close()
            os._exit(not stream.closed)
        assert os.waitpid(pid, 0)[1] == 0
        assert _all(stream) == b"onetwo"
