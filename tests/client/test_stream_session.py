"""Streams as sessions and clients hold them: found again, ended with them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from ppio_agent.client import AgentRuntimeClient, SandboxSession
from ppio_agent.exceptions import (
    ClientClosedError,
    InvocationError,
    InvocationNotFoundError,
    SessionClosedError,
    StreamInterruptedError,
    ValidationError,
)
from tests.support import SLOW, wait_until
from tests.support_platform import Exchange, FakePlatform

Make = Callable[..., AgentRuntimeClient]

EVENTS = "/invocations/inv_1/events"


def serve(*pieces: bytes, whole: bool = True) -> Callable[[Exchange], None]:
    """Return an agent's answer in the full dialect; cut after its pieces if not whole."""

    def answer(exchange: Exchange) -> None:
        exchange.start_stream(invocation_id="inv_1")
        for piece in pieces:
            exchange.send(piece)
        if whole:
            exchange.send(b'event: end\ndata: {"status":"succeeded"}\n\n')
            exchange.end_stream()
        else:
            exchange.cut()

    return answer


ONE, TWO = b'id: 1\ndata: "a"\n\n', b'id: 2\ndata: "b"\n\n'


@pytest.fixture
def session(client: AgentRuntimeClient) -> SandboxSession:
    return client.create_session("tpl1")


def test_a_run_goes_on_in_another_client(
    make_client: Make, platform: FakePlatform
) -> None:
    """By ids alone: of the sandbox, the run and its last event."""
    platform.on("POST", "/invocations$", serve(ONE, whole=False))
    platform.on("GET", EVENTS, serve(TWO))
    first = make_client().create_session("tpl1")
    with pytest.raises(StreamInterruptedError) as caught:
        list(first.invoke_stream("Hi"))
    ref = first.detach()

    cut = caught.value
    again = make_client().attach_session(ref)
    stream = again.resume_stream(str(cut.invocation_id), cut.last_event_id)

    assert again.busy is True
    assert list(stream) == ["b"]
    assert again.busy is False
    asked = platform.seen("GET", EVENTS)[0]
    assert asked.headers["last-event-id"] == "1"
    again.close()


def test_by_hand_with_the_same_stream(
    session: SandboxSession, platform: FakePlatform
) -> None:
    """The session is busy again while it is read."""
    platform.on("POST", "/invocations$", serve(ONE, whole=False))
    platform.on("GET", EVENTS, serve(TWO))
    stream = session.invoke_stream("Hi")
    with pytest.raises(StreamInterruptedError):
        list(stream)
    idle = session.busy
    busy = stream.resume() is stream and session.busy

    assert (idle, busy) == (False, True)
    assert list(stream) == ["b"]
    assert session.busy is False


def test_a_run_has_an_id_before_its_answer(
    session: SandboxSession, platform: FakePlatform
) -> None:
    """Made up for each call, unless the caller chose one."""
    session.invoke("Hi", idempotency_key="key-1")
    session.invoke("Hi", idempotency_key="key-1")
    session.invoke("Hi", headers={"x-invocation-id": "mine"})

    sent = [r.headers["x-invocation-id"] for r in platform.seen("POST", "/inv")]
    assert len(set(sent)) == 3
    assert sent[0].startswith("inv_")
    assert sent[2] == "mine"


@pytest.mark.parametrize("bad", ["", "a/b", "a b", "x" * 129, "é"])
def test_bad_ids_are_refused(
    session: SandboxSession, platform: FakePlatform, bad: str
) -> None:
    """What cannot stand in the path is never sent."""
    with pytest.raises(ValidationError, match="invocation id"):
        session.resume_stream(bad)
    with pytest.raises(ValidationError):
        session.resume_stream("inv_1", "1\r\nX: y")
    assert platform.seen("GET", "/invocations") == []
    assert session.busy is False


def test_an_unknown_run(session: SandboxSession, platform: FakePlatform) -> None:
    """The agent's word, and a session that is free again."""
    problem = {"status": 404, "code": "invocation_not_found", "detail": "none"}
    platform.on("GET", "/invocations/inv_9/events", lambda e: e.reply(404, problem))

    with pytest.raises(InvocationNotFoundError):
        session.resume_stream("inv_9")
    assert session.busy is False


def test_a_sandbox_of_its_own_ends_with_the_stream(
    client: AgentRuntimeClient, platform: FakePlatform
) -> None:
    """An interrupted one-shot stream leaves no sandbox, so nothing to resume."""
    platform.on("POST", "/invocations$", serve(ONE, whole=False))
    stream = client.invoke_agent_stream("tpl1", "Hi")
    with pytest.raises(StreamInterruptedError):
        list(stream)

    assert platform.alive == []
    with pytest.raises(SessionClosedError):
        stream.resume()


class TestRunsAreCancelledBeforeTheirSandbox:
    """A platform gives an agent that is still at work seconds to finish."""

    @pytest.fixture
    def cancelled(self, platform: FakePlatform) -> list[tuple[str, bool]]:
        """Return what runs were cancelled, and whether their sandbox was there."""
        found: list[tuple[str, bool]] = []

        def cancel(exchange: Exchange) -> None:
            found.append((exchange.request.path.split("/")[2], bool(platform.alive)))
            exchange.reply(202, {"state": "cancelling", "confirmed": False})

        platform.on("POST", ".*/cancel$", cancel)
        return found

    def endless(self, exchange: Exchange) -> None:
        exchange.start_stream(invocation_id=exchange.request.headers["x-invocation-id"])
        exchange.send(ONE)
        exchange.await_client_gone()

    @pytest.mark.parametrize("how", ["close", "interrupt", "cut"])
    def test_by_a_one_shot_stream_that_is_left(
        self,
        make_client: Make,
        platform: FakePlatform,
        cancelled: list[tuple[str, bool]],
        how: str,
    ) -> None:
        """Closed, ended by Ctrl-C, or cut for good."""
        answer = serve(ONE, whole=False) if how == "cut" else self.endless
        platform.on("POST", "/invocations$", answer)
        client = make_client(max_retries=0)
        stream = client.invoke_agent_stream("tpl1", "Hi")
        assert next(stream) == "a"
        if how == "close":
            stream.close()
        elif how == "cut":
            with pytest.raises(StreamInterruptedError):
                next(stream)
        else:
            main = threading.get_ident()
            ender = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGINT])
            ender.start()
            with pytest.raises(KeyboardInterrupt):
                next(stream)
            ender.join()

        sent = platform.seen("POST", "/invocations$")[0].headers["x-invocation-id"]
        assert cancelled == [(sent, True)]
        assert platform.alive == []

    def test_not_if_it_was_read_to_its_end(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        cancelled: list[tuple[str, bool]],
    ) -> None:
        """There is nothing to cancel."""
        platform.on("POST", "/invocations$", serve(ONE))
        assert list(client.invoke_agent_stream("tpl1", "Hi")) == ["a"]
        assert (cancelled, platform.alive) == ([], [])

    def test_by_a_session_that_is_closed(
        self,
        session: SandboxSession,
        platform: FakePlatform,
        cancelled: list[tuple[str, bool]],
    ) -> None:
        """All that run in it."""
        platform.on("POST", "/invocations$", self.endless)
        streams = [session.invoke_stream("Hi") for _ in range(3)]
        session.close()

        ids = {str(stream.invocation_id) for stream in streams}
        assert sorted(cancelled) == sorted((i, True) for i in ids)
        for stream in streams:
            with pytest.raises(SessionClosedError):
                list(stream)

    def test_an_agent_that_is_dead_is_not_waited_for(
        self,
        session: SandboxSession,
        platform: FakePlatform,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is asked once, and has a second for it."""
        monkeypatch.setattr("ppio_agent.client.agent_port._STOP_LIMIT", 0.1)
        asked = threading.Event()

        def deaf(exchange: Exchange) -> None:
            asked.set()
            exchange.answered = True
            exchange.await_client_gone()

        platform.on("POST", ".*/cancel$", deaf)
        platform.on("POST", "/invocations$", self.endless)
        stream = session.invoke_stream("Hi")
        started = time.monotonic()
        session.close()

        assert time.monotonic() - started < 0.5 * SLOW
        assert asked.is_set()
        assert platform.alive == []
        stream.close()


@pytest.mark.parametrize("what", ["session", "client", "client-of-attached"])
def test_the_end_of_all_reaches_a_stream_that_is_resumed(
    make_client: Make, platform: FakePlatform, what: str
) -> None:
    """Its pause included."""
    platform.on("POST", "/invocations$", serve(ONE, whole=False))
    platform.on("GET", EVENTS, lambda e: e.reply(503, None, {"Retry-After": "60"}))
    client = make_client(max_retries=3)
    session = client.create_session("tpl1")
    if what == "client-of-attached":
        session = client.attach_session(session.detach())
    stream = session.invoke_stream("Hi")
    outcome: list[BaseException] = []

    def read() -> None:
        try:
            list(stream)
        except Exception as error:
            outcome.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: platform.seen("GET", EVENTS))
    started = time.monotonic()
    (session if what == "session" else client).close()
    reader.join(5)

    assert time.monotonic() - started < 2 * SLOW
    assert isinstance(outcome[0], (SessionClosedError, ClientClosedError))


class TestAgentsOfTheField:
    """No ids, no end event, an envelope with 500 or a last event for an error."""

    def bare(self, *pieces: bytes) -> Callable[[Exchange], None]:
        def answer(exchange: Exchange) -> None:
            exchange.start_stream()
            for piece in pieces:
                exchange.send(piece)
            exchange.end_stream()

        return answer

    def test_its_streams(self, session: SandboxSession, platform: FakePlatform) -> None:
        """Live and collected alike; cancel and resume are not for it."""
        platform.on("POST", "/inv", self.bare(b'data: "a"\n\n', b"data: plain\n\n"))
        stream = session.invoke_stream("Hi")

        assert list(stream) == ["a", "plain"]
        assert stream.cancel().state == "unknown"
        assert session.invoke("Hi").result == "aplain"
        assert platform.seen("POST", "/invocations/.*/cancel") == []

    def test_its_failures(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Both kinds are `InvocationError`, for both kinds of call."""
        envelope = {"result": None, "status": "error", "error": "boom"}
        failing = [
            lambda e: e.reply(500, envelope),
            self.bare(b'data: "a"\n\n', b'data: {"error":"boom"}\n\n'),
        ]
        for agent in failing:
            platform.on("POST", "/inv", agent)
            for call in (session.invoke, lambda r: list(session.invoke_stream(r))):
                with pytest.raises(InvocationError, match="boom") as caught:
                    call("Hi")
                assert type(caught.value) is InvocationError
