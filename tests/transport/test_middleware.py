"""Middleware around one call: what it may do, and what it may not."""

from __future__ import annotations

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import evolve

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    ClientClosedError,
    ConfigurationError,
    InvocationCancelledError,
    NetworkError,
    RequestTimeoutError,
    ResponseTooLargeError,
    ServiceUnavailableError,
    StreamClosedError,
    ValidationError,
)
from ppio_agent.hooks import Hooks, hookimpl
from ppio_agent.testing import (
    FaultServer,
    chunks,
    cut,
    in_turn,
    reply,
    silence,
)
from ppio_agent.transport import (
    CallHandle,
    RawStream,
    Request,
    Response,
    Transport,
    TransportConfig,
)
from tests.support import SLOW, wait_until

Serve = Callable[..., FaultServer]
Next = Callable[[Request], Any]
Ways = Callable[..., Transport]


class Middleware:
    """A plug-in that is one function."""

    def __init__(self, run: Callable[[Next, Request], Any]) -> None:
        self.run = run

    @hookimpl
    def ppio_client_middleware(self, call_next: Next, request: Request) -> Any:
        return self.run(call_next, request)


@pytest.fixture
def through() -> Iterator[Ways]:
    """Make transports whose calls go through middleware."""
    made: list[Transport] = []

    def make(*runs: Callable[[Next, Request], Any], **config: Any) -> Transport:
        hooks = Hooks.load(map(Middleware, runs), entry_points=False)
        made.append(
            Transport(
                TransportConfig(**config), hooks=hooks.for_client(), random=lambda: 0.0
            )
        )
        return made[-1]

    yield make
    for transport in made:
        transport.close()


def _post(server: FaultServer, path: str = "/", **more: Any) -> Request:
    return Request(method="POST", url=server.url + path, body=b"{}", **more)


def _get(server: FaultServer, **more: Any) -> Request:
    return Request(method="GET", url=server.url, **more)


def _all(stream: RawStream) -> bytes:
    return b"".join(iter(stream.read, b""))


def _pass(call_next: Next, request: Request) -> Any:
    return call_next(request)


def _send(transport: Transport, request: Request) -> bytes:
    return transport.send(request).body


def _stream(transport: Transport, request: Request) -> bytes:
    with transport.stream(request) as stream:
        return _all(stream)


EITHER = pytest.mark.parametrize("ask", [_send, _stream])


# What it may do


def test_it_is_around_the_whole_call(serve: Serve, through: Ways) -> None:
    """All attempts are made inside it; the first one registered is outermost."""
    order: list[str] = []

    def named(name: str) -> Callable[[Next, Request], Any]:
        def run(call_next: Next, request: Request) -> Any:
            order.append(f"{name} in")
            answer = call_next(request)
            order.append(f"{name} out {answer.status} {answer.attempts}")
            return answer

        return run

    server = serve(in_turn(reply(503), reply(503), reply(200, b"ok")))
    transport = through(named("a"), named("b"))
    assert transport.send(_get(server)).body == b"ok"
    assert order == ["a in", "b in", "b out 200 3", "a out 200 3"]


def test_it_sees_streams_as_streams(serve: Serve, through: Ways) -> None:
    """And whole answers whole."""
    seen: list[Any] = []

    def look(call_next: Next, request: Request) -> Any:
        seen.append(call_next(request))
        return seen[-1]

    transport = through(look)
    server = serve(chunks(b"one", b"two"))
    with transport.stream(_post(server)) as stream:
        assert seen == [stream]
        assert _all(stream) == b"onetwo"
    assert transport._pool().idle == 1
    assert transport.send(_get(server)) == seen[1]
    assert seen[1].body == b"onetwo"


@EITHER
def test_it_may_change_the_request(
    serve: Serve, through: Ways, ask: Callable[..., bytes]
) -> None:
    """Headers, path and body; what it took in stays as it was."""

    def change(call_next: Next, request: Request) -> Any:
        headers = {**request.headers, "X-Trace": "t"}
        url = f"{request.url}?traced=1"
        return call_next(evolve(request, url=url, headers=headers, body=b"[1]"))

    server = serve(reply(200, b"ok"))
    request = _post(server, "/a", headers={"X-Own": "o"})
    assert ask(through(change), request) == b"ok"
    (got,) = server.requests
    assert (got.target, got.body) == ("/a?traced=1", b"[1]")
    assert (got.headers["x-own"], got.headers["x-trace"]) == ("o", "t")
    assert request.headers == {"X-Own": "o"}


@EITHER
@pytest.mark.parametrize(
    "answer",
    [
        lambda: Response.make(200, {"Content-Type": "text/plain"}, b"own"),
        lambda: RawStream.of(Response.make(200, {}), [b"ow", b"", b"n"]),
        lambda: RawStream.of(Response.make(200, {}, b"own")),
    ],
    ids=["whole", "pieces", "stream of a whole"],
)
def test_it_may_answer_itself(
    serve: Serve, through: Ways, ask: Callable[..., bytes], answer: Callable[[], Any]
) -> None:
    """In either form, whatever was asked for; nothing is sent."""
    server = serve(reply(200, b"peer"))
    assert ask(through(lambda *_: answer()), _post(server)) == b"own"
    assert server.requests == []


def test_its_own_answer_is_like_the_transports(serve: Serve, through: Ways) -> None:
    """It says what was asked, and that nothing was sent."""
    server = serve(reply())
    headers = {"X-Request-Id": "r-1", "Content-Type": "application/json"}
    transport = through(lambda *_: Response.make(201, headers, b'{"a": 1}'))
    answer = transport.send(_post(server, "/x"))
    assert (answer.status, answer.json()) == (201, {"a": 1})
    assert (answer.request_id, answer.url) == ("r-1", f"{server.url}/x")
    assert answer.attempts == 0
    assert answer.headers["content-type"] == "application/json"


@EITHER
@pytest.mark.parametrize("own", [True, False])
def test_a_failures_answer_is_the_error_it_stands_for(
    serve: Serve, through: Ways, ask: Callable[..., bytes], own: bool
) -> None:
    """Whether it made it, or asked the transport not to raise."""

    def run(call_next: Next, request: Request) -> Any:
        if own:
            return Response.make(503, {}, b'{"code": "busy", "message": "own words"}')
        return call_next(evolve(request, raise_for_status=False))

    server = serve(reply(503, b'{"code": "busy", "message": "own words"}'))
    transport = through(run)
    with pytest.raises(ServiceUnavailableError, match="own words") as caught:
        ask(transport, _post(server))
    assert caught.value.method == "POST"
    assert transport._pool()._calls == set()
    quiet = _post(server, raise_for_status=False)
    assert ask(transport, quiet).startswith(b'{"code"')
    assert ask(transport, _post(server, ok_statuses={503})).startswith(b'{"code"')


def test_it_may_call_again(serve: Serve, through: Ways) -> None:
    """After an error, an answer, or a stream that it closed or read."""

    def thrice(call_next: Next, request: Request) -> Any:
        try:
            call_next(request)
        except NetworkError:
            first = call_next(request)
        assert first.read().startswith(b"one")
        first.close()
        second = call_next(request)
        assert second.response().body == b"onetwo"
        return call_next(request)

    server = serve(in_turn(cut(), chunks(b"one", b"two")))
    with through(thrice).stream(_post(server)) as stream:
        assert _all(stream) == b"onetwo"
    assert len(server.requests) == 4


def test_it_may_change_a_stream_as_it_passes(serve: Serve, through: Ways) -> None:
    """Piece by piece; the stream below is closed with the one above."""

    def loud(call_next: Next, request: Request) -> Any:
        below = call_next(request)
        return RawStream.of(below.head, map(bytes.upper, iter(below.read, b"")))

    server = serve(chunks(b"one", then=silence))
    transport = through(loud, loud)
    with transport.stream(_post(server)) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.read() == b"ONE"
        assert len(transport._pool()._calls) == 1
    wait_until(lambda: transport._pool().size == 0)
    assert transport._pool()._calls == set()
    with pytest.raises(StreamClosedError):
        stream.read()


def test_a_changed_stream_ends_as_the_one_below(serve: Serve, through: Ways) -> None:
    """Its connection is kept, and its errors are those of the network."""

    def wrap(call_next: Next, request: Request) -> Any:
        below = call_next(request)
        return RawStream.of(below.head, iter(below.read, b""))

    transport = through(wrap)
    server = serve(in_turn(chunks(b"one"), chunks(b"two", then=lambda p, _: p.close())))
    with transport.stream(_post(server)) as stream:
        assert _all(stream) == b"one"
        assert stream.closed
    assert (transport._pool().idle, transport._pool()._calls) == (1, set())
    with (
        transport.stream(_post(server)) as stream,
        pytest.raises(NetworkError, match="broke") as caught,
    ):
        _all(stream)
    assert caught.value.attempts == 1


# What ends it


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_reader_of_a_changed_stream_wakes_too(
    serve: Serve, through: Ways, wrapped: bool
) -> None:
    """Whoever closes it, ends the call or closes the transport."""

    def wrap(call_next: Next, request: Request) -> Any:
        below = call_next(request)
        if not wrapped:
            return below
        return RawStream.of(below.head, iter(below.read, b""))

    def ended(how: Callable[[Transport, RawStream, CallHandle], object]) -> Exception:
        transport, call = through(wrap), CallHandle()
        stream = transport.stream(_post(server), call=call)
        assert stream.read() == b"one"
        found: list[Exception] = []

        def read() -> None:
            try:
                stream.read()
            except Exception as error:
                found.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        wait_until(lambda: stream._state._reading)
        how(transport, stream, call)
        reader.join(5.0 * SLOW)
        assert stream.closed
        wait_until(lambda: transport._pool().size == 0)
        return found[0]

    server = serve(chunks(b"one", then=silence))
    assert isinstance(ended(lambda _t, s, _c: s.close()), StreamClosedError)
    assert isinstance(ended(lambda t, _s, _c: t.close()), ClientClosedError)
    stop = InvocationCancelledError("enough")
    assert isinstance(ended(lambda _t, _s, c: c.abort(stop)), type(stop))


@EITHER
def test_what_it_raises_is_what_the_call_raises(
    serve: Serve, through: Ways, ask: Callable[..., bytes]
) -> None:
    """Unchanged; and the call is over, its connection free."""
    mine = RuntimeError("mine")

    def fail(call_next: Next, request: Request) -> Any:
        call_next(request)
        raise mine

    server = serve(chunks(b"one", then=silence) if ask is _stream else reply())
    transport = through(_pass, fail)
    with pytest.raises(RuntimeError) as caught:
        ask(transport, _post(server))
    assert caught.value is mine
    assert transport._pool()._calls == set()
    wait_until(lambda: transport._pool().size == transport._pool().idle)


def test_what_its_pieces_raise_is_what_the_reader_gets(
    serve: Serve, through: Ways
) -> None:
    """And the stream below is closed."""

    def spoil(call_next: Next, request: Request) -> Any:
        below = call_next(request)

        def pieces() -> Iterator[bytes]:
            yield below.read()
            raise KeyError("mine")

        return RawStream.of(below.head, pieces())

    transport = through(spoil)
    stream = transport.stream(_post(serve(chunks(b"one", then=silence))))
    assert stream.read() == b"one"
    with pytest.raises(KeyError, match="mine"):
        stream.read()
    assert stream.closed
    wait_until(lambda: transport._pool().size == 0)


def test_a_stream_that_it_drops_is_closed(serve: Serve, through: Ways) -> None:
    """At once if its answer is whole, else with the stream that it gave instead."""
    below: list[RawStream] = []

    def swap(call_next: Next, request: Request) -> Any:
        below.append(call_next(request))
        return Response.make(200, {}, b"own")

    def swap_for_stream(call_next: Next, request: Request) -> Any:
        below.append(call_next(request))
        return RawStream.of(Response.make(200, {}), [b"own"])

    server = serve(chunks(b"one", then=silence))
    for run in (swap, swap_for_stream):
        transport = through(run)
        with transport.stream(_post(server)) as stream:
            assert below[-1].closed == (run is swap)
            assert _all(stream) == b"own"
        assert below[-1].closed
        assert transport._pool().size == 0


def test_an_abandoned_stream_closes_itself(serve: Serve, through: Ways) -> None:
    """With those below it."""

    def wrap(call_next: Next, request: Request) -> Any:
        below = call_next(request)
        return RawStream.of(below.head, iter(below.read, b""))

    transport = through(wrap)
    stream = transport.stream(_post(serve(chunks(b"one", then=silence))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del stream
        gc.collect()
    assert {w.category for w in caught} == {ResourceWarning}
    wait_until(lambda: transport._pool().size == 0)
    assert transport._pool()._calls == set()


def test_an_aborted_call_gives_no_answer(serve: Serve, through: Ways) -> None:
    """Also if the middleware has one, and the network is out of it."""
    call, stop = CallHandle(), InvocationCancelledError("enough")

    def late(*_: Any) -> Response:
        call.abort(stop)
        return Response.make(200)

    with pytest.raises(InvocationCancelledError, match="enough"):
        through(late).send(_post(serve(reply())), call=call)


def test_its_time_counts(serve: Serve, through: Ways) -> None:
    """The deadline is that of the whole call."""

    def slow(call_next: Next, request: Request) -> Any:
        threading.Event().wait(0.15)
        return call_next(request)

    start = time.monotonic()
    with pytest.raises(NetworkError):
        through(slow).send(_post(serve(silence), deadline=Deadline.after(0.3)))
    assert time.monotonic() - start < 0.3 + 0.3 * SLOW


def test_its_stream_has_the_limit_of_the_transport(serve: Serve, through: Ways) -> None:
    """An answer that is collected stays small."""
    endless = RawStream.of(Response.make(200), iter(lambda: b"x" * 600, b""))
    transport = through(lambda *_: endless, max_response_bytes=1000)
    with (
        transport.stream(_post(serve(reply()))) as stream,
        pytest.raises(ResponseTooLargeError, match="1000 bytes"),
    ):
        stream.response()


# What it may not do


@EITHER
@pytest.mark.parametrize("given", [None, b"bytes", "text", {"status": 200}])
def test_it_has_to_give_an_answer(
    serve: Serve, through: Ways, ask: Callable[..., bytes], given: object
) -> None:
    """The error names the plug-in, and what may be returned."""
    server = serve(reply())
    with pytest.raises(ConfigurationError, match=r"RawStream\.of") as caught:
        ask(through(_pass, lambda *_: given), _post(server))
    assert type(given).__name__ in str(caught.value)
    assert server.requests == []


def test_it_has_to_pass_on_a_request(serve: Serve, through: Ways) -> None:
    """And one that can be sent."""
    server = serve(reply())
    wrong = through(lambda call_next, _: call_next(None))
    with pytest.raises(ConfigurationError, match="NoneType instead of a request"):
        wrong.send(_post(server))
    wrong = through(lambda call_next, r: call_next(evolve(r, url="ftp://x")))
    with pytest.raises(ValidationError):
        wrong.send(_post(server))


def test_its_streams_are_of_bytes(serve: Serve, through: Ways) -> None:
    """Text has no encoding yet."""
    answer = RawStream.of(Response.make(200), ["text"])  # type: ignore[list-item]
    transport = through(lambda *_: answer)
    with (
        transport.stream(_post(serve(reply()))) as stream,
        pytest.raises(ConfigurationError, match="of bytes, not of str"),
    ):
        stream.read()


@pytest.mark.parametrize("name", ["Authorization", "x-api-key", "X-Access-Token"])
def test_it_cannot_say_who_asks(serve: Serve, through: Ways, name: str) -> None:
    """By no header; but one that the caller set may pass, or be taken away."""

    def add(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, headers={**request.headers, name: "mine"}))

    def drop(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, headers={"X-Seen": "1"}))

    server = serve(reply())
    with pytest.raises(ConfigurationError, match=f"{name.lower()}.*ppio_client_auth"):
        through(add).send(_post(server))
    with pytest.raises(ConfigurationError, match=name.lower()):
        through(add).send(_post(server, headers={name: "callers"}))
    through(add).send(_post(server, headers={name: "mine"}))
    assert server.requests[-1].headers[name.lower()] == "mine"
    through(drop).send(_post(server, headers={name: "callers"}))
    assert name.lower() not in server.requests[-1].headers


def test_it_cannot_say_where_a_message_ends(serve: Serve, through: Ways) -> None:
    """Hop-by-hop headers are the transport's."""
    headers = {"Transfer-Encoding": "chunked"}
    wrong = through(lambda call_next, r: call_next(evolve(r, headers=headers)))
    with pytest.raises(ValidationError, match="transfer-encoding"):
        wrong.send(_post(serve(reply())))


@EITHER
def test_what_proves_who_asks_stays_with_its_origin(
    serve: Serve, through: Ways, ask: Callable[..., bytes]
) -> None:
    """A changed origin gets neither auth nor such headers of the caller."""
    ours, other = serve(reply(200, b"ours")), serve(reply(200, b"other"))
    sent = {"Authorization": "Bearer callers", "X-Team-Token": "t", "X-Own": "o"}

    def away(call_next: Next, request: Request) -> Any:
        headers = {k.lower(): v for k, v in request.headers.items()}
        headers["X-Gateway-Token"] = "g"
        return call_next(evolve(request, url=f"{other.url}/x", headers=headers))

    def back(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, url=f"{ours.url}/y"))

    request = _post(ours, headers=sent, auth=lambda _r, _again: {"X-API-KEY": "key"})
    assert ask(through(away), request) == b"other"
    (got,) = other.requests
    assert (got.headers["x-own"], got.headers["x-gateway-token"]) == ("o", "g")
    assert not {"x-api-key", "authorization", "x-team-token"} & got.headers.keys()
    assert ask(through(away, back), request) == b"ours"
    assert "x-api-key" not in ours.requests[-1].headers
    assert ask(through(_pass), request) == b"ours"
    assert ours.requests[-1].headers["x-api-key"] == "key"


def test_it_may_have_an_auth_of_its_own(serve: Serve, through: Ways) -> None:
    """For another origin, say: asked afresh for each attempt, like any."""
    asked: list[bool] = []

    def own(_request: Request, again: bool) -> dict[str, str]:
        asked.append(again)
        return {"Authorization": f"Bearer {len(asked)}"}

    def away(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, url=other.url, auth=own))

    other = serve(in_turn(reply(401), reply(200, b"other")))
    request = _post(serve(reply()), auth=lambda *_: {"X-API-KEY": "key"})
    assert through(away).send(request).body == b"other"
    tokens = [got.headers["authorization"] for got in other.requests]
    assert tokens[0] == "Bearer 1"
    assert asked[:2] == [False, True]
    assert all("x-api-key" not in got.headers for got in other.requests)


@EITHER
def test_its_streams_end_with_the_deadline(
    serve: Serve, through: Ways, ask: Callable[..., bytes]
) -> None:
    """What it gives later does not count, though nothing can interrupt it."""
    deadline = Deadline.after(0.02)

    def pieces() -> Iterator[bytes]:
        yield b"one"
        wait_until(lambda: deadline.expired)
        yield b"two"

    def slow(*_: Any) -> RawStream:
        return RawStream.of(Response.make(200), pieces())

    with pytest.raises(RequestTimeoutError) as caught:
        ask(through(slow), _post(serve(reply()), deadline=deadline))
    assert caught.value.phase == "body"


@EITHER
def test_configured_secrets_stay_with_their_origin(
    serve: Serve, through: Ways, ask: Callable[..., bytes]
) -> None:
    """Another one is sent only the headers that look harmless."""
    ours, other = serve(reply()), serve(reply())

    def away(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, url=f"{other.url}/x"))

    headers = {"X-Internal-Token": "internal", "X-Team": "red"}
    ask(through(away, headers=headers), _post(ours))
    ask(through(_pass, headers=headers), _post(ours))
    (got,) = other.requests
    assert "x-internal-token" not in got.headers
    assert got.headers["x-team"] == "red"
    assert ours.requests[0].headers["x-internal-token"] == "internal"


def test_it_cannot_change_headers_by_the_way(serve: Serve, through: Ways) -> None:
    """Neither those that it was given, nor those it passed on."""
    server = serve(reply())
    mine: dict[str, str] = {}

    def given(call_next: Next, request: Request) -> Any:
        request.headers["Authorization"] = "mine"
        return call_next(request)

    def passed_on(call_next: Next, request: Request) -> Any:
        return call_next(evolve(request, headers=mine))

    def later(call_next: Next, request: Request) -> Any:
        mine["Authorization"] = "mine"
        return call_next(request)

    with pytest.raises(TypeError, match="item assignment"):
        through(given).send(_post(server, headers={"X-A": "a"}))
    with pytest.raises(TypeError, match="item assignment"):
        through(_pass, passed_on, given).send(_post(server))
    through(passed_on, later).send(_post(server))
    (got,) = server.requests
    assert "authorization" not in got.headers
