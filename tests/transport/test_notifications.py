"""What plug-ins are told of the attempts of a call."""

from __future__ import annotations

import itertools
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import NetworkError, PPIOAgentError
from ppio_agent.hooks import (
    Hooks,
    RequestEvent,
    RetryEvent,
    hookimpl,
)
from ppio_agent.testing import FaultServer, busy, chunks, cut, in_turn, reply, silence
from ppio_agent.transport import NO_RETRY, Request, Response, Transport
from tests import support_hooks

Serve = Callable[..., FaultServer]

KEY = {"Idempotency-Key": "k-1"}


class Listener(support_hooks.Listener):
    """Tells the records in short."""

    def shapes(self) -> list[Any]:
        """Return kind and outcome of each record, and forget them."""
        found = [_shape(record) for record in self.records]
        self.records.clear()
        return found


def _shape(record: Any) -> tuple[Any, ...]:
    if isinstance(record, RequestEvent):
        return "asks", record.attempt
    if isinstance(record, RetryEvent):
        return "again", record.attempt, record.status or record.error
    return "got", record.attempt, record.status or record.error


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def heard(listener: Listener) -> Iterator[Transport]:
    """A transport whose calls `listener` hears of."""
    hooks = Hooks.load([listener], entry_points=False).for_client()
    redactor = Redactor(["sk-SECRET123"])
    with Transport(hooks=hooks, redactor=redactor, random=lambda: 0.0) as transport:
        yield transport


def _post(server: FaultServer, path: str = "/", **more: Any) -> Request:
    return Request(method="POST", url=server.url + path, body=b"{}", **more)


def test_each_attempt_is_told(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """That it begins, how it ended, and whether another one follows."""
    server = serve(in_turn(busy("0"), reply(200, b"whole")))
    request = _post(
        server,
        "/invocations?x=1",
        kind="agent",
        subject="sb-1",
        headers={"x-ppio-session-id": "s-1", "X-Request-Id": "r-1", **KEY},
    )
    heard.send(request)
    asked, refused, again, asked_again, got = listener.records
    about = {
        "method": "POST", "url": f"{server.url}/invocations?x=1", "kind": "agent",
        "request_id": "r-1", "sandbox_id": "sb-1", "session_id": "s-1",
    }  # fmt: skip
    for record in listener.records:
        assert about.items() <= attrs.asdict(record).items()
    assert asked == RequestEvent(**about, attempt=1, size=2)
    assert (refused.status, refused.error, refused.attempt) == (503, None, 1)
    assert refused.size == len(busy_body())
    assert (again.status, again.attempt) == (503, 1)
    assert (again.error, again.delay) == ("ServiceUnavailableError", 0.0)
    assert asked_again == RequestEvent(**about, attempt=2, size=2)
    assert (got.status, got.size, got.attempt) == (200, 5, 2)
    assert 0 <= got.seconds < 5
    assert listener.threads == {threading.get_ident()}


def busy_body() -> bytes:
    return b'{"code":"busy","message":"too busy"}'


def test_a_stream_is_told_at_its_head(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """Its size is not known then."""
    with heard.stream(_post(serve(chunks(b"one", then=silence)))):
        assert listener.records[-1].status == 200
        assert listener.records[-1].size is None
        assert listener.shapes() == [("asks", 1), ("got", 1, 200)]


def test_an_attempt_without_an_answer_is_told(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """By the class of its error: cut, cut in the middle, out of time, refused."""
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
    once = _post(serve(in_turn(cut(), cut(half), silence)), retry=NO_RETRY)
    for request in (once, once, attrs.evolve(once, deadline=Deadline.after(0.1))):
        with pytest.raises(NetworkError) as caught:
            heard.send(request)
        error = type(caught.value).__name__
        assert listener.shapes() == [("asks", 1), ("got", 1, error)]
    gone = serve(reply())
    gone.close()
    with pytest.raises(NetworkError):
        heard.send(_post(gone, retry=NO_RETRY))
    assert listener.shapes() == [("asks", 1), ("got", 1, "NetworkError")]


def test_an_attempt_that_cannot_be_sent_is_told(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """So each record of a request is followed by one of its end."""

    def broken(_request: Request, _again: bool) -> dict[str, str]:
        raise KeyError("no token")

    with pytest.raises(KeyError):
        heard.send(_post(serve(reply()), auth=broken))
    assert listener.shapes() == [("asks", 1), ("got", 1, "KeyError")]


def test_what_does_not_count_repeats_its_number(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """A closed kept connection, a 401 with new headers, a redirect."""
    tokens = itertools.count()
    moved = reply(307, b"", {"Location": "/there"})
    server = serve(in_turn(reply(), cut(), reply(401), moved, reply(200)))
    heard.send(_post(server))
    listener.shapes()
    request = _post(
        server,
        headers=KEY,
        auth=lambda _r, _again: {"X-Access-Token": str(next(tokens))},
    )
    heard.send(request)
    urls = [record.url for record in listener.records]
    assert listener.shapes() == [
        ("asks", 1), ("got", 1, "NetworkError"), ("again", 1, "NetworkError"),
        ("asks", 1), ("got", 1, 401),
        ("asks", 1), ("got", 1, 307),
        ("asks", 1), ("got", 1, 200),
    ]  # fmt: skip
    assert urls[-1] == f"{server.url}/there"


def test_what_no_attempt_was_made_for_is_not_told(
    serve: Serve, listener: Listener
) -> None:
    """A middleware that answers itself sends nothing."""

    class Answering:
        @hookimpl
        def ppio_client_middleware(self) -> Response:
            return Response.make(200, {}, b"own")

    hooks = Hooks.load([listener, Answering()], entry_points=False).for_client()
    with Transport(hooks=hooks) as transport:
        transport.send(_post(serve(reply())))
    assert listener.records == []


# Acceptance 10


def test_records_hold_no_secret(
    serve: Serve, listener: Listener, heard: Transport
) -> None:
    """Neither in a field, a repr nor a pickle; bodies are not in them at all."""
    server = serve(in_turn(busy("0"), reply(200, b"sk-SECRET123")))
    url = server.url.replace("//", "//me:hunter22@")
    with pytest.raises(PPIOAgentError):
        heard.send(_post(server).__class__(method="GET", url=url))
    listener.records.clear()
    heard.send(
        _post(
            server,
            "/sk-SECRET123?token=hunter22&q=sk-SECRET123",
            kind="sandbox",
            subject="sk-SECRET123",
            headers={
                "X-API-KEY": "sk-SECRET123",
                "X-Request-Id": "sk-SECRET123",
                "X-PPIO-Session-Id": "sk-SECRET123",
                **KEY,
            },
        )
    )
    assert len(listener.records) == 5
    for record in listener.records:
        shown = f"{record!r} {attrs.asdict(record)} {pickle.dumps(record)!r}"
        assert "SECRET123" not in shown
        assert "hunter22" not in shown


# What plug-ins do wrong


def test_a_failing_listener_is_logged_once_and_ignored(
    serve: Serve,
    listener: Listener,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The call goes on, and the other plug-ins hear of it as well."""

    class Broken(Listener):
        @hookimpl
        def ppio_client_request(self) -> None:
            raise ValueError("broken listener")

        @hookimpl
        def ppio_client_response(self) -> None:
            raise ValueError("broken listener")

    plugins = [Broken(), listener, Broken()]
    hooks = Hooks.load(plugins, entry_points=False).for_client()
    server = serve(reply())
    with caplog.at_level(logging.INFO), Transport(hooks=hooks) as transport:
        for _ in range(3):
            transport.send(_post(server))
    assert listener.shapes() == [("asks", 1), ("got", 1, 200)] * 3
    failures = [r for r in caplog.records if r.name == "ppio_agent.hooks.manager"]
    assert [r.levelname for r in failures] == ["ERROR"] * 4
    assert {r.args[0] for r in failures if r.args} == {
        "ppio_client_request",
        "ppio_client_response",
    }
    assert failures[0].exc_info is not None


def test_ctrl_c_in_a_listener_ends_the_call(serve: Serve) -> None:
    """It is no failure of the plug-in; the connection is free again."""

    class Interrupted:
        @hookimpl
        def ppio_client_response(self) -> None:
            raise KeyboardInterrupt

    hooks = Hooks.load([Interrupted()], entry_points=False).for_client()
    with Transport(hooks=hooks) as transport:
        with pytest.raises(KeyboardInterrupt):
            transport.send(_post(serve(reply())))
        assert transport._pool()._calls == set()
        assert transport._pool().size == transport._pool().idle


def test_who_listens_to_one_thing_is_told_that_alone(serve: Serve) -> None:
    """A plug-in takes part where it wants to."""
    seen: list[object] = []

    class OnlyRetries:
        @hookimpl
        def ppio_client_retry(self, record: RetryEvent) -> None:
            seen.append(record)

    hooks = Hooks.load([OnlyRetries()], entry_points=False).for_client()
    assert (hooks.request, hooks.response, hooks.observed) == (None, None, True)
    with Transport(hooks=hooks, random=lambda: 0.0) as transport:
        transport.send(_post(serve(in_turn(busy("0"), reply())), headers=KEY))
    assert [type(record) for record in seen] == [RetryEvent]


def test_without_plug_ins_there_is_nobody_to_tell() -> None:
    """Which a call finds out by one look."""
    hooks = Hooks().for_client()
    assert not hooks.observed
    assert hooks.middleware == ()
    assert (hooks.headers, hooks.stream_event, hooks.session_changed) == (None,) * 3
