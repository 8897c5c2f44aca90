"""Actors by their addresses: look, send, wait, cancel, delete."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import InProcessActorRuntime, RuntimeOptions
from tests.actors.http.conftest import Serve
from tests.actors.http.support import ENDS, SSE, Gate, Http, said
from tests.serving.support import in_background
from tests.support import wait_until

BODY = {"method": "add", "params": {"by": 1}}


def test_a_request_to_any_actor_is_sent_and_looked_up(shared: Http) -> None:
    """With what it was given, and when."""
    place = "/actors/v1/counter/a/m-1"
    sent = shared.post(place, BODY, Prefer="wait=20")
    assert sent.status == 200
    assert sent.json == shared.get(place).json
    body = sent.json
    assert body.pop("created_at") <= body.pop("started_at") <= body.pop("finished_at")
    assert body == {
        "actor_id": "counter/a",
        "message_id": "m-1",
        "status": "completed",
        "data": {"count": 1, "params": {"by": 1}},
        "error": None,
        "attempt": 1,
    }


def test_it_is_run_once(shared: Http) -> None:
    """The same again gives the same; something else under its id is a conflict."""
    place = "/actors/v1/counter/once/m-1"
    first, second = (shared.post(place, BODY, Prefer="wait=20") for _ in range(2))
    assert first.json == second.json
    other = shared.post(place, {**BODY, "params": None})
    assert (other.status, other.json["code"]) == (409, "idempotency_conflict")


def test_a_request_is_accepted_before_its_end(serve: Serve, gate: Gate) -> None:
    """202, and where to look."""
    http = serve()
    place = "/actors/v1/slow/a/m-1"
    sent = http.post(place, {"method": "run", "params": said()})
    assert (sent.status, sent.json["status"]) == (202, "pending")
    assert sent.headers["location"] == place
    waited = http.get(f"{place}?blocking=true&timeout=0.05")
    assert (waited.status, waited.json["status"]) == (200, "pending")
    gate.open()
    assert http.get(f"{place}?blocking=true").json["status"] == "completed"


def test_a_failed_request_says_why(shared: Http) -> None:
    """As it is looked up it is no error."""
    found = shared.post(
        "/actors/v1/counter/f/m-1", {"method": "fail"}, Prefer="wait=20"
    )
    assert (found.status, found.json["status"]) == (200, "failed")
    assert found.json["data"] is None
    assert found.json["error"].keys() == {"error", "code", "retryable"}
    assert b"secret" not in found.body


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/actors/v1/nope/a", None, (404, "agent_not_found")),
        ("GET", "/actors/v1/hidden/a", None, (404, "agent_not_found")),
        ("POST", "/actors/v1/hidden/a/m-1", BODY, (404, "agent_not_found")),
        ("GET", "/actors/v1/counter/nobody", None, (404, "not_found")),
        ("DELETE", "/actors/v1/counter/nobody", None, (404, "not_found")),
        ("GET", "/actors/v1/counter/nobody/m-1", None, (404, "request_not_found")),
        (
            "POST",
            "/actors/v1/counter/nobody/m-1:cancel",
            None,
            (404, "request_not_found"),
        ),
        ("POST", "/actors/v1/counter/a%20b/m-1", BODY, (422, "invalid_request")),
        ("POST", f"/actors/v1/counter/{'x' * 201}/m-1", BODY, (422, "invalid_request")),
        ("POST", "/actors/v1/counter/a/m%201", BODY, (422, "invalid_request")),
        ("POST", "/actors/v1/counter/a/m-1", {}, (422, "invalid_request")),
        ("POST", "/actors/v1/counter/a/m-1", {"method": 1}, (422, "invalid_request")),
        ("POST", "/actors/v1/counter/a/m-1", {"method": ""}, (422, "invalid_request")),
        ("POST", "/actors/v1/counter/a/m-1", b"{", (400, "invalid_request")),
        ("PUT", "/actors/v1/counter/a/m-1", None, (405, "method_not_allowed")),
        ("GET", "/actors/v1/counter", None, (404, "not_found")),
    ],
)
def test_what_cannot_be_asked_is_a_problem(
    shared: Http, method: str, path: str, body: Any, expected: tuple[int, str]
) -> None:
    """With a code that says which."""
    if method == "POST":
        answer = shared.post(path, body)
    else:
        answer = shared.request(method, path)
    assert (answer.status, answer.json["code"]) == expected
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("timeout", ["x", "-1", "nan", "inf"])
def test_a_time_to_wait_has_to_be_one(shared: Http, timeout: str) -> None:
    """422, and by its place."""
    shared.post("/actors/v1/counter/t/m-1", BODY, Prefer="wait=20")
    place = f"/actors/v1/slow/t-{timeout}/m-1"
    shared.post(place, {"method": "run", "params": said()})
    answer = shared.get(f"{place}?blocking=true&timeout={timeout}")
    assert answer.status == 422
    assert answer.json["errors"][0]["loc"] == ["query", "timeout"]
    assert shared.post(f"{place}:cancel").status == 204


@pytest.mark.parametrize("end", sorted(ENDS))
def test_whatever_an_actor_gave_can_be_looked_up(shared: Http, end: str) -> None:
    """A failure has its three members, if need be those of its status."""
    place = f"/actors/v1/counter/ends/{end}"
    call = {"method": "end", "params": {"as": end}}
    sent = shared.post(place, call, Prefer="wait=20")
    assert (sent.status, sent.headers["x-invocation-id"]) == (200, end)
    found = shared.get(place).json
    assert found["data"] is None
    streamed = shared.get(f"{place}?streaming=true").body
    assert b"event: end" in streamed
    if end == "nothing":
        assert (found["status"], found["error"]) == ("completed", None)
        return
    error = found["error"]
    assert (error["code"], error["retryable"]) == ("actor_failed", False)
    assert isinstance(error["error"], str)
    assert b"event: error" in streamed


def test_a_result_that_is_no_answer_is_told_so(shared: Http) -> None:
    """As a failure with its id; a stream of it ends."""
    answer = shared.run("counter", said())
    assert (answer.status, answer.json["code"]) == (500, "invalid_result")
    assert answer.headers["x-invocation-id"]
    streamed = shared.run("counter", said(), **SSE).body
    assert b'"code":"invalid_result"' in streamed
    assert b"event: end" in streamed


def test_those_who_wait_hold_up_nobody(serve: Serve, gate: Gate) -> None:
    """What they wait for can be looked up and cancelled by others."""
    http = serve(InProcessActorRuntime(options=RuntimeOptions(workers=2)))
    place = "/actors/v1/slow/a/m-1"
    http.post(place, {"method": "run", "params": said()})
    gate.wait_reached()
    waits = [
        in_background(lambda: http.get(f"{place}?blocking=true")) for _ in range(4)
    ]
    streams = [http.events("GET", f"{place}?streaming=true") for _ in range(4)]
    wait_until(lambda: http.server._server._dispatcher.unfinished >= 8)
    wait_until(lambda: http.busy("read") == 0)
    assert http.get(place).json["status"] == "pending"
    assert http.post(f"{place}:cancel").status == 204
    assert {wait().json["status"] for wait in waits} == {"cancelled"}
    for connection, events in streams:
        assert list(events)[-1]["event"] == "end"
        connection.close()


def test_a_request_whose_actor_was_deleted_is_told_by_its_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has run, whatever became of its record."""
    http = serve()
    monkeypatch.setattr(http.runtime.store, "get_request", lambda *_: None)
    sent = http.post("/actors/v1/counter/gone/m-1", BODY, Prefer="wait=20")
    assert sent.status == 200
    assert sent.json["data"] == {"count": 1, "params": {"by": 1}}
    assert sent.json["created_at"] is None


def test_a_request_that_waits_is_cancelled_at_once(serve: Serve, gate: Gate) -> None:
    """One whose turn runs as soon as that ends; one that has ended is 409."""
    http = serve()
    body = {"method": "run", "params": said()}
    for name in ("m-1", "m-2"):
        assert http.post(f"/actors/v1/slow/a/{name}", body).status == 202
    gate.wait_reached()
    for name in ("m-2", "m-1"):
        assert http.post(f"/actors/v1/slow/a/{name}:cancel").status == 204
        assert http.get(f"/actors/v1/slow/a/{name}").json["status"] == "cancelled"
        again = http.post(f"/actors/v1/slow/a/{name}:cancel")
        assert (again.status, again.json["code"]) == (409, "request_ended")
        assert "cancelled" in again.json["detail"]


def test_a_turn_that_does_not_listen_is_not_said_to_be_stopped(
    serve: Serve, gate: Gate
) -> None:
    """202 after a second; the next turn begins when it has really ended."""
    http = serve()
    body = {"method": "run", "params": said()}
    http.post("/actors/v1/stubborn/a/m-1", body)
    gate.wait_reached()
    http.post("/actors/v1/stubborn/a/m-2", body)
    answer = http.post("/actors/v1/stubborn/a/m-1:cancel")
    assert answer.status == 202
    assert answer.json == {"confirmed": False, "status": "pending"}
    assert http.get("/actors/v1/stubborn/a/m-2").json["started_at"] is None
    gate.open()
    ended = http.get("/actors/v1/stubborn/a/m-1?blocking=true").json
    assert ended["status"] == "cancelled"
    assert http.get("/actors/v1/stubborn/a/m-2?blocking=true").json["status"] == (
        "completed"
    )


def test_an_actor_is_deleted_with_all_it_has(serve: Serve, gate: Gate) -> None:
    """But not while a turn of it runs."""
    http = serve()
    http.post("/actors/v1/counter/a/m-1", BODY, Prefer="wait=20")
    inspected = http.get("/actors/v1/counter/a").json
    assert inspected.pop("last_turn") is not None
    assert inspected == {
        "actor_id": "counter/a", "live": True, "queued": 0, "running": None,
    }  # fmt: skip
    assert http.delete("/actors/v1/counter/a").status == 204
    assert http.get("/actors/v1/counter/a/m-1").status == 404
    http.post("/actors/v1/stubborn/a/m-1", {"method": "run", "params": said()})
    gate.wait_reached()
    busy = http.delete("/actors/v1/stubborn/a")
    assert (busy.status, busy.json["code"]) == (409, "actor_busy")
    assert http.get("/actors/v1/stubborn/a").json["running"] == "m-1"
