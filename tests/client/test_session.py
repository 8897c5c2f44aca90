"""A session over its life: invocations, pause and resume, time to live, its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, SandboxSession, SessionState
from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConflictError,
    InvocationError,
    InvocationTimeoutError,
    ProtocolError,
    RequestTimeoutError,
    ResponseTooLargeError,
    SandboxCreationError,
    ServerBusyError,
    SessionClosedError,
    SessionNotFoundError,
    StreamClosedError,
    StreamInterruptedError,
    ValidationError,
)
from tests.support import SLOW, wait_until
from tests.support_platform import Exchange, FakePlatform

Make = Callable[..., AgentRuntimeClient]


@pytest.fixture
def session(client: AgentRuntimeClient) -> SandboxSession:
    return client.create_session("tpl1")


class TestInvoke:
    def test_sends_what_it_was_given(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A mapping goes untouched; the headers carry key, time, session, Accept."""
        session.invoke(
            {"query": "q", "top_k": 3},
            timeout=30,
            idempotency_key="key-1",
            headers={"X-Trace": "abc"},
        )

        sent = platform.seen("POST", "/invocations")[0]
        assert sent.json() == {"query": "q", "top_k": 3}
        assert sent.headers["idempotency-key"] == "key-1"
        assert sent.headers["accept"] == "application/json, text/event-stream;q=0.9"
        assert 29 < float(sent.headers["x-ppio-timeout"]) <= 30
        assert sent.headers["x-ppio-session-id"] == session.session_id
        assert sent.headers["x-trace"] == "abc"

    def test_no_limit_sends_none(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """None means no limit here and at the agent."""
        session.invoke("Hi", timeout=None)

        assert "x-ppio-timeout" not in platform.seen("POST", "/inv")[0].headers

    def test_bad_key_is_refused(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A key that cannot stand in a header is the caller's mistake."""
        with pytest.raises(ValidationError, match="idempotency key"):
            session.invoke("Hi", idempotency_key="two words")

        assert platform.seen("POST", "/invocations") == []

    @pytest.mark.parametrize(
        ("answer", "result"),
        [
            (("application/json", b'{"answer": 1}'), {"answer": 1}),
            (("application/json; charset=utf-8", b"[1,2]"), [1, 2]),
            (("text/plain", b"just text"), "just text"),
            (("application/json", b""), None),
        ],
    )
    def test_bare_answers_of_the_field(
        self,
        session: SandboxSession,
        platform: FakePlatform,
        answer: tuple[str, bytes],
        result: Any,
    ) -> None:
        """What is no envelope is the result itself."""
        content_type, body = answer
        platform.on(
            "POST", "/inv", lambda e: e.reply(200, raw=body, content_type=content_type)
        )

        response = session.invoke("Hi")

        assert response.result == result
        assert response.status == "success"
        assert list(session.invoke_stream("Hi")) == ([] if result is None else [result])

    def test_unknown_members_of_the_envelope_are_kept(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """An agent that says more is heard."""
        envelope = {"result": 1, "status": "success", "usage": {"tokens": 7}}
        platform.on("POST", "/inv", lambda e: e.reply(200, envelope))

        assert session.invoke("Hi")["usage"] == {"tokens": 7}

    def test_a_stored_answer_is_marked(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The caller can tell a replay from a run."""
        envelope = {"result": 1, "status": "success"}
        headers = {"Idempotency-Replayed": "true"}
        platform.on("POST", "/inv", lambda e: e.reply(200, envelope, headers))

        assert session.invoke("Hi").replayed is True

    def test_a_streaming_agent_is_collected(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Text chunks are joined, others listed; the pieces are there, too."""
        platform.on("POST", "/inv", _bare(b'data: "a"\n\n', b'data: "b"\n\n'))
        text = session.invoke("Hi")
        platform.on("POST", "/inv", _bare(b'data: "a"\n\n', b"data: 2\n\n"))
        mixed = session.invoke("Hi")

        assert (text.result, text.chunks) == ("ab", ("a", "b"))
        assert (mixed.result, mixed.chunks) == (["a", 2], ("a", 2))

    def test_a_stream_too_large_to_collect_is_refused(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """Memory is bounded; the error names the ways out."""
        session = make_client(max_response_bytes=1000).create_session("tpl1")
        platform.on("POST", "/inv", _bare(*[b"data: %b\n\n" % (b"x" * 300)] * 5))

        with pytest.raises(ResponseTooLargeError, match="invoke_stream"):
            session.invoke("Hi")

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (500, {"result": None, "status": "error", "error": "boom"},
             InvocationError),
            (200, {"result": None, "status": "error", "error": "boom"},
             InvocationError),
            (504, {"result": None, "status": "error", "error": "boom",
                   "metadata": {"code": "invocation_timeout"}},
             InvocationTimeoutError),
            (400, {"result": None, "status": "error", "error": "boom",
                   "metadata": {"code": "validation_error"}},
             ValidationError),
            (503, {"status": 503, "code": "server_busy", "detail": "boom"},
             ServerBusyError),
        ],
    )  # fmt: skip
    def test_failures_are_typed(
        self,
        session: SandboxSession,
        platform: FakePlatform,
        status: int,
        body: dict[str, Any],
        expected: type[Exception],
    ) -> None:
        """Envelope or problem, whole or before a stream: one class each."""
        platform.on("POST", "/inv", lambda e: e.reply(status, body))

        for call in (session.invoke, session.invoke_stream):
            with pytest.raises(expected, match="boom") as caught:
                call("Hi")
            assert type(caught.value) is expected

    def test_what_is_not_json_is_a_protocol_error(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A broken answer never looks like a result."""
        platform.on("POST", "/inv", lambda e: e.reply(200, raw=b'{"resu'))

        with pytest.raises(ProtocolError, match=r"not JSON.*status 200.*\{\"resu"):
            session.invoke("Hi")

    def test_time_out_names_the_key(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Whoever ran out of time can join the same run later."""
        release = threading.Event()
        platform.on("POST", "/inv", lambda e: (release.wait(10), e.cut()))
        started = time.monotonic()

        with pytest.raises(RequestTimeoutError) as caught:
            session.invoke("Hi", timeout=0.3, idempotency_key="key-1")
        took = time.monotonic() - started
        release.set()

        assert caught.value.idempotency_key == "key-1"
        assert caught.value.phase == "response"
        assert took < 0.4 * SLOW

    def test_invocations_do_not_wait_for_one_another(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Two calls of one session are with the agent at the same time."""
        together = threading.Barrier(2)

        def meet(exchange: Exchange) -> None:
            together.wait(5)
            exchange.reply(200, {"result": 1, "status": "success"})

        platform.on("POST", "/inv", meet)
        with ThreadPoolExecutor(2) as threads:
            responses = list(threads.map(session.invoke, ["a", "b"]))

        assert [r.result for r in responses] == [1, 1]


class TestStream:
    def test_full_dialect(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Chunks in order, the closing record, the last id; the end event counts."""
        platform.on("POST", "/inv", _full(
            b'id: 1\ndata: "a"\n\n', b": hb\n\n", b'id: 2\ndata: {"n":2}\n\n',
            b'id: 3\nevent: end\ndata: {"status":"succeeded","events":2}\n\n',
        ))  # fmt: skip

        stream = session.invoke_stream("Hi")
        chunks = list(stream)

        assert chunks == ["a", {"n": 2}]
        assert stream.final == {"status": "succeeded", "events": 2}
        assert stream.last_event_id == "2"
        assert stream.invocation_id == "inv_1"
        assert platform.seen("POST", "/inv")[0].headers["accept"] == "text/event-stream"

    def test_chunks_arrive_as_they_are_sent(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The first chunk is there while the agent has not made the second."""
        go_on = threading.Event()

        def hesitate(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            exchange.send(b'data: "a"\n\n')
            assert go_on.wait(10)
            exchange.send(b'data: "b"\n\nevent: end\ndata: {}\n\n')
            exchange.end_stream()

        platform.on("POST", "/inv", hesitate)
        stream = session.invoke_stream("Hi")
        first = next(stream)
        go_on.set()

        assert first == "a"
        assert list(stream) == ["b"]

    def test_error_event_is_raised_after_the_chunks(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """What came before the failure is delivered, then the failure."""
        platform.on("POST", "/inv", _full(
            b'id: 1\ndata: "a"\n\n',
            b'id: 2\nevent: error\ndata: {"error":"boom","error_type":"ValueError"}\n\n',
            b'id: 3\nevent: end\ndata: {"status":"failed"}\n\n',
        ))  # fmt: skip

        stream = session.invoke_stream("Hi")
        first = next(stream)
        with pytest.raises(InvocationError, match="boom") as caught:
            next(stream)

        assert first == "a"
        assert caught.value.agent_error == "ValueError"
        assert caught.value.invocation_id == "inv_1"
        assert session.busy is False

    @pytest.mark.parametrize("ending", ["cut", "clean"])
    def test_full_dialect_without_its_end_is_a_cut(
        self, session: SandboxSession, platform: FakePlatform, ending: str
    ) -> None:
        """Neither a reset nor a tidy end of the body passes for the end of a run."""

        def stop(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            for n in range(3):
                exchange.send(b'id: %d\ndata: "x"\n\n' % n)
            if ending == "clean":
                exchange.end_stream()
            else:
                exchange.cut()

        platform.on("POST", "/inv", stop)
        seen = []
        with pytest.raises(StreamInterruptedError, match="after 3 chunks") as caught:
            seen.extend(session.invoke_stream("Hi"))
        with pytest.raises(StreamInterruptedError) as collected:
            session.invoke("Hi")

        assert caught.value.chunk_count == 3
        assert caught.value.last_event_id == "2"
        assert caught.value.invocation_id == "inv_1"
        assert collected.value.chunks == ("x", "x", "x")

    def test_bare_dialect_ends_with_its_body(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A clean end of the body is the end; data that is no JSON is text."""
        platform.on(
            "POST", "/inv", _bare(b"data: plain\n\n", b'data: {"chunk":"x"}\n\n')
        )

        stream = session.invoke_stream("Hi")

        assert stream.text() == "plainx"
        assert stream.final is None

    def test_bare_dialect_cut_is_an_error(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A body that breaks off is never taken for a whole one."""

        def stop(exchange: Exchange) -> None:
            exchange.start_stream()
            exchange.send(b'data: "x"\n\n' * 3)
            exchange.cut()

        platform.on("POST", "/inv", stop)
        seen = []
        with pytest.raises(StreamInterruptedError, match="after 3 chunks"):
            seen.extend(session.invoke_stream("Hi"))

    def test_bare_dialect_failure_is_its_last_event(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """An error message at the end is a failure; earlier it is a chunk."""
        error = b'data: {"error":"boom"}\n\n'
        platform.on("POST", "/inv", _bare(b'data: "a"\n\n', error))
        with pytest.raises(InvocationError, match="boom") as caught:
            session.invoke("Hi")
        platform.on("POST", "/inv", _bare(error, b'data: "a"\n\n'))
        chunks = list(session.invoke_stream("Hi"))

        assert caught.value.chunks == ("a",)
        assert chunks == [{"error": "boom"}, "a"]

    def test_silence_ends_it(self, make_client: Make, platform: FakePlatform) -> None:
        """A stream without heartbeats does not hang its reader for ever."""
        release = threading.Event()

        def fall_silent(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            exchange.send(b'data: "a"\n\n')
            release.wait(10)

        platform.on("POST", "/inv", fall_silent)
        session = make_client(idle_timeout=0.2).create_session("tpl1")
        seen = []
        with pytest.raises(StreamInterruptedError, match="silent"):
            seen.extend(session.invoke_stream("Hi"))
        release.set()

        assert seen == ["a"]

    def test_deadline_ends_it(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A total that was asked for holds while the stream goes on."""
        stop = threading.Event()

        def drip(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            while not stop.wait(0.02):
                exchange.send(b": hb\n\n")

        platform.on("POST", "/inv", drip)
        started = time.monotonic()
        with pytest.raises(RequestTimeoutError):
            list(session.invoke_stream("Hi", deadline=0.3))
        took = time.monotonic() - started
        stop.set()

        assert took < 0.45 * SLOW

    def test_close_wakes_a_reader_at_once(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Closing does not wait, and the reader learns that it was closed."""
        release = threading.Event()

        def fall_silent(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            exchange.send(b'data: "a"\n\n')
            release.wait(10)

        platform.on("POST", "/inv", fall_silent)
        stream = session.invoke_stream("Hi")
        next(stream)
        woken: list[float] = []

        def read() -> BaseException | None:
            try:
                next(stream)
            except StreamClosedError as error:
                woken.append(time.monotonic())
                return error
            return None

        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read)
            wait_until(reading.running)
            threading.Event().wait(0.1)
            started = time.monotonic()
            stream.close()
            closed = time.monotonic()
            error = reading.result(5)
        release.set()

        assert isinstance(error, StreamClosedError)
        assert closed - started < 0.05 * SLOW
        assert woken[0] - started < 0.05 * SLOW
        assert list(stream) == []

    def test_cancel_asks_the_agent(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The agent is asked to stop the run, and its word is passed on."""
        platform.on("POST", "/invocations$", _full(b'data: "a"\n\n'))
        platform.on("POST", "/invocations/inv_1/cancel", lambda e: e.reply(
            202, {"id": "inv_1", "state": "cancelling", "confirmed": False}
        ))  # fmt: skip
        stream = session.invoke_stream("Hi")

        result = stream.cancel()

        assert (result.state, result.confirmed) == ("cancelling", False)
        assert len(platform.seen("POST", "/invocations/inv_1/cancel")) == 1
        assert session.busy is False

    def test_abandoned_stream_frees_its_session(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A reader that lets go does not keep the session busy for ever."""
        platform.on("POST", "/inv", _full(b'data: "a"\n\n'))
        stream = session.invoke_stream("Hi")
        busy = session.busy
        with pytest.warns(ResourceWarning):
            del stream

        assert busy is True
        assert session.busy is False


class TestStates:
    def test_pause_and_resume_keep_the_memory(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The platform says paused; afterwards the agent counts on where it was."""
        session.invoke("Hi")
        session.pause()
        sandbox_state = session.get_status().sandbox_state
        paused = session.state
        session.resume()

        assert sandbox_state == "paused"
        assert paused is SessionState.PAUSED
        assert session.invoke("Hi").result["count"] == 2

    def test_paused_session_sends_nothing(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """An invocation is refused here, with a code of its own."""
        session.pause()
        before = len(platform.requests)

        for call in (session.invoke, session.invoke_stream):
            with pytest.raises(InvocationError, match=r"resume\(\)") as caught:
                call("Hi")
            assert caught.value.code == "session_paused"

        assert len(platform.requests) == before

    def test_paused_session_may_resume_itself(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """With auto_resume many threads at once cause one resume."""
        session.pause()
        session.auto_resume = True

        with ThreadPoolExecutor(8) as threads:
            counts = [
                r.result["count"] for r in threads.map(session.invoke, "abcdefgh")
            ]

        assert sorted(counts) == list(range(1, 9))
        assert len(platform.seen("POST", "/sandboxes/sb1/connect")) == 1

    def test_pausing_twice_is_no_error(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Here and at a platform that had paused it by itself."""
        platform.sandboxes["sb1"].state = "paused"
        session.pause()
        session.pause()

        assert session.state is SessionState.PAUSED
        assert len(platform.seen("POST", "/sandboxes/sb1/pause")) == 1

    def test_pause_spares_running_invocations(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """It is refused while a call runs, unless it is forced."""
        reached, release = threading.Event(), threading.Event()

        def hang(exchange: Exchange) -> None:
            reached.set()
            release.wait(10)
            exchange.reply(200, {"result": 1, "status": "success"})

        platform.on("POST", "/inv", hang)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(session.invoke, "Hi")
            assert reached.wait(5)
            with pytest.raises(ConflictError, match="force=True"):
                session.pause()
            session.pause(force=True)
            release.set()
            response = running.result(5)

        assert response.result == 1
        assert session.state is SessionState.PAUSED

    def test_older_platforms_are_resumed_by_the_older_call(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A platform that does not know connect is asked to resume."""
        session.pause()
        platform.on("POST", ".*/connect", lambda e: e.reply(404, {"message": "?"}))

        session.resume()

        assert session.state is SessionState.ACTIVE
        assert len(platform.seen("POST", "/sandboxes/sb1/resume")) == 1

    def test_resume_waits_for_the_agent(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The session is active only when the agent answers again."""
        session.pause()
        pings = iter([503, 503, 200])
        platform.on(
            "GET", "/ping", lambda e: e.reply(next(pings), {"status": "Healthy"})
        )

        session.resume()

        assert session.state is SessionState.ACTIVE
        assert next(pings, None) is None

    def test_a_resume_that_its_caller_gives_up_leaves_it_paused(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """By its time or by a cancel: the next call finds the agent's memory."""
        client.invoke_agent("tpl1", "Hi", session_id="s")
        (session,) = client._run.core.book.sessions()
        session.pause()
        asked, release = threading.Event(), threading.Event()
        hang = lambda _: (asked.set(), release.wait(5))[0]  # noqa: E731 - it is short
        with platform.overriding("GET", "/ping", hang):
            with pytest.raises(RequestTimeoutError):
                client.invoke_agent("tpl1", "Hi", session_id="s", timeout=0.1)
            after_timeout = session.state
            asked.clear()
            future = client.submit("tpl1", "Hi", session_id="s")
            assert asked.wait(5)
            future.cancel()
            wait_until(lambda: not session._pulse._changing)
            release.set()

        assert (after_timeout, session.state) == (SessionState.PAUSED,) * 2
        last = client.invoke_agent("tpl1", "Hi", session_id="s")
        assert (last.sandbox_id, last.result["count"]) == ("sb1", 2)

    def test_an_agent_that_fails_in_a_resume(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """That is the session's error."""
        session.pause()
        platform.sandboxes["sb1"].port_open = False
        platform.sandboxes["sb1"].exit_code = 3

        with pytest.raises(SandboxCreationError, match="exit status 3"):
            session.resume()
        assert session.state is SessionState.ERROR

    def test_status_tells_agent_and_platform(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Both are asked; the session's own view follows."""
        status = session.get_status()
        platform.sandboxes["sb1"].port_open = False
        broken = session.get_status()
        with pytest.raises(AgentUnreachableError, match="get_status"):
            session.invoke("Hi")
        platform.sandboxes["sb1"].port_open = True
        mended = session.get_status()

        assert (status.state, status.sandbox_state) == (SessionState.ACTIVE, "running")
        assert status.agent is not None
        assert status.agent.status.value == "Healthy"
        assert (broken.state, broken.agent) == (SessionState.ERROR, None)
        assert mended.state is SessionState.ACTIVE

    def test_status_of_one_that_does_not_run(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A word of the platform's that means neither running nor paused."""
        platform.sandboxes["sb1"].state = "stopped"

        assert session.get_status().state is SessionState.INACTIVE
        with pytest.raises(SessionNotFoundError, match="attach_session"):
            session.invoke("Hi")

    def test_status_of_one_that_is_gone(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """It closes, and says why from then on."""
        platform.killed.append("sb1")

        assert session.get_status().state is SessionState.CLOSED
        with pytest.raises(SessionClosedError, match="gone"):
            session.invoke("Hi")

    def test_invoking_a_dead_sandbox(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The edge's word is checked with the control plane."""
        platform.killed.append("sb1")
        platform.sandboxes["sb1"].state = "killed"

        with pytest.raises(SessionNotFoundError):
            session.invoke("Hi")

        assert session.state is SessionState.CLOSED

    def test_invoking_one_the_platform_paused(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """It is told from a dead one, and can be resumed."""
        platform.sandboxes["sb1"].state = "paused"
        with pytest.raises(InvocationError) as caught:
            session.invoke("Hi")
        session.resume()

        assert caught.value.code == "session_paused"
        assert session.invoke("Hi").result["count"] == 1

    def test_close_is_final_and_idempotent(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The sandbox is killed once; nothing but close works afterwards."""
        session.close()
        session.close()

        assert len(platform.seen("DELETE", "/sandboxes/sb1")) == 1
        for call in (
            lambda: session.invoke("Hi"),
            session.pause,
            session.resume,
            session.refresh,
            session.ping,
        ):
            with pytest.raises(SessionClosedError):
                call()

    def test_close_of_one_that_is_gone_succeeds(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Somebody else did the work."""
        platform.killed.append("sb1")

        session.close()

        assert session.state is SessionState.CLOSED

    def test_close_gives_each_call_an_error_of_its_own(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """Threads that share one would write into it, and into its traceback."""
        release = threading.Event()
        platform.on("POST", "/invocations$", lambda _: release.wait(10) and None)

        def call() -> BaseException | None:
            try:
                session.invoke("Hi")
            except SessionClosedError as error:
                return error
            return None

        with ThreadPoolExecutor(3) as threads:
            calls = [threads.submit(call) for _ in range(3)]
            wait_until(lambda: len(platform.seen("POST", "/inv")) == 3)
            session.close()
            errors = [call.result(5) for call in calls]
            release.set()

        assert None not in errors
        assert len({id(error) for error in errors}) == 3

    def test_close_ends_streams(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """A stream of a closed session ends with the session's error."""
        release = threading.Event()

        def fall_silent(exchange: Exchange) -> None:
            exchange.start_stream(invocation_id="inv_1")
            exchange.send(b'data: "a"\n\n')
            release.wait(10)

        platform.on("POST", "/invocations$", fall_silent)
        stream = session.invoke_stream("Hi")
        next(stream)
        session.close()
        with pytest.raises(SessionClosedError):
            next(stream)
        release.set()

    def test_with_block_closes(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """After an error, too, which is not hidden."""
        with pytest.raises(ZeroDivisionError), client.create_session("tpl1"):
            _ = 1 / 0

        assert platform.alive == []

    def test_unclosed_session_is_warned_of(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """A sandbox that nobody holds any more is named."""
        client = make_client()
        session = client.create_session("tpl1")
        client._run.core.book._sessions.clear()
        with pytest.warns(ResourceWarning, match="sb1 was not closed"):
            del session


class TestTimeToLive:
    def test_refresh_sets_it(
        self, session: SandboxSession, platform: FakePlatform
    ) -> None:
        """The platform and expires_at are told alike."""
        before = session.expires_at
        session.refresh(1000)

        assert platform.seen("POST", ".*/timeout")[0].json() == {"timeout": 1000}
        assert (session.expires_at - before).total_seconds() > 600

    def test_short_one_is_extended_before_a_call(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """With less than a third left the sandbox is saved first."""
        session = client.create_session("tpl1", timeout_seconds=1)
        fresh = len(platform.seen("POST", ".*/timeout"))
        threading.Event().wait(0.7)
        session.invoke("Hi")

        assert fresh == 0
        assert len(platform.seen("POST", ".*/timeout")) == 1

    def test_it_is_kept_up_while_a_call_runs(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A call longer than the time to live does not lose its sandbox."""

        def think(exchange: Exchange) -> None:
            wait_until(lambda: len(platform.seen("POST", ".*/timeout")) >= 2)
            exchange.reply(200, {"result": 1, "status": "success"})

        platform.on("POST", "/inv", think)
        session = client.create_session("tpl1", timeout_seconds=0.6)

        assert session.invoke("Hi").result == 1
        assert _threads("ppio-client-keepalive") == 1

    def test_a_failed_extension_is_tried_again_later(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The calls go on; not every one of them asks again."""
        platform.on("POST", ".*/timeout", lambda e: e.reply(500, {"message": "no"}))
        session = client.create_session("tpl1", timeout_seconds=60)
        session.get_status()  # the platform says that its time is nearly over
        counts = [session.invoke("Hi").result["count"] for _ in range(20)]

        assert counts == list(range(1, 21))
        assert len(platform.seen("POST", ".*/timeout")) == 1

    def test_a_frozen_one_is_not_extended(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Its call waits inside it, and nobody asks for more time, nor spins."""
        reached, release = threading.Event(), threading.Event()

        def hang(exchange: Exchange) -> None:
            reached.set()
            release.wait(10)
            exchange.reply(200, {"result": 1, "status": "success"})

        platform.on("POST", "/inv", hang)
        session = client.create_session("tpl1", timeout_seconds=0.3)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(session.invoke, "Hi")
            assert reached.wait(5)
            session.pause(force=True)
            extended = len(platform.seen("POST", ".*/timeout"))
            before = time.process_time()
            threading.Event().wait(0.4)
            spent = time.process_time() - before
            release.set()
            running.result(5)

        assert len(platform.seen("POST", ".*/timeout")) == extended
        assert spent < 0.3

    def test_an_idle_session_is_left_alone(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Nobody pays for a sandbox that nobody uses."""
        session = client.create_session("tpl1", timeout_seconds=0.3)
        session.invoke("Hi")
        threading.Event().wait(0.5)

        assert platform.seen("POST", ".*/timeout") == []


def _threads(name: str) -> int:
    return sum(t.name.startswith(name) for t in threading.enumerate())


def _bare(*pieces: bytes) -> Callable[[Exchange], None]:
    def answer(exchange: Exchange) -> None:
        exchange.start_stream()
        for piece in pieces:
            exchange.send(piece)
        exchange.end_stream()

    return answer


def _full(*pieces: bytes) -> Callable[[Exchange], None]:
    def answer(exchange: Exchange) -> None:
        exchange.start_stream(invocation_id="inv_1")
        for piece in pieces:
            exchange.send(piece)
        exchange.end_stream()

    return answer
