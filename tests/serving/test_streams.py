"""Streams in both dialects, over real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ppio_agent.agent import Chunk, RequestContext
from tests.serving.conftest import Serve
from tests.serving.support import SSE, Gate, Http, hang_up, make_app
from tests.serving.support_metrics import Scraped
from tests.support import SLOW, wait_until

FULL = "text/event-stream"
BOTH = "application/json, text/event-stream;q=0.9"


def abc(request: Any) -> Iterator[str]:
    yield from "abc"


async def async_abc(request: Any) -> AsyncIterator[str]:
    for letter in "abc":
        await asyncio.sleep(0)
        yield letter


def returns_iterator(request: Any) -> Any:
    return iter("abc")


async def awaits_iterator(request: Any) -> Any:
    return async_abc(request)


STREAMS = [abc, async_abc, returns_iterator, awaits_iterator]


def broken(request: Any) -> Iterator[str]:
    yield "a"
    raise ValueError("no more")


def text(http: Http, payload: Any = None, **headers: str) -> str:
    answer = http.invoke({} if payload is None else payload, **headers)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-invocation-id"]
    return answer.body.decode()


def http_of(serve: Serve, agent: Any, **options: Any) -> Http:
    app = make_app(**options)
    app.entrypoint(agent)
    return serve(app)


@pytest.mark.parametrize("agent", STREAMS)
def test_full_streams_number_every_event_and_say_end(
    agent: Any, serve: Serve, through_flask: bool
) -> None:
    """Ids 1 to n+1, the last one `end`."""
    http = http_of(serve, agent, through_flask=through_flask)
    body = text(http, Accept=FULL)
    head, end = body[:-2].rsplit("\n\n", 1)
    assert head == (
        ': open\nretry: 1000\n\nid: 1\ndata: "a"\n\nid: 2\ndata: "b"\n\nid: 3\ndata: "c"'
    )
    lines = end.splitlines()
    assert lines[:2] == ["id: 4", "event: end"]
    facts = json.loads(lines[2].removeprefix("data: "))
    assert (facts["status"], facts["events"], facts["confirmed"]) == (
        "succeeded",
        3,
        True,
    )


@pytest.mark.parametrize("agent", STREAMS)
@pytest.mark.parametrize("accept", [None, "*/*", "application/json"])
def test_bare_streams_have_data_and_comments_only(
    agent: Any, accept: str | None, serve: Serve
) -> None:
    """What clients of the field understand; a wildcard does not ask for more."""
    headers = {} if accept is None else {"Accept": accept}
    body = text(http_of(serve, agent), **headers)
    assert body == ': open\n\ndata: "a"\n\ndata: "b"\n\ndata: "c"\n\n: end\n\n'


def test_a_failure_is_an_error_event_and_then_the_end(serve: Serve) -> None:
    """In the full dialect; the bare one just stops after it."""
    http = http_of(serve, broken)
    events = text(http, Accept=FULL).split("\n\n")
    assert events[2].startswith("id: 2\nevent: error\ndata: ")
    error = json.loads(events[2].rpartition("data: ")[2])
    assert error["error"] == error["message"] == "no more"
    assert (error["error_type"], error["code"]) == ("ValueError", "invocation_failed")
    assert error["retryable"] is False
    assert error["request_id"]
    assert error["invocation_id"]
    assert events[3].startswith("id: 3\nevent: end\ndata: ")
    bare = text(http)
    assert bare == (
        ': open\n\ndata: "a"\n\n'
        'data: {"error":"no more","error_type":"ValueError","message":"no more"}\n\n'
    )


def test_chunks_may_name_events_and_texts_stay_on_one_line(serve: Serve) -> None:
    """Also empty ones, and ones with line ends."""

    def agent(request: Any) -> Iterator[Any]:
        yield Chunk({"t": 1}, event="tool", id="mine", retry=1.5)
        yield "two\nlines\u2028"
        yield ""

    body = text(http_of(serve, agent), Accept=FULL)
    assert 'id: 1\nevent: tool\nretry: 1500\ndata: {"t":1}\n\n' in body
    assert 'id: 2\ndata: "two\\nlines\u2028"\n\n' in body
    assert 'id: 3\ndata: ""\n\n' in body
    assert "mine" not in body


@pytest.mark.parametrize(
    ("accept", "is_stream"),
    [(FULL, True), (BOTH, False), ("text/event-stream, application/json", False)],
)
def test_a_plain_value_is_a_stream_only_if_nothing_else_is_taken(
    accept: str, is_stream: bool, serve: Serve
) -> None:
    """Then it is one chunk."""
    answer = http_of(serve, lambda request: 7).invoke({}, Accept=accept)
    if is_stream:
        assert b"id: 1\ndata: 7\n\nid: 2\nevent: end\n" in answer.body
    else:
        assert answer.json["result"] == 7


def test_a_client_that_takes_both_gets_a_stream_of_a_stream(serve: Serve) -> None:
    """In the full dialect."""
    assert "event: end" in text(http_of(serve, abc), Accept=BOTH)


def test_a_failure_without_a_stream_is_still_a_stream_for_who_wants_only_that(
    serve: Serve,
) -> None:
    """The head was sent when the handler was reached."""

    def agent(request: Any) -> Any:
        raise ValueError("no")

    http = http_of(serve, agent)
    body = text(http, Accept=FULL)
    assert "event: error" in body
    assert "event: end" in body
    assert http.invoke({}).status == 500


def test_a_wrong_payload_is_an_http_status_even_then(serve: Serve) -> None:
    """The handler is not reached."""
    from ppio_agent.wire.models import InvocationRequest

    def agent(request: InvocationRequest) -> Iterator[str]:
        yield "a"

    answer = http_of(serve, agent).invoke({"prompt": 5}, Accept=FULL)
    assert (answer.status, answer.json["metadata"]["code"]) == (400, "validation_error")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_reader_that_leaves_ends_the_stream(is_async: bool, serve: Serve) -> None:
    """Within 0.6 s of a silent handler, and its `finally` runs."""
    reasons: list[str | None] = []
    ended = threading.Event()

    def agent(request: Any, context: RequestContext) -> Iterator[str]:
        try:
            yield "first"
            context.sleep(60)
        finally:
            reasons.append(context.cancelled.reason)
            ended.set()

    async def async_agent(request: Any, context: RequestContext) -> AsyncIterator[str]:
        try:
            yield "first"
            await asyncio.sleep(60)
        finally:
            reasons.append(context.cancelled.reason)
            ended.set()

    http = http_of(serve, async_agent if is_async else agent)
    connection, lines = http.stream({})
    assert any(b"first" in line for line in lines)
    began = time.monotonic()
    hang_up(connection)
    assert ended.wait(10)
    assert time.monotonic() - began < 0.6 * SLOW
    assert reasons == ["disconnect"]


def test_a_reader_that_leaves_an_endless_stream_ends_it(serve: Serve) -> None:
    """The producer is held back first, and then closed."""
    ended = threading.Event()

    def agent(request: Any) -> Iterator[str]:
        try:
            while True:
                yield "x" * 1000
        finally:
            ended.set()

    connection, lines = http_of(serve, agent).stream({})
    next(lines)
    hang_up(connection)
    assert ended.wait(10)


def test_a_deadline_in_a_stream_is_an_error_event(serve: Serve, gate: Gate) -> None:
    """And the end says that user code still runs."""

    def agent(request: Any) -> Iterator[str]:
        yield "a"
        gate.stand()

    body = text(http_of(serve, agent), Accept=FULL, X_PPIO_Timeout="0.2")
    error, end = body.split("\n\n")[2:4]
    assert "invocation_timeout" in error
    facts = json.loads(end.rpartition("data: ")[2])
    assert (facts["status"], facts["confirmed"]) == ("timed_out", False)


def test_events_can_be_read_again_from_any_number(serve: Serve) -> None:
    """By header or query; what is no number of an event is refused."""
    http = http_of(serve, abc)
    path = f"/invocations/{http.invoke({}).headers['x-invocation-id']}/events"
    assert "id: 1\n" in http.get(path).body.decode()
    for answer in (http.get(path, Last_Event_ID="2"), http.get(f"{path}?after=2")):
        body = answer.body.decode()
        assert "id: 2\n" not in body
        assert 'id: 3\ndata: "c"\n\nid: 4\nevent: end\n' in body
        assert "idempotency-replayed" not in answer.headers
    for wrong in ("5", "x", "-1"):
        assert http.get(path, Last_Event_ID=wrong).status == 400
    assert http.get(path, Last_Event_ID="4").body == b": open\nretry: 1000\n\n"


def test_the_head_of_a_live_stream_reads_nothing_of_it(
    serve: Serve, gate: Gate, through_flask: bool
) -> None:
    """Nobody is left behind who holds the producer back."""

    def agent(request: Any) -> Iterator[str]:
        yield "a"
        gate.stand()

    app = make_app(through_flask=through_flask)
    app.entrypoint(agent)
    http = serve(app)
    place = http.invoke({}, Prefer="respond-async").headers["location"]
    gate.wait_reached()
    answer = http.request("HEAD", f"{place}/events")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    wait_until(lambda: Scraped(http)("readers") == 0)


def test_events_that_are_no_longer_kept_are_gone(serve: Serve) -> None:
    """410, never a gap."""

    def agent(request: Any) -> Iterator[int]:
        yield from range(3000)

    http = http_of(serve, agent)
    early = http.invoke({}, Prefer="respond-async")
    path = early.headers["location"]
    wait_until(lambda: http.get(path).json["state"] == "succeeded")
    answer = http.get(f"{path}/events")
    assert (answer.status, answer.json["code"]) == (410, "replay_gone")
    first = http.get(path).json["events"]["first"]
    assert http.get(f"{path}/events?after={first - 1}").status == 200


def test_a_retry_of_a_stream_joins_it(serve: Serve, gate: Gate) -> None:
    """From the first event, or after the one it has; the handler starts once."""
    starts = []

    def agent(request: Any) -> Iterator[str]:
        starts.append(1)
        yield "a"
        gate.stand()
        yield "b"

    http = http_of(serve, agent)
    key = {**SSE, "Idempotency-Key": "k"}
    first, lines = http.stream({}, key)
    gate.wait_reached()
    second, others = http.stream({}, {**key, "Last-Event-ID": "1"})
    hang_up(first)
    del lines
    gate.open()
    body = b"".join(others).decode()
    second.close()
    assert starts == [1]
    assert "id: 1\n" not in body
    assert 'id: 2\ndata: "b"\n' in body
    replay = http.invoke({}, **{k.replace("-", "_"): v for k, v in key.items()})
    assert replay.headers["idempotency-replayed"] == "true"
    assert 'id: 1\ndata: "a"\n' in replay.body.decode()
    far = http.invoke({}, Idempotency_Key="k", Accept=FULL, Last_Event_ID="9")
    assert (far.status, far.json["code"]) == (400, "validation_error")


def test_many_chunks_arrive_in_order(serve: Serve) -> None:
    """More than any buffer holds."""

    def agent(request: Any) -> Iterator[int]:
        yield from range(20_000)

    body = text(http_of(serve, agent))
    found = [int(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    assert found == list(range(20_000))
