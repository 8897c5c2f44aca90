"""Whole calls against a server that misbehaves: deadlines, retries, limits, closing."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

import pytest

from ppio_agent._util.backoff import Backoff
from ppio_agent._util.clock import Deadline
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    InternalServerError,
    InvocationCancelledError,
    NetworkError,
    PPIOAgentError,
    ProtocolError,
    RequestTimeoutError,
    RequestTooLargeError,
    ResponseTooLargeError,
    ServiceUnavailableError,
    SessionNotFoundError,
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.hooks import ClientHooks
from ppio_agent.testing import (
    FaultServer,
    Peer,
    Received,
    Script,
    chunks,
    cut,
    drip,
    in_turn,
    reply,
    reset,
    silence,
)
from ppio_agent.transport import (
    NO_RETRY,
    Auth,
    CallHandle,
    Request,
    Response,
    RetryPolicy,
    Transport,
    TransportConfig,
)
from ppio_agent.transport.sharing import shared_pools
from ppio_agent.wire.signing import sign
from tests.support import SLOW, wait_until
from tests.support_net import deaf_address

Serve = Callable[..., FaultServer]

KEY = {"Idempotency-Key": "k-1"}
QUICK = RetryPolicy(backoff=Backoff(base=0.001, cap=0.001))


def _get(server: FaultServer, path: str = "/", **more: object) -> Request:
    return Request(method="GET", url=server.url + path, **more)


def _post(server: FaultServer, path: str = "/", **more: object) -> Request:
    more.setdefault("body", b'{"prompt":"hi"}')
    return Request(method="POST", url=server.url + path, **more)


def _timed(call: Callable[[], object]) -> tuple[float, object]:
    """Return how long `call` took and what it gave or raised."""
    start = time.monotonic()
    try:
        found = call()
    except PPIOAgentError as error:
        found = error
    return time.monotonic() - start, found


# What is sent


def test_a_call_sends_what_it_says(serve: Serve) -> None:
    """Method, target, headers and body, and the headers of the transport."""
    server = serve(reply(200, b'{"ok":true}', {"X-Request-Id": "peer-1"}))
    config = TransportConfig(headers={"X-Team": "red", "X-Both": "config"})
    hooks = ClientHooks(headers=lambda _: {"X-Hook": "h"})
    with Transport(config, hooks=hooks) as transport:
        response = transport.send(
            _post(server, "/a?b=c", headers={"x-both": "request", "X-Request-Id": "r"})
        )
    (got,) = server.requests
    assert (got.method, got.target, got.body) == ("POST", "/a?b=c", b'{"prompt":"hi"}')
    assert got.headers["host"] == f"127.0.0.1:{server.port}"
    assert got.headers["content-length"] == "15"
    assert got.headers["user-agent"].startswith("ppio-agent/")
    assert got.headers["accept-encoding"] == "gzip, deflate"
    assert (got.headers["x-team"], got.headers["x-both"]) == ("red", "request")
    assert (got.headers["x-hook"], got.headers["x-request-id"]) == ("h", "r")
    assert "x-ppio-attempt" not in got.headers
    assert (response.json(), response.request_id) == ({"ok": True}, "peer-1")


@pytest.mark.parametrize(("method", "length"), [("GET", None), ("POST", "0")])
def test_a_call_without_body_says_so(
    serve: Serve, transport: Transport, method: str, length: str | None
) -> None:
    """A POST has a length of 0, a GET none."""
    server = serve(reply())
    transport.send(Request(method=method, url=server.url))
    assert server.requests[0].headers.get("content-length") == length


def test_connections_are_kept(serve: Serve, transport: Transport) -> None:
    """One after another over one connection."""
    server = serve(reply(200, b"x"))
    for _ in range(5):
        transport.send(_post(server))
    assert server.connections == 1


@pytest.mark.parametrize("script", [
    reply(200, b"x", {"Connection": "close"}),
    cut(b"HTTP/1.1 200 OK\r\n\r\nx"),
    cut(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"),
    reply(200, b"", {"X": "1"}),
])  # fmt: skip
def test_answers_end_in_many_ways(
    serve: Serve, transport: Transport, script: Callable[..., None]
) -> None:
    """By length, by the end of the connection, or at once."""
    server = serve(script)
    assert transport.send(_get(server)).body in {b"x", b""}
    assert transport.send(_get(server)).status == 200


def test_interim_answers_are_passed_over(serve: Serve, transport: Transport) -> None:
    """However they are cut."""
    data = (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nA: b\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    server = serve(drip(data, every=0.0))
    assert transport.send(_get(server)).body == b"ok"


def test_a_compressed_answer_is_decompressed(
    serve: Serve, transport: Transport
) -> None:
    """And the connection kept."""
    server = serve(reply(200, b"x" * 300_000, zipped=True))
    assert transport.send(_get(server)).body == b"x" * 300_000
    assert transport.send(_get(server)).body == b"x" * 300_000
    assert server.connections == 1


def test_headers_of_the_connection_are_the_transports(
    serve: Serve, transport: Transport
) -> None:
    """Nobody else says where a message ends; nothing is sent."""
    server = serve(reply())
    with pytest.raises(ValidationError, match="transfer-encoding"):
        transport.send(_get(server, headers={"Transfer-Encoding": "chunked"}))
    with pytest.raises(ValidationError, match="line break"):
        transport.send(_get(server, headers={"X-A": "b\r\nX-C: d"}))
    assert server.requests == []


def test_a_plug_in_cannot_replace_who_asks(serve: Serve) -> None:
    """Headers of authentication are not its to add."""
    server = serve(reply())
    hook = lambda _: {"authorization": "Bearer mine"}  # noqa: E731
    with (
        Transport(hooks=ClientHooks(headers=hook)) as transport,
        pytest.raises(ConfigurationError, match="authorization"),
    ):
        transport.send(_get(server))
    assert server.requests == []


def test_no_cookie_is_kept(serve: Serve, transport: Transport) -> None:
    """Calls have no memory of one another."""
    server = serve(reply(200, b"", {"Set-Cookie": "session=1"}))
    transport.send(_get(server))
    transport.send(_get(server))
    assert "cookie" not in server.requests[1].headers


@pytest.mark.parametrize(
    "url", ["/relative", "ftp://h/", "http://user:pw@h/", "http://[::1/", "http://:80/"]
)
def test_a_bad_url_is_refused(transport: Transport, url: str) -> None:
    """Before anything is sent, and without showing a password."""
    with pytest.raises(ValidationError) as caught:
        transport.send(Request(method="GET", url=url))
    assert "pw" not in f"{caught.value} {caught.value.url}"


# Acceptance 4: one deadline


@pytest.mark.parametrize("what", [
    "drips header bytes", "drips body bytes", "never answers", "is busy for ever",
    "is busy and says when",
])  # fmt: skip
@pytest.mark.parametrize("mode", ["send", "stream"])
def test_a_deadline_holds(serve: Serve, what: str, mode: str) -> None:
    """`timeout=1` ends within 0.1 s more, whatever the server does."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
    scripts = {
        "drips header bytes": drip(head * 9, every=0.2),
        "drips body bytes": lambda p, r: (p.send(head), drip(b"x" * 99, every=0.1)(p, r)),
        "never answers": silence,
        "is busy for ever": reply(503),
        "is busy and says when": reply(503, b"", {"Retry-After": "0.6"}),
    }  # fmt: skip
    server = serve(scripts[what])
    request = _get(server, deadline=Deadline.after(1.0))
    # Pauses after which enough time is left for the attempt that follows.
    with Transport(random=lambda: 0.9) as transport:

        def call() -> None:
            if mode == "send":
                transport.send(request)
                return
            with transport.stream(request) as stream:
                while stream.read():
                    pass

        elapsed, error = _timed(call)
    assert elapsed < 1.1 * SLOW
    if "busy" in what:
        assert isinstance(error, ServiceUnavailableError)
    else:
        assert isinstance(error, RequestTimeoutError)
        assert elapsed >= 1.0
        assert error.phase == ("body" if what == "drips body bytes" else "response")


@pytest.mark.parametrize(("limit", "attempts"), [(None, 1), (0.2, 2)])
def test_connecting_has_a_limit(limit: float | None, attempts: int) -> None:
    """That of the configuration for each attempt, and the deadline for all."""
    config = TransportConfig(connect_timeout=limit)
    with deaf_address() as (host, port), Transport(config, random=lambda: 0.3) as t:
        url = f"http://{host}:{port}"
        request = Request(method="POST", url=url, deadline=Deadline.after(0.6))
        elapsed, error = _timed(lambda: t.send(request))
        assert t._pool().size == 0
    assert isinstance(error, RequestTimeoutError)
    assert (error.phase, error.attempts) == ("connect", attempts)
    assert elapsed < 0.7 * SLOW


def test_a_deadline_that_has_passed_sends_nothing(
    serve: Serve, transport: Transport
) -> None:
    """Neither on a kept connection nor on a new one."""
    server = serve(reply())
    late = Deadline.after(-1.0)
    with pytest.raises(RequestTimeoutError):
        transport.send(_get(server, deadline=late))
    transport.send(_get(server))
    with pytest.raises(RequestTimeoutError):
        transport.send(_get(server, deadline=late))
    assert len(server.requests) == 1


# Acceptance 5: Retry-After


def _dated(seconds: float) -> dict[str, str]:
    now = time.time() + 86400  # another clock than ours
    return {
        "Date": formatdate(now, usegmt=True),
        "Retry-After": formatdate(now + seconds, usegmt=True),
    }


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"Retry-After": "1"}, 1.0, 1.2),
        (_dated(1), 1.0, 1.2),
        ({"Retry-After": "-5"}, 0.1, 0.3),
        ({"Retry-After": "soon"}, 0.1, 0.3),
    ],
    ids=["seconds", "date", "negative", "unreadable"],
)
def test_retry_after_is_waited_for(
    serve: Serve, headers: dict[str, str], least: float, most: float
) -> None:
    """As long as it says, and by the backoff where it says nothing of use."""
    server = serve(in_turn(reply(503, b"", headers), reply(200, b"ok")))
    with Transport(random=lambda: 0.3) as transport:  # a backoff of 0.15 s
        elapsed, response = _timed(lambda: transport.send(_get(server)))
    assert least <= elapsed < most * SLOW
    assert isinstance(response, Response)
    assert (response.body, response.attempts) == (b"ok", 2)
    assert server.requests[1].headers["x-ppio-attempt"] == "2"
    first, second = server.requests
    assert first.headers["x-request-id"] == second.headers["x-request-id"]


def test_a_long_retry_after_is_the_callers_to_wait_for(
    serve: Serve, transport: Transport
) -> None:
    """At once, with the seconds on the error."""
    server = serve(reply(503, b"", {"Retry-After": "9999"}))
    elapsed, error = _timed(lambda: transport.send(_get(server)))
    assert isinstance(error, ServiceUnavailableError)
    assert error.retry_after == 9999
    assert elapsed < 0.3 * SLOW
    assert len(server.requests) == 1


# Acceptance 6: what is sent twice


def test_a_kept_connection_that_was_closed_is_replaced(
    serve: Serve, transport: Transport
) -> None:
    """The second POST finds it closed after it was sent: the same key, once more."""
    ran: list[str] = []

    def run(peer: Peer, request: Received) -> None:
        ran.append(request.headers["idempotency-key"])
        reply(200, b"done")(peer, request)

    server = serve(in_turn(reply(), cut(), run))
    transport.send(_post(server, headers=KEY))
    response = transport.send(_post(server, headers=KEY))
    assert (response.body, response.attempts, ran) == (b"done", 1, ["k-1"])
    assert server.connections == 2
    assert "x-ppio-attempt" not in server.requests[2].headers


def test_a_post_without_key_is_not_sent_again_over_a_closed_connection(
    serve: Serve, transport: Transport
) -> None:
    """Nobody can say whether it ran."""
    server = serve(in_turn(reply(), cut(), reply()))
    transport.send(_post(server))
    with pytest.raises(NetworkError, match="without an answer"):
        transport.send(_post(server))
    assert len(server.requests) == 2


def test_a_connection_closed_while_idle_is_not_used(
    serve: Serve, transport: Transport
) -> None:
    """It is looked at before, so even a POST without key gets through."""
    server = serve(reply(then=cut()))
    for _ in range(3):
        transport.send(_post(server))
        wait_until(lambda: not server._peers)
    assert len(server.requests) == 3


@pytest.mark.parametrize("script", [cut(), reset()])
def test_a_fresh_connection_that_breaks_is_not_sent_again(
    serve: Serve, transport: Transport, script: Callable[..., None]
) -> None:
    """Not to a bare agent; it may have run."""
    server = serve(script)
    with pytest.raises(NetworkError):
        transport.send(_post(server, headers=KEY))
    assert len(server.requests) == 1


def test_a_run_once_peer_is_asked_again(serve: Serve, transport: Transport) -> None:
    """Its earlier answer said that it runs a key once; each sandbox is a peer."""
    ping = reply(200, b"", {"X-PPIO-Agent": "1.0", "Connection": "close"})
    server = serve(in_turn(ping, cut(), reply(200, b"done"), cut()))
    mine = {**KEY, "PPIO-Sandbox-Id": "a"}
    transport.send(_get(server, headers={"PPIO-Sandbox-Id": "a"}))
    assert transport.is_run_once(server.url, "a")
    assert not transport.is_run_once(server.url, "b")
    response = transport.send(_post(server, headers=mine))
    assert (response.body, response.attempts) == (b"done", 2)
    with pytest.raises(NetworkError):
        transport.send(_post(server, headers={**KEY, "PPIO-Sandbox-Id": "b"}))


@pytest.mark.parametrize(
    ("first", "expected"),
    [(cut(), True), (reply(429, b"", {"Retry-After": "0.001"}), False)],
)
def test_a_sandbox_that_ends_between_two_attempts(
    serve: Serve, first: Script, expected: bool
) -> None:
    """The handle tells whether the agent may have run."""
    body = b'{"sandboxId": "s-1", "message": "not found", "code": 502}'
    server = serve(in_turn(first, reply(502, body)))
    handle = CallHandle()
    with (
        Transport(random=lambda: 0.0) as transport,
        pytest.raises(SessionNotFoundError),
    ):
        transport.send(_post(server, headers=KEY, run_once=True), call=handle)
    assert handle.may_have_run is expected


def test_a_refused_connection_is_tried_again(serve: Serve) -> None:
    """Nothing was sent, so any method may."""
    server = serve(reply())
    server.close()
    with (
        Transport(random=lambda: 0.0) as transport,
        pytest.raises(NetworkError, match="connection refused") as caught,
    ):
        transport.send(_post(server))
    assert caught.value.attempts == 4
    assert [past.error for past in caught.value.history] == [NetworkError] * 3
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_a_cut_answer_is_asked_for_again(serve: Serve) -> None:
    """Only by methods that may; the last error counts."""
    half = cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    server = serve(in_turn(half, reply(200, b"whole"), half))
    with Transport(random=lambda: 0.0) as transport:
        assert transport.send(_get(server)).body == b"whole"
        with pytest.raises(NetworkError, match="5 bytes too early"):
            transport.send(_post(server, headers=KEY))
    assert len(server.requests) == 3


def test_no_retry_means_one_attempt(serve: Serve, transport: Transport) -> None:
    """The request's policy wins over the transport's."""
    server = serve(reply(503))
    with pytest.raises(ServiceUnavailableError):
        transport.send(_get(server, retry=NO_RETRY))
    assert len(server.requests) == 1


def test_the_edges_word_that_nothing_ran_allows_another_attempt(serve: Serve) -> None:
    """A 502 with a port: the agent was not reached."""
    body = json.dumps({"sandboxId": "s-1", "port": 8080, "message": "no listener"})
    server = serve(reply(502, body.encode()))
    with (
        Transport(random=lambda: 0.0) as transport,
        pytest.raises(AgentUnreachableError) as caught,
    ):
        transport.send(_post(server, headers=KEY))
    assert caught.value.attempts == 4
    assert (caught.value.sandbox_id, caught.value.port) == ("s-1", 8080)


@pytest.mark.parametrize("how", [{"exitCode": 7}, {"exitCode": None, "signal": 9}])
def test_an_agent_that_ended_is_not_asked_again(
    serve: Serve, transport: Transport, how: dict[str, object]
) -> None:
    """Nobody starts it anew in its sandbox."""
    body = json.dumps({"sandboxId": "s-1", "port": 8080, "message": "m", **how})
    server = serve(reply(502, body.encode()))
    with pytest.raises(AgentUnreachableError, match="has ended"):
        transport.send(_post(server, headers=KEY))
    assert len(server.requests) == 1


def test_an_envelope_is_the_end_of_a_run(serve: Serve, transport: Transport) -> None:
    """Whatever the status, the agent ran."""
    body = b'{"result":null,"status":"error","error":"boom","metadata":{}}'
    server = serve(reply(503, body))
    with pytest.raises(ServiceUnavailableError, match="boom"):
        transport.send(_get(server))
    assert len(server.requests) == 1


# Answers that are no success


def test_a_failure_may_be_asked_for(serve: Serve, transport: Transport) -> None:
    """Statuses named in the request, or any after the attempts are over."""
    server = serve(reply(404, b'{"message":"gone"}'))
    assert transport.send(_get(server, ok_statuses={404})).status == 404
    request = _get(server, raise_for_status=False, kind="template", subject="t-1")
    response = transport.send(request)
    assert response.json() == {"message": "gone"}
    error = transport.error_for(request, response)
    assert isinstance(error, TemplateNotFoundError)
    assert error.message == "template 't-1' was not found: gone"
    with transport.stream(request) as stream:
        assert (stream.status, stream.read(), stream.read()) == (
            404, b'{"message":"gone"}', b"",
        )  # fmt: skip
    with transport.stream(request) as stream:
        assert stream.response() == response or stream.closed


def test_errors_say_what_was_asked(serve: Serve) -> None:
    """Method, URL without secrets, id, attempts and what came before."""
    server = serve(reply(500, b"", {"X-Request-Id": "peer-9"}))
    with (
        Transport(random=lambda: 0.0) as transport,
        pytest.raises(InternalServerError) as caught,
    ):
        transport.send(_get(server, "/x?token=abc"))
    error = caught.value
    assert (error.method, error.url) == ("GET", f"{server.url}/x?token=***")
    assert (error.request_id, error.attempts) == ("peer-9", 4)
    assert [(p.status, p.delay) for p in error.history] == [(500, 0.0)] * 3


def test_an_answer_before_the_body_was_read_is_understood(
    serve: Serve, transport: Transport
) -> None:
    """A server may refuse a large body and close."""

    def refuse(peer: Peer, request: Received) -> None:
        reply(413, b'{"message":"too much","limit":5}')(peer, request)
        peer.close()

    server = serve(refuse)
    with pytest.raises(RequestTooLargeError) as caught:
        transport.send(_post(server, body=b"x" * 1000))
    assert caught.value.limit == 5


def test_a_large_body_is_sent_whole(serve: Serve, transport: Transport) -> None:
    """In as many steps as it takes."""
    server = serve(reply())
    transport.send(_post(server, body=b"x" * 3_000_000))
    assert len(server.requests[0].body) == 3_000_000


@pytest.mark.parametrize("zipped", [False, True])
def test_an_answer_has_a_limit(serve: Serve, zipped: bool) -> None:
    """After decompression; the connection is dropped."""
    server = serve(reply(200, b"x" * 2_000_000, zipped=zipped))
    with Transport(TransportConfig(max_response_bytes=1_000_000)) as transport:
        with pytest.raises(ResponseTooLargeError, match="1000000"):
            transport.send(_get(server))
        assert transport._pool().size == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize("data", [
    b"SSH-2.0-x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 101,
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nxyz",
])  # fmt: skip
def test_a_malformed_answer_is_a_protocol_error(
    serve: Serve, transport: Transport, data: bytes
) -> None:
    """Not asked for again, and its connection not used again."""
    server = serve(lambda peer, _: peer.send(data))
    with pytest.raises(ProtocolError):
        transport.send(_get(server))
    assert (len(server.requests), transport._pool().size) == (1, 0)


def test_an_answer_that_is_not_json_says_what_it_is(
    serve: Serve, transport: Transport
) -> None:
    """Status, content type and how it starts."""
    server = serve(reply(200, b"<html>hello", {"Content-Type": "text/html"}))
    with pytest.raises(ProtocolError, match="200, text/html, it starts with '<html>h"):
        transport.send(_get(server)).json()


# Redirects and authentication


def test_redirects_stay_with_the_origin(serve: Serve, transport: Transport) -> None:
    """307 and 308 keep method and body; the attempts are not counted."""
    server = serve(in_turn(
        reply(307, b"", {"Location": "/b"}),
        reply(308, b"", {"Location": "c?d=e"}),
        reply(200, b"here"),
    ))  # fmt: skip
    response = transport.send(_post(server, "/a"))
    assert (response.body, response.attempts) == (b"here", 1)
    assert [r.target for r in server.requests] == ["/a", "/b", "/c?d=e"]
    assert {r.body for r in server.requests} == {b'{"prompt":"hi"}'}


@pytest.mark.parametrize(
    ("status", "location", "sent"),
    [
        (307, "http://127.0.0.1:1/elsewhere", 1),
        (307, "http://user:pw@h/", 1),
        (307, "/a", 4),
        (302, "/a", 1),
        (308, "", 1),
    ],
)
def test_other_redirects_are_not_followed(
    serve: Serve, transport: Transport, status: int, location: str, sent: int
) -> None:
    """Credentials never cross an origin, and there is an end to it."""
    server = serve(reply(status, b"", {"Location": location}))
    with pytest.raises(ProtocolError, match="not followed"):
        transport.send(_get(server))
    assert len(server.requests) == sent


def test_credentials_are_made_for_each_attempt(serve: Serve) -> None:
    """And for the URL that is asked."""
    server = serve(in_turn(reply(503), reply(307, b"", {"Location": "/b"}), reply()))
    asked: list[str] = []

    def auth(request: Request, refresh: bool) -> Mapping[str, str]:
        asked.append(request.url.removeprefix(server.url))
        return {"Authorization": f"n{len(asked)}, {refresh}"}

    with Transport(random=lambda: 0.0) as transport:
        transport.send(_get(server, "/a", auth=auth))
    assert asked == ["/a", "/a", "/b"]
    sent = [r.headers["authorization"] for r in server.requests]
    assert sent == ["n1, False", "n2, False", "n3, False"]


def test_a_401_asks_for_other_credentials_once(
    serve: Serve, transport: Transport
) -> None:
    """They are used if they differ."""
    server = serve(in_turn(reply(401), reply(200, b"in"), reply(401)))

    def auth(_request: Request, refresh: bool) -> Mapping[str, str]:
        return {"X-API-KEY": "key"} if refresh else {"Authorization": "Bearer key"}

    assert transport.send(_post(server, auth=auth)).body == b"in"
    assert "authorization" in server.requests[0].headers
    assert "authorization" not in server.requests[1].headers
    assert server.requests[1].headers["x-api-key"] == "key"
    with pytest.raises(AuthenticationError):
        transport.send(_get(server, auth=lambda _r, _refresh: {"X-API-KEY": "key"}))
    assert len(server.requests) == 3


# Ending calls from outside


def _start(call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Make a call in a thread; the list gets what it gave or raised."""
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(_timed(call)[1]))
    thread.start()
    return thread, found


@pytest.mark.parametrize("where", ["head", "body", "pause", "pool", "connect"])
def test_a_call_can_be_ended_from_another_thread(serve: Serve, where: str) -> None:
    """Wherever it waits, at once and with the error that was given."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nx"
    scripts = {
        "body": lambda peer, r: (peer.send(head), silence(peer, r)),
        "pause": reply(503, b"", {"Retry-After": "30"}),
    }
    server = serve(scripts.get(where, silence))
    with (
        deaf_address() as (host, port),
        Transport(TransportConfig(max_connections=1)) as transport,
    ):
        holder, _ = _start(lambda: where == "pool" and transport.send(_get(server)))
        wait_until(lambda: where != "pool" or server.requests)
        url = f"http://{host}:{port}" if where == "connect" else server.url
        request = Request(method="GET", url=url)
        call = CallHandle()
        caller, found = _start(lambda: transport.send(request, call=call))
        if where == "pool":
            wait_until(lambda: transport._pool().pool._waiting)
        elif where != "connect":
            wait_until(lambda: server.requests)
        threading.Event().wait(0.05)
        start = time.monotonic()
        assert call.abort(InvocationCancelledError("enough"))
        assert not call.abort(InvocationCancelledError("twice"))
        caller.join(5.0)
        assert time.monotonic() - start < 0.05 * SLOW
        (error,) = found
        assert isinstance(error, InvocationCancelledError)
        assert error.method == "GET"
        transport.abort_all()
        holder.join(5.0)
        assert transport._pool().size == transport._pool().idle


def test_an_abort_inside_the_head_is_no_answer(
    serve: Serve, transport: Transport
) -> None:
    """Half a header block looks like a whole one to some clients."""
    server = serve(
        lambda peer, r: (peer.send(b"HTTP/1.1 200 OK\r\nX: y\r\n"), silence(peer, r))
    )
    call = CallHandle()
    caller, found = _start(lambda: transport.send(_get(server), call=call))
    wait_until(lambda: server.requests)
    threading.Event().wait(0.05)
    call.abort(InvocationCancelledError("enough"))
    caller.join(5.0)
    assert isinstance(found[0], InvocationCancelledError)


def test_close_ends_calls_and_refuses_new_ones(serve: Serve) -> None:
    """Those that wait for an answer and those that pause between attempts."""
    server = serve(in_turn(silence, reply(503, b"", {"Retry-After": "30"})))
    transport = Transport()
    callers = [_start(lambda: transport.send(_get(server))) for _ in range(2)]
    wait_until(lambda: len(server.requests) == 2)
    transport.close()
    transport.close()
    for caller, _ in callers:
        caller.join(5.0)
    assert [type(found[0]) for _, found in callers] == [ClientClosedError] * 2
    with pytest.raises(ClientClosedError):
        transport.send(_get(server))
    assert transport._pool().size == 0


def test_close_before_the_first_call(serve: Serve) -> None:
    """Then there is nothing to close, and still no call."""
    transport = Transport()
    transport.close()
    with pytest.raises(ClientClosedError):
        transport.send(Request(method="GET", url="http://127.0.0.1:1/"))


# Many threads, many processes


def test_many_threads_share_few_connections(serve: Serve) -> None:
    """Each gets its own answer; nothing is lost."""
    server = serve(lambda peer, r: reply(200, r.body)(peer, r))
    wrong: list[object] = []
    with Transport(TransportConfig(max_connections=4)) as transport:

        def work(name: int) -> None:
            for i in range(25):
                body = f"{name}/{i}".encode()
                response = transport.send(_post(server, body=body))
                if response.body != body:
                    wrong.append((body, response.body))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
        assert wrong == []
        assert len(server.requests) == 400
        assert server.connections <= 4
        assert transport._pool().size <= 4


def test_a_forked_child_has_connections_of_its_own(serve: Serve) -> None:
    """And leaves those of its parent alone, also when it closes."""
    server = serve(lambda peer, r: reply(200, r.body)(peer, r))
    with Transport() as transport:
        transport.send(_post(server, body=b"first"))
        go = threading.Event()

        def later(peer: Peer, _request: Received) -> None:
            go.wait(5.0)
            peer.send(b"3\r\ntwo\r\n0\r\n\r\n")

        stream_server = serve(chunks(b"one", then=later))
        stream = transport.stream(_get(stream_server))
        assert stream.read() == b"one"
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                bodies = [b"child %d" % i for i in range(20)]
                got = [transport.send(_post(server, body=b)).body for b in bodies]
                stream.close()
                transport.close()
                os.write(writer, b"same" if got == bodies else b"other")
            finally:
                os._exit(0)
        bodies = [b"parent %d" % i for i in range(20)]
        got = [transport.send(_post(server, body=b)).body for b in bodies]
        assert os.read(reader, 10) == b"same"
        os.waitpid(pid, 0)
        assert got == bodies
        assert transport.send(_post(server, body=b"last")).body == b"last"
        assert server.connections == 2
        go.set()
        assert (stream.read(), stream.read()) == (b"two", b"")
        os.close(reader)
        os.close(writer)


# Acceptance 10: secrets


def test_secrets_stay_secret(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """Logs at DEBUG, reprs, errors and their pickles, with an echoing peer."""
    import pickle

    key, password = "sk-SECRET123", "proxy-pass-9"

    def echo(peer: Peer, request: Received) -> None:
        told = json.dumps({"detail": f"got {dict(request.headers)}"}).encode()
        reply(503, told, {"X-Echo": key})(peer, request)

    server = serve(echo)
    caplog.set_level(logging.DEBUG)
    config = TransportConfig(
        proxy=f"http://user:{password}@127.0.0.1:{server.port}",
        headers={"X-Secret-Team": key},
    )
    request = Request(
        method="GET",
        url=f"http://agent.test/?api_key={key}",
        headers={"X-Plain": key},
        auth=lambda _r, _refresh: {"Authorization": f"Bearer {key}"},
    )
    redactor = Redactor([key, password])
    with Transport(config, redactor=redactor, random=lambda: 0.0) as transport:
        with pytest.raises(ServiceUnavailableError) as caught:
            transport.send(request)
        shown = [repr(transport), repr(config), repr(request).replace("X-Plain", "")]
    assert server.requests[0].headers["proxy-authorization"].startswith("Basic ")
    error = caught.value
    shown += [
        str(error), repr(error), repr(error.__dict__), repr(error.__cause__),
        pickle.dumps(error).decode("latin-1"), caplog.text,
    ]  # fmt: skip
    assert "got {" in str(error)
    assert "answered 503" in caplog.text
    for text in shown[:2] + shown[3:]:
        assert key not in text
        assert password not in text
    assert f"Bearer {key}" not in shown[2]


def test_a_first_call_cannot_escape_the_close(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it makes the connections only after it was found open."""
    server = serve(reply())
    transport = Transport()
    join = shared_pools.join

    def closing(*given: Any) -> Any:
        share = join(*given)
        transport.close()
        return share

    monkeypatch.setattr(shared_pools, "join", closing)
    for _ in range(2):
        with pytest.raises(ClientClosedError):
            transport.send(_get(server))
    assert server.requests == []


def test_other_headers_are_asked_for_once(serve: Serve, transport: Transport) -> None:
    """Later attempts are not told of a 401 again."""
    told: list[bool] = []

    def auth(_request: Request, refused: bool) -> dict[str, str]:
        told.append(refused)
        return {"X-Ticket": str(len(told))}

    server = serve(in_turn(reply(401), reply(503), reply(503), reply()))
    transport.send(_get(server, auth=auth, retry=QUICK))
    assert told == [False, True, False, False]
    assert [r.headers["x-ticket"] for r in server.requests] == ["1", "2", "3", "4"]


def test_a_signature_alone_is_no_other_answer_to_a_refusal(
    serve: Serve, transport: Transport
) -> None:
    """It differs each time; a key id does not."""
    ids, nonces = iter("abcde"), itertools.count()

    def sign_by(key_id: Callable[[], str]) -> Auth:
        def auth(request: Request, _refused: bool) -> Mapping[str, str]:
            nonce = f"nonce-{next(nonces):012}"
            return sign(
                request.method, request.target, "", key_id=key_id(), secret="s",
                now=time.time(), nonce=nonce,
            )  # fmt: skip

        return auth

    server = serve(reply(401))
    for auth in (sign_by(lambda: "always"), sign_by(lambda: next(ids))):
        with pytest.raises(AuthenticationError):
            transport.send(_get(server, auth=auth))
    assert [r.headers["x-ppio-key"] for r in server.requests] == ["always", "a", "b"]


def test_the_peer_is_told_how_much_time_each_attempt_has(serve: Serve) -> None:
    """By the header that the request has, if it has it."""
    deadline = Deadline.after(30.0)
    server = serve(in_turn(reply(503), reply()))
    with Transport(TransportConfig(retry=QUICK)) as transport:
        headers = {"X-PPIO-Timeout": "100.000"}
        transport.send(_get(server, headers=headers, deadline=deadline))
        transport.send(_get(serve(in_turn(reply(503), reply())), deadline=deadline))
    first, second = (r.headers["x-ppio-timeout"] for r in server.requests)
    assert first == "100.000"
    assert 0.0 < float(second) <= 30.0
