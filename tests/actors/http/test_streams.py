"""Streams of requests: both dialects, failures, and how they are gone on with."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ppio_agent.actors import ActorId, InMemoryStateStorage, InProcessActorRuntime
from ppio_agent.actors.http.streams import after_of
from ppio_agent.exceptions import InvalidMessageError
from tests.actors.http.conftest import Serve
from tests.actors.http.support import SSE, Gate, Http, said


def told(events: Any) -> list[tuple[str | None, str, Any]]:
    """Return id, name and data of events; comments are left out."""
    return [
        (event.get("id"), event.get("event", "message"), json.loads(event["data"]))
        for event in events
        if "data" in event
    ]


def test_a_run_is_streamed(shared: Http) -> None:
    """Each piece with its number, then the body of the answer, then the end."""
    body = said("a b", conversation_id="streamed")
    connection, events = shared.events("POST", "/agents/words/run", body)
    found = told(events)
    connection.close()
    assert [(number, name) for number, name, _ in found] == [
        ("1", "message"), ("2", "message"), ("3", "message"), ("4", "end"),
    ]  # fmt: skip
    assert [data for *_, data in found[:2]] == [
        {"status": "pending", "data": "a"},
        {"status": "pending", "data": "b"},
    ]
    last = found[2][2]
    assert last["status"] == "completed"
    assert last["data"]["conversation_id"] == "streamed"
    assert last["data"]["messages"][0]["content"] == "ab"
    assert found[3][2] == {"status": "completed"}


def test_older_clients_get_data_lines_only(shared: Http) -> None:
    """And comments, which they pass over."""
    answer = shared.run("words?stream=true", said("a"))
    assert answer.status == 404  # the query is no part of the name
    answer = shared.post("/agents/words/run?stream=true", said("a"))
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = {line.partition(b":")[0] for line in answer.body.splitlines() if line}
    assert kinds == {b"", b"data"}
    data = [json.loads(x[6:]) for x in answer.body.splitlines() if x[:4] == b"data"]
    assert [item["status"] for item in data] == ["pending", "completed"]


@pytest.mark.parametrize(("after", "rest"), [(3, "d e"), (5, ""), (6, None), (7, None)])
def test_a_stream_that_was_cut_is_gone_on_with(
    shared: Http, after: int, rest: str | None
) -> None:
    """Without loss or repeat, by the number of the last event that came."""
    body = said("a b c d e", conversation_id=f"cut-{after}")
    connection, response = shared.open(
        "POST", "/agents/words/run", json.dumps(body).encode(),
        {**SSE, "Content-Type": "application/json"},
    )  # fmt: skip
    message_id = response.getheader("X-Invocation-Id")
    lines = 0
    while lines < 3:
        lines += response.readline().startswith(b"data")
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    place = f"/actors/v1/words/cut-{after}/{message_id}?streaming=true"
    shared.get(f"{place[:-15]}?blocking=true")
    resumed = shared.get(place, Last_Event_ID=str(after))
    assert resumed.status == 200
    found = resumed.body.decode().split("\n\n")
    data = [json.loads(x.split("data: ")[1]) for x in found if "data: " in x]
    words = [item["data"] for item in data if item["status"] == "pending"]
    assert " ".join(words) == (rest or "")
    ends = [x for x in found if "event: end" in x]
    assert len(ends) == (0 if after == 7 else 1)
    assert "data" in data[-2] if rest is not None else len(data) <= 1


@pytest.mark.parametrize("after", ["8", "x", "-1", "1e3"])
def test_what_was_not_sent_cannot_be_gone_on_after(shared: Http, after: str) -> None:
    """400, also where it is no number."""
    body = said("a b c d e", conversation_id="not-sent")
    shared.run("words", body, Idempotency_Key="one")
    place = "/actors/v1/words/not-sent/one?streaming=true"
    answer = shared.get(place, Last_Event_ID=after)
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


def test_a_number_is_known_only_when_it_was_sent(serve: Serve, gate: Gate) -> None:
    """Also where the request has ended since it was looked at."""
    http = serve()
    body = said("a b .", conversation_id="known")
    http.run("words", body, Idempotency_Key="one", Prefer="respond-async")
    gate.wait_reached()
    handle = http.runtime.client().get_request(ActorId("words", "known"), "one")
    ended = _EndsMeanwhile(handle, gate)
    for after, known in ((6, False), (5, False), (4, True)):
        exchange: Any = SimpleNamespace(environ={"HTTP_LAST_EVENT_ID": str(after)})
        if known:
            assert after_of(exchange, ended) == after
        else:
            with pytest.raises(InvalidMessageError, match="no event"):
                after_of(exchange, ended)


class _EndsMeanwhile:
    """A handle whose request ends after it was said not to have."""

    def __init__(self, handle: Any, gate: Gate) -> None:
        self._handle, self._gate = handle, gate

    def try_get_response(self) -> None:
        return None

    def read_updates(self, after: int, timeout: float | None) -> Any:
        self._gate.open()
        self._handle.get_response(20)
        return self._handle.read_updates(after, timeout)

    def last_seen(self) -> int:
        return int(self._handle.last_seen())


class _Forgetful(InMemoryStateStorage):
    """A durable store that gets no steps for a while."""

    durable = True
    fails = True

    def append_progress(self, *args: Any) -> None:
        if self.fails:
            raise OSError("disk")
        super().append_progress(*args)


@pytest.mark.parametrize("again", [True, False])
def test_a_stream_goes_on_after_what_no_store_has_got(
    serve: Serve, *, again: bool
) -> None:
    """As the process ended that had told it; whether the run begins again or not."""

    def dies(request: dict[str, Any], context: Any) -> Iterator[str]:
        yield from "abcd"
        context.sleep(20)

    store, place = _Forgetful(), ActorId("words", "died")
    with InProcessActorRuntime(store) as runtime:
        runtime.register_agent("words", dies)
        handle = runtime.client().send_request(place, "run", said("x"), "one")
        while not handle.read_updates(3, 10.0):
            pass
        runtime.stop(0.0)
    store.fails = False
    if not again:
        for _ in range(3):  # each loses the turn of the one before
            lease = store.claim("w", place)
            assert lease is not None
            taken = store.take(lease, crash_attempts=2)
        assert taken.record is None
        store.release(lease)
    http = serve(InProcessActorRuntime(store))
    path = "/actors/v1/words/died/one?streaming=true"
    connection, events = http.events("GET", path, None, {"Last-Event-ID": "4"})
    found = [(name, data.get("status")) for _, name, data in told(events)]
    connection.close()
    again_told = [("message", "pending")] * 2 + [("message", "completed")]
    assert found[:-1] == (again_told if again else [("error", 500)])
    assert found[-1][0] == "end"
    assert http.get(path, Last_Event_ID="9999").status == 400


@pytest.mark.parametrize("number", ["5", "x"])
def test_a_run_begins_no_stream_in_the_middle(shared: Http, number: str) -> None:
    """What is sent by it is told from its beginning, whatever number is said."""
    headers = {**SSE, "Last-Event-ID": number}
    connection, events = shared.events("POST", "/agents/words/run", said("a"), headers)
    assert [found for found, *_ in told(events)] == ["1", "2", "3"]
    connection.close()


def test_a_failed_run_ends_with_a_problem(shared: Http) -> None:
    """In the full dialect as an event of its own."""
    connection, events = shared.events("POST", "/agents/broken/run", said())
    (_, first, problem), (_, last, end) = told(events)
    connection.close()
    assert (first, last) == ("error", "end")
    assert (problem["status"], problem["code"]) == (500, "invocation_failed")
    assert end == {"status": "failed"}
    bare = shared.post("/agents/broken/run?stream=true", said())
    assert b'data: {"error":' in bare.body
    assert b"secret" not in bare.body


def test_a_stream_begins_at_once(serve: Serve, gate: Gate) -> None:
    """Before the agent has said anything; each piece comes as it is given."""
    http = serve()
    body = said("a . b", conversation_id="at-once")
    connection, events = http.events("POST", "/agents/words/run", body)
    assert next(events)["retry"] == "1000"
    assert json.loads(next(events)["data"])["data"] == "a"
    place = "/actors/v1/words/at-once"
    running = http.get(place).json["running"]
    watching, seen = http.events("GET", f"{place}/{running}?streaming=true")
    gate.open()
    rest = told(events)
    assert [data["data"] for *_, data in rest[:1]] == ["b"]
    assert told(seen)[1:] == rest
    connection.close()
    watching.close()


def test_a_stream_ends_when_the_runtime_stops(serve: Serve, gate: Gate) -> None:
    """It says so, instead of breaking off."""
    http = serve()
    connection, events = http.events("POST", "/agents/slow/run", said())
    gate.wait_reached()
    http.runtime.stop(drain=0.0)
    *_, (_, first, problem), (_, last, _) = told(events)
    connection.close()
    assert (first, last) == ("error", "end")
    assert problem["code"] in ("cancelled", "runtime_stopped")
