"""A client with plug-ins: what they take part in, and what they are told."""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from attrs import evolve

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    InvocationError,
    PPIOAgentError,
)
from ppio_agent.hooks import RequestEvent, SessionEvent, StreamEvent, hookimpl
from ppio_agent.transport import RawStream, Request, Response
from tests.support_hooks import Listener
from tests.support_platform import KEY, Exchange, FakePlatform

Make = Callable[..., AgentRuntimeClient]


@pytest.fixture
def plugged(platform: FakePlatform) -> Iterator[Make]:
    """Make clients with plug-ins."""
    made: list[AgentRuntimeClient] = []

    def make(*plugins: object, key: str = KEY, **settings: Any) -> AgentRuntimeClient:
        settings = {"base_url": platform.url, "max_retries": 0, **settings}
        config = ClientConfig(**settings)
        made.append(AgentRuntimeClient(key, config=config, plugins=plugins))
        return made[-1]

    yield make
    for client in made:
        client.close()


def _streaming(*events: bytes, invocation_id: str | None = "inv_1") -> Any:
    def agent(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            exchange.reply(200, {"status": "Healthy"}, {"X-PPIO-Agent": "1"})
            return
        exchange.start_stream(invocation_id=invocation_id)
        for event in events:
            exchange.send(event)
        exchange.end_stream()

    return agent


def test_every_event_of_a_stream_is_told(platform: FakePlatform, plugged: Make) -> None:
    """Id, name, size and time of each, the last one too; never its data."""
    platform.agent = _streaming(
        b'id: 1\ndata: "one"\n\n: still here\n\nid: 2\ndata: "three"\n\n',
        b'id: 3\nevent: end\ndata: {"status": "succeeded"}\n\n',
    )
    listener = Listener()
    with plugged(listener).create_session("tpl1") as session:
        with session.invoke_stream("hi") as stream:
            assert list(stream) == ["one", "three"]
        session_id, request_id = session.session_id, stream.run.request_id
    events = listener.of(StreamEvent)
    assert [(e.event_id, e.name, e.size) for e in events] == [
        ("1", "message", 5), ("2", "message", 7), ("3", "end", 23),
    ]  # fmt: skip
    assert 0 <= events[0].seconds <= events[2].seconds < 5
    about = (request_id, "inv_1", "sb1", session_id)
    for e in events:
        assert (e.request_id, e.invocation_id, e.sandbox_id, e.session_id) == about
    assert listener.threads == {threading.get_ident()}


def test_an_event_is_told_once(platform: FakePlatform, plugged: Make) -> None:
    """Also if the stream was cut, and the new connection brings it again."""
    again = b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\nid: 3\nevent: end\ndata: {}\n\n"

    def agent(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            exchange.reply(200, {"status": "Healthy"}, {"X-PPIO-Agent": "1"})
            return
        exchange.start_stream(invocation_id="inv_1")
        if exchange.request.method == "POST":
            exchange.send(b"id: 1\ndata: 1\n\n")
            exchange.cut()
        else:
            exchange.send(again)
            exchange.end_stream()

    platform.agent = agent
    listener = Listener()
    with plugged(listener, max_retries=1).create_session("tpl1") as session:
        assert list(session.invoke_stream("hi")) == [1, 2]
    assert [e.event_id for e in listener.of(StreamEvent)] == ["1", "2", "3"]
    asked = [e.method for e in listener.of(RequestEvent) if e.kind == "agent"]
    assert asked == ["GET", "POST", "GET"]  # the ping first


def test_events_of_the_bare_dialect_are_told(
    platform: FakePlatform, plugged: Make
) -> None:
    """Without ids; what turns out to be the failure, too."""
    platform.agent = _streaming(
        b'data: "one"\n\ndata: {"error": "no"}\n\n', invocation_id=None
    )
    listener = Listener()
    with (
        plugged(listener).create_session("tpl1") as session,
        pytest.raises(InvocationError, match="no"),
    ):
        session.invoke("hi")
    events = listener.of(StreamEvent)
    assert [(e.event_id, e.name, e.invocation_id) for e in events] == [
        (None, "message", None),
        (None, "message", None),
    ]


def test_a_failing_listener_disturbs_no_stream(
    platform: FakePlatform, plugged: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, however many events there are."""

    class Broken:
        @hookimpl
        def ppio_client_stream_event(self) -> None:
            raise ValueError("broken listener")

    platform.agent = _streaming(b"data: 1\n\n" * 50, invocation_id=None)
    with caplog.at_level(logging.WARNING):
        answer = plugged(Broken()).invoke_agent("tpl1", "hi")
    assert answer.result == [1] * 50
    assert len(caplog.records) == 1


def test_sessions_tell_their_states(platform: FakePlatform, plugged: Make) -> None:
    """From the first to the last."""
    listener = Listener()
    with plugged(listener).create_session("tpl1", session_id="s-1") as session:
        session.pause()
        session.resume()
    events = listener.of(SessionEvent)
    assert [(e.before, e.after) for e in events] == [
        (None, "active"),
        ("active", "paused"),
        ("paused", "active"),
        ("active", "closed"),
    ]
    about = {(e.sandbox_id, e.session_id, e.template_id) for e in events}
    assert about == {("sb1", "s-1", "tpl1")}


def test_middleware_sees_every_call(platform: FakePlatform, plugged: Make) -> None:
    """Those to the control plane and those to the agent, told apart by their kind."""
    seen: list[tuple[str, str, type]] = []

    class Looking:
        @hookimpl
        def ppio_client_middleware(self, call_next: Any, request: Request) -> Any:
            answer = call_next(request)
            path = request.url.removeprefix(platform.url).partition("?")[0]
            seen.append((request.kind, f"{request.method} {path}", type(answer)))
            return answer

    plugged(Looking()).invoke_agent("tpl1", "hi")
    assert seen == [
        ("template", "GET /templates", Response),
        ("template", "POST /sandboxes", Response),
        ("agent", "GET /ping", Response),
        ("agent", "POST /invocations", RawStream),
        ("sandbox", "DELETE /sandboxes/sb1", Response),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_middleware_may_answer_for_the_agent(
    platform: FakePlatform, plugged: Make, stream: bool
) -> None:
    """A cache, say: the agent is not asked."""

    class Cached:
        @hookimpl
        def ppio_client_middleware(self, call_next: Any, request: Request) -> Any:
            if not request.url.endswith("/invocations"):
                return call_next(request)
            if not stream:
                body = b'{"result": "kept", "status": "success"}'
                return Response.make(200, {"Content-Type": "application/json"}, body)
            head = Response.make(200, {"Content-Type": "text/event-stream"})
            return RawStream.of(head, [b'data: "ke', b'pt"\n\n'])

    client = plugged(Cached())
    assert client.invoke_agent("tpl1", "hi").result == "kept"
    with client.invoke_stream("tpl1", "hi") as chunks:
        assert list(chunks) == ["kept"]
    assert platform.seen("POST", "/invocations") == []
    assert platform.alive == []


def test_an_error_of_middleware_is_that_of_the_call(
    platform: FakePlatform, plugged: Make
) -> None:
    """The sandbox is ended all the same."""

    class Refusing:
        @hookimpl
        def ppio_client_middleware(self, call_next: Any, request: Request) -> Any:
            if request.url.endswith("/invocations"):
                raise PermissionError("not today")
            return call_next(request)

    with pytest.raises(PermissionError, match="not today"):
        plugged(Refusing()).invoke_agent("tpl1", "hi")
    assert platform.alive == []


def test_middleware_cannot_send_the_key_away(
    platform: FakePlatform, plugged: Make
) -> None:
    """What goes to another origin goes without it."""

    class Detour:
        @hookimpl
        def ppio_client_middleware(self, call_next: Any, request: Request) -> Any:
            url = request.url.replace(platform.url, other.url)
            return call_next(evolve(request, url=url))

    with FakePlatform() as other:
        assert plugged(Detour()).list_templates()[0].template_id == "tpl1"
        (got,) = other.requests
    assert platform.requests == []
    assert KEY not in str(got.headers)


def test_a_plug_in_for_auth_has_to_give_headers(
    platform: FakePlatform, plugged: Make
) -> None:
    """What it gave instead is named."""

    class Wrong:
        @hookimpl
        def ppio_client_auth(self) -> object:
            return "token"

    with pytest.raises(ConfigurationError, match=r"headers\(request.*not str"):
        plugged(Wrong()).list_templates()


# Acceptance 10


def test_no_record_holds_a_secret(
    platform: FakePlatform, plugged: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Of an agent that says whatever it was sent, in every place where it can."""
    key, password = "sk-SECRET123", "proxy-pass-9"

    def echo(exchange: Exchange) -> None:
        headers = exchange.request.headers
        if exchange.request.path.endswith("/ping"):
            exchange.reply(200, {"status": "Healthy"}, {"X-PPIO-Agent": "1"})
            return
        said = headers.get("authorization", "") + password
        if "fail" in exchange.request.body.decode():
            exchange.reply(500, {"code": said, "message": said}, {"X-Request-Id": key})
            return
        exchange.start_stream(invocation_id=key)
        exchange.send(f"id: {key}\nevent: {said}\ndata: {said}\n\n".encode())
        exchange.send(b"event: end\ndata: {}\n\n")
        exchange.end_stream()

    platform.agent = echo
    listener = Listener()
    client = plugged(
        listener,
        key=key,
        forward_api_key=True,
        proxy=platform.url.replace("//", f"//me:{password}@"),
    )
    with caplog.at_level(logging.DEBUG), client.create_session("tpl1") as session:
        session.invoke("hi", headers={"X-Request-Id": key})
        with pytest.raises(PPIOAgentError):
            session.invoke("fail", headers={"X-Request-Id": key})
    assert len({type(record) for record in listener.records}) == 4
    for record in listener.records:
        shown = f"{record!r} {attrs.asdict(record)} {pickle.dumps(record)!r}"
        assert key not in shown
        if not isinstance(record, StreamEvent):  # only the agent said it there
            assert password not in shown
    assert key not in caplog.text


def test_tokens_of_plug_ins_are_secrets_too(
    platform: FakePlatform, plugged: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """The last ones, wherever the peer says them again."""

    class Tokens:
        last = 0

        @hookimpl
        def ppio_client_auth(self) -> Tokens:
            return self

        def headers(self, request: Request, *, refresh: bool = False) -> dict[str, str]:
            self.last += refresh
            return {"Authorization": f"Bearer tkn-{self.last}-ABCDEF", "X-Nonce": "n"}

    def echo(exchange: Exchange) -> None:
        said = exchange.request.headers["authorization"]
        before = said.replace("-1-", "-0-")
        refused = {"code": 401, "message": f"{said} {before} X-Nonce n"}
        exchange.reply(401, refused, {"X-Request-Id": said.split()[1]})

    platform.on("GET", "/templates", echo)
    listener = Listener()
    client = plugged(listener, Tokens())
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(AuthenticationError, match=r"\*\*\* Bearer \*\*\* X-N") as caught,
    ):
        client.list_templates()
    shown = f"{caught.value!r} {pickle.dumps(caught.value)!r} {listener.records}"
    assert "ABCDEF" not in shown
    assert "ABCDEF" not in caplog.text
