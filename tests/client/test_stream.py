"""Streams over connections that are cut, silent or closed, and their ends."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.client.agent_port import AgentPort
from ppio_agent.client.call import Line
from ppio_agent.client.stream import StreamingResponse
from ppio_agent.exceptions import (
    ConflictError,
    EventTooLargeError,
    InvocationCancelledError,
    InvocationError,
    InvocationNotFoundError,
    NetworkError,
    ProtocolError,
    ReplayGoneError,
    RequestTimeoutError,
    SessionClosedError,
    StreamInterruptedError,
)
from ppio_agent.testing import (
    FaultServer,
    Script,
    ServedAgent,
    busy,
    chunks,
    cut,
    events,
    in_turn,
    reply,
    reset,
    silence,
)
from ppio_agent.transport import CallScope
from ppio_agent.wire.json import encode_json
from tests.support import SLOW, needs_program, wait_until
from tests.support_net import certificate

from .support_streams import CuttingRelay, Host, call_of, open_port, stream_of

FULL = {"X-Invocation-Id": "inv_1", "X-PPIO-Agent": "1.0.0"}
OTHER = {**FULL, "X-Invocation-Id": "inv_2"}
ENDS_OTHER = b'id: 3\nevent: end\ndata: {"invocation_id":"inv_2"}\n\n'
# What is promised is 10 ms; a busy machine may take that long to switch threads.
AT_ONCE = 0.05


def piece(number: int, value: object = "x") -> bytes:
    return b"id: %d\ndata: %b\n\n" % (number, encode_json(value))


def end(number: int) -> bytes:
    return b'id: %d\nevent: end\ndata: {"status":"succeeded"}\n\n' % number


def told(*pieces: bytes, then: Script | None = None) -> Script:
    """Return a script that streams these pieces in the full dialect."""
    return chunks(*pieces, then=then, headers=FULL)


def line_of(invocation_id: str) -> Line:
    return Line(invocation_id=invocation_id, deadline=Deadline.after(20))


def missing(status: int, code: str) -> Script:
    body = encode_json({"status": status, "code": code, "detail": "it is not there"})
    return reply(status, body, {"Content-Type": "application/problem+json"})


@frozen
class Counting:
    """A real agent that counts its runs, behind a server of its own."""

    agent: ServedAgent
    runs: list[str]

    @property
    def port(self) -> int:
        return int(self.agent.url.rpartition(":")[2])


@pytest.fixture(scope="module")
def counting() -> Iterator[Counting]:
    runs: list[str] = []

    def count(request: dict[str, Any]) -> Iterator[int]:
        runs.append(request["prompt"])
        yield from range(1, 11)

    with ServedAgent(count) as agent:
        yield Counting(agent, runs)


class TestResume:
    @pytest.mark.parametrize(
        "cuts",
        [
            (b'"end"', b": open\n"),
            (b"id: 3\ndata: 3\n\n",),
            (b"id: 3\nda",),
            (b": open\nretry: 1000\n\n",),
            (b"event: end\n",),
            (b'"confirmed":true}\n\n',),
            tuple(b"id: %d\ndata: %d\n\n" % (n, n) for n in range(1, 11)),
        ],
        ids=["head", "after-3", "inside-3", "first", "in-end", "after-end", "each"],
    )
    def test_a_cut_makes_no_difference(
        self, counting: Counting, cuts: tuple[bytes, ...]
    ) -> None:
        """Ten chunks, each once and in order, wherever it is cut; one run."""
        before = len(counting.runs)
        with (
            CuttingRelay(counting.port, *cuts) as relay,
            open_port(relay.url) as port,
            stream_of(port) as stream,
        ):
            assert list(stream) == list(range(1, 11))
            assert stream.final is not None
            assert stream.final["events"] == 10
            assert stream.last_event_id == "10"
        assert len(counting.runs) == before + 1

    def test_invoke_resumes_too(self, counting: Counting) -> None:
        """What is collected is whole, and ran once."""
        before = len(counting.runs)
        with (
            CuttingRelay(counting.port, b"id: 3\ndata: 3\n\n") as relay,
            open_port(relay.url) as port,
        ):
            response = port.invoke(call_of())

        assert response.result == list(range(1, 11))
        assert len(counting.runs) == before + 1

    def test_asks_for_what_follows_the_last_whole_event(self) -> None:
        """Half an event is asked for again, whole ones are not."""
        script = in_turn(
            told(piece(1), piece(2), b"id: 3\ndata:", then=reset()),
            told(piece(3, "y"), end(4)),
        )
        with FaultServer(script) as server, open_port(server.url) as port:
            assert list(stream_of(port)) == ["x", "x", "y"]

        asked = server.requests[1]
        assert (asked.method, asked.target) == ("GET", "/invocations/inv_1/events")
        assert asked.headers["last-event-id"] == "2"
        assert asked.headers["accept"] == "text/event-stream"

    def test_silence_is_a_cut(self) -> None:
        """A connection that says nothing for too long is replaced."""
        script = in_turn(told(piece(1), then=silence), told(piece(2), end(3)))
        with (
            FaultServer(script) as server,
            open_port(server.url, idle_timeout=0.1) as port,
        ):
            assert list(stream_of(port)) == ["x", "x"]

    def test_events_that_come_again_are_dropped(self) -> None:
        """A peer that repeats itself does not make chunks come twice."""
        script = in_turn(
            told(piece(1, 1), piece(2, 2), then=cut()),
            told(piece(1, 1), then=cut()),
            told(piece(1, 1), piece(2, 2), piece(3, 3), end(4)),
        )
        with FaultServer(script) as server, open_port(server.url) as port:
            assert list(stream_of(port)) == [1, 2, 3]

    def test_events_that_are_left_out_are_an_error(self) -> None:
        """A gap is never passed over."""
        script = in_turn(told(piece(1), then=cut()), told(piece(3), end(4)))
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            assert next(stream) == "x"
            with pytest.raises(StreamInterruptedError, match="event 3 after event 1"):
                next(stream)

    @pytest.mark.parametrize(
        "again",
        [told(then=cut()), told(b": hb\n\n", then=cut()), cut(), reset(), busy()],
        ids=["empty", "heartbeat", "no-answer", "reset", "busy"],
    )
    def test_gives_up_without_progress(self, again: Script) -> None:
        """So many attempts in a row, then an error that says where to go on."""
        script = in_turn(told(piece(1), then=cut()), again)
        with (
            FaultServer(script) as server,
            open_port(server.url, max_retries=2) as port,
        ):
            stream = stream_of(port, key="key-1")
            assert next(stream) == "x"
            with pytest.raises(
                StreamInterruptedError, match="after 1 chunks"
            ) as caught:
                next(stream)
            assert list(stream) == []

        assert [r.method for r in server.requests] == ["POST", "GET", "GET"]
        assert caught.value.last_event_id == "1"
        assert caught.value.invocation_id == "inv_1"
        assert caught.value.idempotency_key == "key-1"
        assert caught.value.chunk_count == 1

    def test_progress_counts_anew(self) -> None:
        """A line that is bad for long is gone on with as long as something comes."""
        parts = [told(piece(n, n), then=cut()) for n in range(1, 8)]
        script = in_turn(*parts, told(end(8)))
        with (
            FaultServer(script) as server,
            open_port(server.url, max_retries=1) as port,
        ):
            assert list(stream_of(port)) == list(range(1, 8))

    @pytest.mark.parametrize(
        ("again", "cause"),
        [
            (missing(404, "invocation_not_found"), InvocationNotFoundError),
            (missing(410, "replay_gone"), ReplayGoneError),
        ],
    )
    def test_what_is_gone_is_not_asked_for_again(
        self, again: Script, cause: type[Exception]
    ) -> None:
        """An agent that forgot the run, or its first events, is believed."""
        script = in_turn(told(piece(1), then=cut()), again)
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            next(stream)
            with pytest.raises(StreamInterruptedError) as caught:
                next(stream)

        assert isinstance(caught.value.__cause__, cause)
        assert len(server.requests) == 2
        assert (caught.value.last_event_id, caught.value.invocation_id) == (
            "1",
            "inv_1",
        )

    def test_what_a_bare_agent_told_before_a_cut_is_kept(self) -> None:
        """It may be why: the error of the cut has it as its cause."""
        script = chunks(
            b"data: 1\n\n", b'data: {"error": "out of tokens"}\n\n', then=reset()
        )
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            with pytest.raises(StreamInterruptedError) as caught:
                list(stream)

        told = caught.value.__cause__
        assert isinstance(told, InvocationError)
        assert told.message == "out of tokens"
        assert isinstance(told.__cause__, NetworkError)

    def test_what_came_before_too_large_an_event_is_handed_out(self) -> None:
        """Though it came in the same read."""
        script = told(piece(1) + piece(2) + piece(3, "x" * 2000) + end(4))
        with (
            FaultServer(script) as server,
            open_port(server.url, max_event_bytes=1000) as port,
        ):
            stream = stream_of(port)
            assert [next(stream), next(stream)] == ["x", "x"]
            with pytest.raises(EventTooLargeError, match="max_event_bytes"):
                next(stream)

        assert len(server.requests) == 1

    def test_bare_dialect_is_cut_for_good(self) -> None:
        """An agent of the field cannot be asked again; three chunks were there."""
        script = chunks(*[b"data: %d\n\n" % n for n in range(3)], then=cut())
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            seen: list[Any] = []
            with pytest.raises(StreamInterruptedError, match="after 3 chunks"):
                seen.extend(stream)
            with pytest.raises(ConflictError, match="ids"):
                stream.resume()

        assert seen == [0, 1, 2]
        assert len(server.requests) == 1

    def test_events_without_ids_are_cut_for_good(self) -> None:
        """Nobody could say which of them come again."""
        script = told(b"data: 1\n\n", then=cut())
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            assert next(stream) == 1
            with pytest.raises(StreamInterruptedError):
                next(stream)
        assert len(server.requests) == 1

    def test_failure_that_was_told_is_believed(self) -> None:
        """After the error event nothing is missing but the end."""
        failed = b'id: 2\nevent: error\ndata: {"error":"boom"}\n\n'
        script = told(piece(1), failed, then=cut())
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            next(stream)
            with pytest.raises(InvocationError, match="boom") as caught:
                next(stream)

        assert type(caught.value) is InvocationError
        assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("first", "then", "why"),
        [
            (told(piece(1), then=cut()), chunks(end(2), headers=OTHER), "inv_2"),
            (told(piece(1), then=cut()), told(piece(2), ENDS_OTHER), "another one"),
            (told(piece(1), then=cut()), told(b"data: 1\n\n", end(2)), "without an id"),
            (told(piece(1), ENDS_OTHER), told(), "another one"),
            (told(b"id: 1\nda", then=cut()), told(piece(2), end(3)), "event 2, not 1"),
        ],
        ids=["head", "record", "no-ids", "first-record", "lost-first"],
    )
    def test_what_may_be_of_another_run_or_twice_is_no_answer(
        self, first: Script, then: Script, why: str
    ) -> None:
        """No chunk that may not be the next one is handed out, or left out."""
        with (
            FaultServer(in_turn(first, then)) as server,
            open_port(server.url, max_retries=1) as port,
        ):
            stream = stream_of(port)
            seen = []
            with pytest.raises((StreamInterruptedError, ProtocolError), match=why):
                seen.extend(event.id for event in stream.events())
        assert set(seen) <= {"1", "2"}
        assert stream.final is None or stream.final["invocation_id"] == "inv_2"

    def test_a_run_read_from_its_beginning_begins_with_its_first_event(self) -> None:
        """Also where another process began it; and 0 may be the first, too."""
        with (
            FaultServer(in_turn(told(piece(2)), told(piece(0), end(1)))) as server,
            open_port(server.url, max_retries=1) as port,
        ):
            stream = port.resume_stream(line_of("inv_1"), Host().watch(), None)
            assert [event.id for event in stream.events()] == ["0"]

    def test_deadline_holds_over_all_connections(self) -> None:
        """Going on does not give a stream more time."""
        script = in_turn(told(piece(1), then=cut()), told(then=silence))
        with FaultServer(script) as server, open_port(server.url) as port:
            started = time.monotonic()
            stream = stream_of(port, deadline=0.3)
            next(stream)
            with pytest.raises(RequestTimeoutError) as caught:
                next(stream)

        assert not isinstance(caught.value, StreamInterruptedError)
        key = str(stream.run.idempotency_key)
        assert caught.value.idempotency_key == key
        assert caught.value.message.endswith(
            f"; the sandbox is sb1, the idempotency key {key}"
        )
        assert time.monotonic() - started < 0.4 * SLOW


WAITS: dict[str, Script] = {
    "pause": busy("60"),
    "connect": silence,
    "silence": told(then=silence),
}


@frozen
class Waiting:
    """A thread that waits for the second chunk of a stream."""

    stream: StreamingResponse
    scope: CallScope
    thread: threading.Thread
    seen: list[tuple[str, float]]

    @classmethod
    def of(cls, server: FaultServer, port: AgentPort, *, requests: int) -> Waiting:
        scope = CallScope()
        with scope.running():
            stream = stream_of(port, deadline=None)
        seen: list[tuple[str, float]] = []

        def read() -> None:
            try:
                next(stream)
            except Exception as error:
                seen.append((type(error).__name__, time.monotonic()))

        assert next(stream) == "x"
        thread = threading.Thread(target=read)
        thread.start()
        wait_until(lambda: len(server.requests) == requests)
        threading.Event().wait(0.05)  # until it blocks
        return cls(stream, scope, thread, seen)

    def end(self) -> tuple[str, float]:
        self.thread.join(5)
        (outcome,) = self.seen
        return outcome


@pytest.fixture(params=list(WAITS))
def waiting(request: pytest.FixtureRequest) -> Iterator[Waiting]:
    script = in_turn(told(piece(1), then=cut()), WAITS[request.param])
    with FaultServer(script) as server, open_port(server.url) as port:
        waiting = Waiting.of(server, port, requests=2)
        yield waiting
        waiting.stream.close()
        waiting.thread.join(5)


class TestCloseDuringResume:
    def test_close_wakes_the_reader(self, waiting: Waiting) -> None:
        """In the pause before an attempt, in its connect, in its silence."""
        started = time.monotonic()
        waiting.stream.close()
        closed = time.monotonic()
        name, woken = waiting.end()

        assert name == "StreamClosedError"
        assert closed - started < AT_ONCE * SLOW
        assert woken - started < AT_ONCE * SLOW
        assert list(waiting.stream) == []

    def test_end_of_the_task_wakes_the_reader(self, waiting: Waiting) -> None:
        """The scope that the stream was begun in reaches what follows a cut."""
        started = time.monotonic()
        waiting.scope.abort(InvocationCancelledError("not wanted"))
        name, woken = waiting.end()

        assert name == "InvocationCancelledError"
        assert woken - started < AT_ONCE * SLOW

    def test_end_of_the_call_wakes_the_reader(self, waiting: Waiting) -> None:
        """As closing its session does."""
        waiting.stream._feed._call.abort(SessionClosedError("the session was closed"))
        name, _ = waiting.end()

        assert name == "SessionClosedError"


class TestCloseInSilence:
    @pytest.mark.parametrize("chunked", [True, False], ids=["chunked", "until-close"])
    @pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
    def test_both_threads_go_on_at_once(
        self, tmp_path_factory: pytest.TempPathFactory, *, chunked: bool, secure: bool
    ) -> None:
        """The reader learns that it was closed, by whatever body it reads."""
        tls, ca = None, None
        if secure:
            needs_program("openssl")
            made = certificate(tmp_path_factory.mktemp("tls"))
            assert made is not None
            tls, ca = made[0], str(made[1])
        script = chunks(piece(1), chunked=chunked, then=silence, headers=FULL)
        with (
            FaultServer(script, tls=tls) as server,
            open_port(server.url, ca_bundle=ca) as port,
        ):
            waiting = Waiting.of(server, port, requests=1)
            started = time.monotonic()
            waiting.stream.close()
            closed = time.monotonic()
            name, woken = waiting.end()

        assert name == "StreamClosedError"
        assert closed - started < AT_ONCE * SLOW
        assert woken - started < AT_ONCE * SLOW


class TestByHand:
    def test_resume_goes_on_where_it_was_cut(self) -> None:
        """After all attempts failed, and the peer is there again."""
        script = in_turn(
            told(piece(1, 1), then=cut()),
            cut(), cut(), cut(),
            told(piece(2, 2), then=cut()),
            told(piece(3, 3), end(4)),
        )  # fmt: skip
        host = Host()
        with (
            FaultServer(script) as server,
            open_port(server.url, max_retries=1) as port,
        ):
            stream = port.open_stream(call_of(), host.watch())
            seen: list[Any] = []
            with pytest.raises(StreamInterruptedError):
                seen.extend(stream)
            assert host.told == ["leave"]
            with pytest.raises(StreamInterruptedError):
                seen.extend(stream.resume())
            seen.extend(stream.resume())

        assert seen == [1, 2, 3]
        assert host.told == ["leave", "begin", "leave", "begin", "end"]
        assert stream.final == {"status": "succeeded"}

    def test_only_what_was_interrupted_is_resumed(self) -> None:
        """Neither what runs, nor what ended, nor what was closed."""
        with (
            FaultServer(events(1, 2, headers=FULL)) as server,
            open_port(server.url) as port,
        ):
            stream, closed = stream_of(port), stream_of(port)
            closed.close()
            for other in (stream, closed):
                with pytest.raises(ConflictError, match="interrupted"):
                    other.resume()
            assert list(stream) == [1, 2]
            with pytest.raises(ConflictError, match="interrupted"):
                stream.resume()

    @pytest.mark.parametrize(("after", "expected"), [(None, 1), ("7", 8)])
    def test_a_run_is_found_by_its_id(
        self, counting: Counting, after: str | None, expected: int
    ) -> None:
        """Any process can read the rest, or all of it again."""
        url = counting.agent.url
        with open_port(url) as port, stream_of(port) as first:
            assert next(first) == 1
        with open_port(url) as port:
            line = line_of(str(first.invocation_id))
            stream = port.resume_stream(line, Host().watch(), after)
            assert stream.last_event_id == after
            assert list(stream) == list(range(expected, 11))

    def test_an_unknown_run_is_said_so_at_once(self, counting: Counting) -> None:
        """With the agent's own word for it."""
        with (
            open_port(counting.agent.url) as port,
            pytest.raises(InvocationNotFoundError),
        ):
            port.resume_stream(line_of("inv_unknown"), Host().watch(), None)


class TestEnds:
    def test_too_large_an_event_is_refused_before_it_is_sent(self) -> None:
        """The peer has not finished it; memory stays below three times the limit."""
        limit = 4 << 20
        part = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"

        def endless(peer: Any, _request: Any) -> None:
            while not peer.stop.is_set():
                try:
                    peer.sock.sendall(part)
                except OSError:
                    return

        script = told(piece(1), b"data: ", then=endless)
        with (
            FaultServer(script) as server,
            open_port(server.url, max_event_bytes=limit) as port,
        ):
            stream = stream_of(port)
            assert next(stream) == "x"
            tracemalloc.start()
            try:
                with pytest.raises(EventTooLargeError, match="max_event_bytes"):
                    next(stream)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()

        assert peak < 3 * limit
        assert len(server.requests) == 1

    def test_an_abandoned_stream_warns_and_is_told(self) -> None:
        """Nobody reads it, so its session must hear of it."""
        host = Host()
        with (
            FaultServer(told(piece(1), then=silence)) as server,
            open_port(server.url) as port,
        ):
            stream = port.open_stream(call_of(), host.watch())
            next(stream)
            with pytest.warns(ResourceWarning, match="neither read to its end"):
                del stream
        assert host.told == ["abandon"]

    def test_cancel_is_not_ended_by_the_task_it_ends(self) -> None:
        """A cancel is sent although the scope was aborted; then it closes."""
        cancelled = encode_json({"state": "cancelling", "confirmed": False})
        kind = {"Content-Type": "application/json"}
        script = in_turn(told(piece(1), then=silence), reply(202, cancelled, kind))
        with FaultServer(script) as server, open_port(server.url) as port:
            scope = CallScope()
            with scope.running():
                stream = stream_of(port)
                scope.abort(NetworkError("not wanted"))
                result = stream.cancel()

        assert (result.confirmed, result.state) == (False, "cancelling")
        assert server.requests[1].target == "/invocations/inv_1/cancel"

    def test_cancel_of_a_run_that_is_unknown(self) -> None:
        """An agent that keeps no runs cannot be asked; that is no error."""
        script = in_turn(told(piece(1), then=silence), missing(404, "not_found"))
        with FaultServer(script) as server, open_port(server.url) as port:
            stream = stream_of(port)
            result = stream.cancel()

        assert (result.confirmed, result.state) == (False, "unknown")
        assert list(stream) == []


class TestLostAnswers:
    def test_is_asked_for_again_under_its_key(self) -> None:
        """An answer cut in the middle is the run's all the same."""
        runs: list[int] = []

        def once(_request: dict[str, Any]) -> dict[str, int]:
            runs.append(1)
            return {"runs": len(runs)}

        with (
            ServedAgent(once) as agent,
            CuttingRelay(int(agent.url.rpartition(":")[2]), b'"result"') as relay,
            open_port(relay.url) as port,
        ):
            port.ping(Deadline.after(5))
            response = port.invoke(call_of())

        assert response.result == {"runs": 1}
        assert response.replayed is True
        assert len(runs) == 1

    def test_an_agent_of_the_field_is_not_asked_twice(self) -> None:
        """It would run again; the error names the key."""
        with (
            FaultServer(
                cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
            ) as server,
            open_port(server.url) as port,
            pytest.raises(NetworkError) as caught,
        ):
            port.invoke(call_of(key="key-1"))

        assert caught.value.idempotency_key == "key-1"
        assert len(server.requests) == 1

    def test_a_timeout_names_what_ran(self) -> None:
        """Once: its sandbox, and the key that joins the run."""
        with (
            FaultServer(silence) as server,
            open_port(server.url) as port,
            pytest.raises(RequestTimeoutError, match=r"sb1.* key-1 ") as caught,
        ):
            port.invoke(call_of(key="key-1", deadline=0.1))

        assert caught.value.message.count("key-1") == 1

    def test_attempts_are_bounded(self) -> None:
        """An answer that is cut each time is given up."""
        head = b"HTTP/1.1 200 OK\r\nX-PPIO-Agent: 1\r\nContent-Length: 9\r\n\r\n{"
        with (
            FaultServer(cut(head)) as server,
            open_port(server.url, max_retries=2) as port,
            pytest.raises(NetworkError),
        ):
            port.invoke(call_of())

        keys = {request.headers["idempotency-key"] for request in server.requests}
        assert (len(server.requests), len(keys)) == (3, 1)


class TestGivenUp:
    def cancelled(self, run: Callable[[], object]) -> None:
        """Abort a call, as the end of its task does, while the agent is at it."""
        scope = CallScope()
        error = InvocationCancelledError("not wanted any more")
        ender = threading.Timer(0.1, scope.abort, [error])
        ender.start()
        with pytest.raises(InvocationCancelledError) as caught, scope.running():
            run()
        ender.join()
        assert caught.value.message == error.message

    @pytest.mark.parametrize("streaming", [False, True])
    def test_the_agent_is_asked_to_stop(self, *, streaming: bool) -> None:
        """What runs for a caller that has gone learns of it at once."""
        stopped = threading.Event()

        def value(request: dict[str, Any], context: Any) -> str:
            context.cancelled.wait(20)
            stopped.set()
            return "late"

        def stream(request: dict[str, Any], context: Any) -> Iterator[str]:
            yield "early"
            context.cancelled.wait(20)
            stopped.set()

        served = ServedAgent(stream if streaming else value)
        with served as agent, open_port(agent.url) as port:
            port.ping(Deadline.after(5))
            self.cancelled(lambda: port.invoke(call_of()))
            assert stopped.wait(2 * SLOW)

    def test_a_run_of_another_caller_goes_on(self) -> None:
        """Whoever joined it by its key gives up the joining alone."""
        go_on = threading.Event()

        def wait(_request: dict[str, Any], context: Any) -> str:
            go_on.wait(20)
            return "done"

        with (
            ServedAgent(wait, max_concurrency=4) as agent,
            open_port(agent.url) as port,
        ):
            port.ping(Deadline.after(5))
            found: list[Any] = []
            first = threading.Thread(
                target=lambda: found.append(port.invoke(call_of(key="k")).result)
            )
            first.start()
            wait_until(lambda: agent.app._engine.registry.live == 1)
            self.cancelled(lambda: port.invoke(call_of(key="k")))
            go_on.set()
            first.join(10)

        assert found == ["done"]

    def test_an_agent_of_the_field_hears_nothing(self) -> None:
        """It has no such route, and another one might be there."""
        with FaultServer(silence) as server, open_port(server.url) as port:
            self.cancelled(lambda: port.invoke(call_of()))

        assert [r.target for r in server.requests] == ["/invocations"]

    def test_an_agent_that_does_not_listen_is_not_waited_for(self) -> None:
        """Asking takes a second at most."""
        ping = reply(200, b'{"status":"Healthy"}', {"X-PPIO-Agent": "1.0.0"})
        with (
            FaultServer(in_turn(ping, silence)) as server,
            open_port(server.url) as port,
        ):
            port.ping(Deadline.after(5))
            started = time.monotonic()
            self.cancelled(lambda: port.invoke(call_of()))

        assert server.requests[-1].target.endswith("/cancel")
        assert time.monotonic() - started < 1.5 * SLOW
