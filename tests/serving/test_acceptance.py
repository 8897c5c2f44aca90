"""The acceptance of the agent app, one test for each of its numbered sentences.

Sentences about one part are held by the tests of that part: `HELD_ELSEWHERE` names them.
Times are those of the sentences; a busy machine gets what `PPIO_TEST_SLOW` says, and the
benchmark has the exact figures.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import frozen

from ppio_agent.agent import RequestContext
from ppio_agent.serving import ApiKeyAuth
from ppio_agent.wire.sse import Heartbeat, SSEEvent, SSEFramer
from tests.serving.conftest import Serve
from tests.serving.support import (
    SSE,
    Answer,
    Gate,
    in_background,
    make_app,
)
from tests.support import SLOW, wait_until

HELD_ELSEWHERE = {
    1: [
        "test_gunicorn.py::test_a_shape_gives_the_same_everywhere",
        "test_gunicorn.py::test_three_required_parameters_are_no_shape",
    ],
    7: [
        "test_disconnect.py::test_a_stream_that_was_cut_is_read_on",
        "test_disconnect.py::test_others_end_with_their_client",
    ],
    8: ["test_disconnect.py::test_a_joined_retry_is_answered_when_the_first_is_lost"],
    15: [
        "test_hmac_auth.py::test_the_vector_of_the_specification_is_admitted",
        "test_hmac_auth.py::test_a_changed_request_is_not_admitted",
        "test_hmac_auth.py::test_a_signature_of_another_time_has_expired",
        "test_hmac_auth.py::test_a_request_is_admitted_once",
        "test_auth.py::test_no_key_secret_or_signature_is_ever_shown",
    ],
    18: [
        "test_drain.py::test_what_runs_is_finished_and_nothing_else_begins",
        "test_drain.py::test_code_that_ignores_everything_is_left_behind",
    ],
    20: [
        "test_metrics.py::test_an_idle_app_tells_every_metric",
        "test_openapi.py::test_what_the_app_answers_is_what_it_says",
        "test_playground.py::test_only_a_browser_gets_the_page",
        "test_playground.py::test_nothing_comes_from_elsewhere",
    ],
    21: ["test_disconnect.py::test_who_takes_nothing_is_dropped"],
    22: [
        "test_logs.py::test_every_answer_carries_the_request_id",
        "test_logs.py::test_records_of_an_agent_carry_the_ids_of_its_answer",
    ],
}
"""What proves a sentence, or the part of it that is not here."""


def test_every_sentence_has_its_test() -> None:
    """Here, or where it is said to be."""
    here = Path(__file__).parent
    own = "".join(path.read_text() for path in here.glob("test_acceptance*.py"))
    found = {int(n) for n in re.findall(r"\ndef test_(\d\d)_", own)}
    assert found | HELD_ELSEWHERE.keys() == set(range(1, 23))
    for place in chain.from_iterable(HELD_ELSEWHERE.values()):
        name, _, test = place.partition("::")
        assert f"\ndef {test}(" in (here / name).read_text(), place


def timed(call: Callable[[], Answer]) -> tuple[Answer, float]:
    began = time.monotonic()
    answer = call()
    return answer, time.monotonic() - began


def test_02_pings_look_ups_and_cancels_never_wait_for_handlers(
    serve: Serve, gate: Gate
) -> None:
    """With every slot held by code that blocks."""
    app = make_app(max_concurrency=4)
    app.entrypoint(lambda request: gate.stand())
    http = serve(app)
    for n in range(4):
        in_background(functools.partial(http.invoke, {}, X_Invocation_Id=f"i{n}"))
    gate.wait_reached(4)
    pings = [timed(lambda: http.get("/ping")) for _ in range(100)]
    assert {(p.status, p.json["status"]) for p, _ in pings} == {(200, "HealthyBusy")}
    record, looking = timed(lambda: http.get("/invocations/i0"))
    cancel, asking = timed(lambda: http.request("POST", "/invocations/i0/cancel"))
    assert (record.json["state"], cancel.status) == ("running", 202)
    assert max(looking, asking, *(took for _, took in pings)) < 0.5 * SLOW
    gate.open()
    wait_until(lambda: http.get("/ping").json["status"] == "Healthy")


def test_03_of_three_calls_at_once_one_is_refused(serve: Serve, gate: Gate) -> None:
    """One runs, one waits, the third is told to come back; then both end."""
    app = make_app(max_concurrency=1, max_queue=1)
    app.entrypoint(lambda request: gate.stand())
    http = serve(app)
    running = in_background(lambda: http.invoke({"n": 1}))
    gate.wait_reached()
    waiting = in_background(lambda: http.invoke({"n": 2}))
    wait_until(lambda: http.lane("invoke")["waiting"] == 1)
    refused, took = timed(lambda: http.invoke({"n": 3}))
    assert took < 0.05 * SLOW + 0.1
    assert (refused.status, refused.json["code"]) == (503, "server_busy")
    assert int(refused.headers["retry-after"]) >= 1
    gate.open()
    assert [running().status, waiting().status] == [200, 200]


token: contextvars.ContextVar[str] = contextvars.ContextVar("token", default="nobody")


def test_04_no_request_sees_the_variables_of_another(serve: Serve) -> None:
    """Over a thousand requests on two threads; one set before a yield stays set."""
    app = make_app(max_concurrency=2, max_queue=50)

    def sync_agent(request: Any, context: RequestContext) -> Iterator[str]:
        seen = [token.get()]
        token.set(request["user"])
        yield seen[0]
        assert app.context is context
        yield token.get()

    async def async_agent(request: Any, context: RequestContext) -> AsyncIterator[str]:
        seen = [token.get()]
        token.set(request["user"])
        yield seen[0]
        assert app.context is context
        await asyncio.sleep(0)
        yield token.get()

    app.entrypoint(name="sync")(sync_agent)
    app.entrypoint(name="async")(async_agent)
    http = serve(app)

    def caller(user: str) -> set[str]:
        return {
            http.invoke({"user": user}, f"/invocations?entrypoint={name}").body.decode()
            for _ in range(125)
            for name in ("sync", "async")
        }

    waits = {user: in_background(functools.partial(caller, user)) for user in "ABCD"}
    for user, wait in waits.items():
        expected = f': open\n\ndata: "nobody"\n\ndata: "{user}"\n\n: end\n\n'
        assert wait() == {expected}


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
def test_05_a_silent_handler_is_heard_at_once_and_beats(
    accept: str, serve: Serve, gate: Gate
) -> None:
    """And what a middleware says of the connection does not break the answer."""
    app = make_app(heartbeat=0.2)

    @app.middleware
    def keep_alive(request: Any, call_next: Any) -> Any:
        response = call_next()
        response.headers["Connection"] = "keep-alive"
        return response

    @app.entrypoint
    def agent(request: Any) -> Iterator[str]:
        gate.stand()
        yield "late"

    http = serve(app)
    began = time.monotonic()
    connection, response = http.open("POST", "/invocations", b"{}", {"Accept": accept})
    assert (response.status, response.getheader("Connection")) == (200, None)
    lines = iter(response.readline, b"")
    assert next(lines) == b": open\n"
    assert time.monotonic() - began < 0.1 * SLOW + 0.1
    beats = (time.monotonic() for line in lines if line == b": hb\n")
    pauses = [b - a for a, b in pairwise([next(beats) for _ in range(4)])]
    assert all(0.1 < pause < 0.2 * SLOW + 0.3 for pause in pauses), pauses
    gate.open()
    assert any(b"late" in line for line in lines)
    connection.close()


def three_then(error: bool) -> Callable[[Any], Iterator[int]]:
    def agent(request: Any) -> Iterator[int]:
        yield from (1, 2, 3)
        if error:
            raise ValueError("no more")

    return agent


def test_06_full_streams_number_all_and_end_bare_ones_say_data_only(
    serve: Serve, through_flask: bool
) -> None:
    """Also after an exception, which is an `error` before the `end`."""
    app = make_app(through_flask=through_flask)
    for name in ("good", "bad"):
        app.entrypoint(name=name)(three_then(name == "bad"))
    http = serve(app)
    for name, names in (
        ("good", ["message"] * 3 + ["end"]),
        ("bad", ["message"] * 3 + ["error", "end"]),
    ):
        path = f"/invocations?entrypoint={name}"
        framer = SSEFramer()
        found = framer.feed(http.invoke({}, path, **SSE).body)
        events = [event for event in found if isinstance(event, SSEEvent)]
        assert [event.event for event in events] == names
        assert [event.id for event in events] == [f"{n + 1}" for n in range(len(names))]
        assert framer.finish() is None
        for line in http.invoke({}, path).body.split(b"\n"):
            assert line[:6] == b"data: " or line[:2] in (b": ", b"")


def test_08_ten_parallel_calls_with_one_key_are_one_run(serve: Serve) -> None:
    """One start, ten equal results, all later ones replayed; another body: 409."""
    app = make_app()
    starts: list[int] = []
    gate = Gate()

    @app.entrypoint
    def agent(request: Any) -> Any:
        starts.append(1)
        gate.stand()
        return {"n": len(starts)}

    http = serve(app)
    ask = functools.partial(http.invoke, {"a": 1}, Idempotency_Key="k")
    calls = [in_background(ask) for _ in range(10)]
    gate.wait_reached()
    gate.open()
    answers = [*(call() for call in calls), ask()]
    assert starts == [1]
    assert {(a.status, json.dumps(a.json["result"])) for a in answers} == {
        (200, '{"n": 1}')
    }
    replayed = [a.headers.get("idempotency-replayed") for a in answers]
    assert (replayed.count(None), replayed.count("true")) == (1, 10)
    conflict = http.invoke({"a": 2}, Idempotency_Key="k")
    assert (conflict.status, conflict.json["code"]) == (409, "idempotency_conflict")


def test_09_a_deadline_is_kept_whatever_the_handler_does(
    serve: Serve, gate: Gate, through_flask: bool
) -> None:
    """504 at once; the slot stays taken until user code has ended, and that is late."""
    app = make_app(timeout=0.5, through_flask=through_flask)
    app.entrypoint(lambda request: gate.stand())
    http = serve(app)
    answer, took = timed(lambda: http.invoke({}))
    assert answer.status == 504
    assert 0.5 <= took < 0.6 * SLOW + 0.2
    metadata = answer.json["metadata"]
    assert (metadata["code"], metadata["confirmed"]) == ("invocation_timeout", False)
    path = f"/invocations/{answer.headers['x-invocation-id']}"
    record = http.get(path).json
    assert (record["state"], record["confirmed"]) == ("timed_out", False)
    assert record["handler_running"]
    assert http.get("/ping").json["status"] == "HealthyBusy"
    gate.open()
    wait_until(lambda: http.get(path).json["confirmed"])
    assert http.get(path).json["late"]
    assert http.get("/ping").json["status"] == "Healthy"


def test_10_a_cancel_ends_a_sleeping_handler(serve: Serve, through_flask: bool) -> None:
    """Within 100 ms; a second one finds it ended; nobody else knows of it."""
    keys = {"anna": "key-a", "ben": "key-b"}
    app = make_app(through_flask=through_flask, auth=ApiKeyAuth(keys))
    reached = threading.Event()

    @app.entrypoint
    def agent(request: Any, context: RequestContext) -> None:
        reached.set()
        context.sleep(60)

    http = serve(app)
    anna, ben = {"X-API-Key": "key-a"}, {"X-API-Key": "key-b"}
    mine = {"X_API_Key": "key-a", "X_Invocation_Id": "i1"}
    call = in_background(lambda: http.invoke({}, **mine))
    assert reached.wait(10)
    path = "/invocations/i1/cancel"
    assert http.request("POST", path, headers=ben).status == 404
    began = time.monotonic()
    assert http.request("POST", path, headers=anna).status == 202
    answer = call()
    assert time.monotonic() - began < 0.1 * SLOW + 0.2
    assert (answer.status, answer.json["metadata"]["code"]) == (499, "cancelled")
    record = http.request("GET", "/invocations/i1", headers=anna).json
    assert (record["state"], record["confirmed"]) == ("cancelled", True)
    assert record["cancel"]["reason"] == "client"
    for _ in range(2):
        again = http.request("POST", path, headers=anna)
        assert again.status == 200
        assert again.json == {"id": "i1", "state": "cancelled", "confirmed": True}
    unknown = http.request("POST", "/invocations/i2/cancel", headers=anna)
    assert (unknown.status, unknown.json["code"]) == (404, "invocation_not_found")


def test_11_an_early_answer_comes_before_the_outcome(
    serve: Serve, gate: Gate, through_flask: bool
) -> None:
    """202 with the place to look; the client may leave."""
    app = make_app(through_flask=through_flask)

    @app.entrypoint
    def agent(request: Any) -> Iterator[str]:
        gate.stand()
        yield from "abc"

    http = serve(app)
    early, took = timed(lambda: http.invoke({}, Prefer="respond-async"))
    assert took < 0.05 * SLOW + 0.1
    assert early.status == 202
    assert early.headers["preference-applied"] == "respond-async"
    assert early.headers["retry-after"] == "1"
    path = early.headers["location"]
    assert early.json["state"] in ("pending", "running")
    gate.open()
    wait_until(lambda: http.get(path).json["state"] == "succeeded")
    assert http.get(path).json["result"] == "abc"
    found = SSEFramer().feed(http.get(f"{path}/events").body)
    events = [(e.id, e.event) for e in found if not isinstance(e, Heartbeat)]
    assert events == [
        ("1", "message"),
        ("2", "message"),
        ("3", "message"),
        ("4", "end"),
    ]


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_12_the_largest_body_is_exact(
    chunked: bool, serve: Serve, through_flask: bool
) -> None:
    """1 MiB is taken, one byte more is 413, however it is sent."""
    app = make_app(through_flask=through_flask)
    app.entrypoint(lambda request: len(request["prompt"]))
    http = serve(app)
    for more, status in ((0, 200), (1, 413)):
        body = json.dumps("x" * (1_048_576 - 2 + more)).encode()
        parts = iter([body[:1000], body[1000:]])
        answer = http.request("POST", "/invocations", parts if chunked else body)
        assert answer.status == status
    problem = answer.json
    assert (problem["code"], problem["limit"]) == ("request_too_large", 1_048_576)
    assert problem["request_id"] == answer.headers["x-request-id"]


FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_13_any_json_reaches_the_handler_as_an_object_and_nothing_else_does(
    serve: Serve, through_flask: bool
) -> None:
    """What is refused starts nothing."""
    app = make_app(through_flask=through_flask)
    seen: list[Any] = []
    app.entrypoint(seen.append)
    http = serve(app)
    assert http.invoke([1]).status == http.invoke("hi").status == 200
    assert seen == [{"input": [1]}, {"prompt": "hi"}]
    deep = b"[" * 200 + b"]" * 200
    for body in (b"", b"null", b'{"a":NaN}', b"\x80\x81", deep):
        assert http.request("POST", "/invocations", body).status == 400, body
    assert http.request("POST", "/invocations", b"a=1", FORM).status == 415
    assert len(seen) == 2


@frozen
class Fact:
    n: int


def cycle() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (float("nan"), "$"),
        ({"a": [b"x"]}, "$.a[0]"),
        ({1: 2}, "$"),
        (cycle(), "$.self"),
        (object(), "$"),
    ],
    ids=["nan", "bytes", "key", "cycle", "object"],
)
def test_14_what_has_no_json_form_is_named_and_never_sent(
    value: Any, place: str, serve: Serve
) -> None:
    """As a result 500; as a third chunk an error after the two. An object goes."""
    app = make_app()
    app.entrypoint(lambda request: value)
    app.entrypoint(name="third")(lambda request: iter([1, 2, value]))
    app.entrypoint(name="attrs")(lambda request: Fact(3))
    http = serve(app)
    answer = http.invoke({})
    assert answer.status == 500
    assert answer.json["metadata"]["code"] == "not_serializable"
    assert answer.json["error"].startswith(f"{place}: ")
    found = SSEFramer().feed(
        http.invoke({}, "/invocations?entrypoint=third", **SSE).body
    )
    events = [event for event in found if isinstance(event, SSEEvent)]
    assert [e.event for e in events] == ["message", "message", "error", "end"]
    error = json.loads(events[2].data)
    assert (error["code"], "chunk 3" in error["error"]) == ("not_serializable", True)
    attrs = http.invoke({}, "/invocations?entrypoint=attrs")
    assert (attrs.status, attrs.json["result"]) == (200, {"n": 3})
