"""The same app under gunicorn: one worker with threads."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.agent import as_handler
from tests.serving.hosts import KEY_HEADERS, Caller, Host, documented, gunicorn
from tests.serving.shapes import SHAPES, build
from tests.serving.support import JSON, SSE, Answer, Http, hang_up
from tests.support import SLOW, wait_until

PAYLOAD = {"n": 7, "other": [1]}
SETTINGS = {"max_concurrency": 4, "heartbeat": 0.2, "max_queue": 2}

REMEMBER = "/invocations?entrypoint=remember"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One gunicorn for all tests that do not end it."""
    folder = tmp_path_factory.mktemp("gunicorn")
    settings = ", ".join(f"{name}={value}" for name, value in SETTINGS.items())
    target = f"tests.serving.shapes:build({settings})"
    with gunicorn(target, folder, "--threads", "16") as host:
        yield host


@pytest.fixture(scope="module")
def ours() -> Iterator[Http]:
    """Our own server, with the same app."""
    app = build(**SETTINGS)
    with app.server(port=0) as server:
        yield Http(server)


@pytest.fixture
def http(host: Host) -> Caller:
    return host.http


def _normal(answer: Answer) -> Any:
    """Return what is the same for every call: status and outcome, ids left out."""
    if answer.headers["content-type"] == "application/json":
        envelope = answer.json
        assert list(envelope) == ["result", "status", "duration", "metadata", "error"]
        return answer.status, envelope["result"], envelope["status"], envelope["error"]
    body = answer.body.decode()
    head, _, end = body.partition("event: end\ndata: ")
    if end:
        facts = json.loads(end)
        head += f"{facts['status']} {facts['events']} {facts['confirmed']}"
    return answer.status, head


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_gives_the_same_everywhere(
    shape: str, http: Caller, ours: Http
) -> None:
    """In process, on our own server and under gunicorn; in all three forms."""
    _, expected = SHAPES[shape]
    path = f"/invocations?entrypoint={shape.replace(' ', '%20')}"
    body = json.dumps(PAYLOAD).encode()
    client = build(**SETTINGS).test_client()

    def in_process(accept: str) -> Answer:
        headers = {**KEY_HEADERS, **JSON, "Accept": accept}
        found = client.request("POST", path, data=body, headers=headers)
        return Answer(found.status_code, found.headers, found.text.encode())

    def by(caller: Http, accept: str) -> Answer:
        headers = {**KEY_HEADERS, **JSON, "Accept": accept}
        return caller.request("POST", path, body, headers)

    for accept in ("application/json", "text/event-stream", "*/*"):
        forms = [_normal(in_process(accept)), _normal(by(ours, accept))]
        assert _normal(by(http, accept)) == forms[0] == forms[1]
    promised = http.invoke(PAYLOAD, path, Prefer="respond-async")
    place = promised.headers["location"]
    wait_until(lambda: http.get(place).json["state"] == "succeeded")
    assert http.get(place).json["result"] == expected
    client.close()


def test_three_required_parameters_are_no_shape() -> None:
    """Said when it is registered, with the shapes that there are."""
    with pytest.raises(TypeError, match=r"\(request, context\)"):
        as_handler(lambda a, b, c: None)


def test_ids_are_kept_and_given(http: Caller) -> None:
    """On every answer, refusals included."""
    answer = http.invoke({}, X_Request_Id="r-1", X_Invocation_Id="mine")
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.headers["x-invocation-id"] == "mine"
    assert answer.headers["x-ppio-session-id"] == "s1"
    refused = http.get("/invocations/mine", X_API_Key="wrong")
    assert refused.status == 401
    assert refused.json["request_id"] == refused.headers["x-request-id"]
    assert http.get("/nothing").headers["x-ppio-agent"]


def test_a_key_is_asked_for(host: Host) -> None:
    """But not for the health check."""
    stranger = Http(host)
    assert stranger.invoke({}).json["code"] == "authentication_required"
    assert stranger.get("/ping").json["status"] == "Healthy"


def test_a_large_body_is_refused_and_the_largest_is_not(http: Caller) -> None:
    """With its length said, and chunked."""
    largest = b'{"a":"' + b"x" * (1_048_576 - 8) + b'"}'
    assert len(largest) == 1_048_576
    for body, status in ((largest, 200), (largest + b" ", 413)):
        assert http.request("POST", "/invocations", body, JSON).status == status
        chunks = [body[:500_000], body[500_000:]]
        answer = http.request("POST", "/invocations", chunks, JSON)
        assert answer.status == status
    assert answer.json["code"] == "request_too_large"


def test_a_body_in_broken_chunks_is_the_callers_fault(http: Caller) -> None:
    """And told as that, not as an error of ours."""
    request = (
        "POST /invocations HTTP/1.1\r\nHost: localhost\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in KEY_HEADERS.items())
        + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        "-7\r\n{}\r\n0\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", http.port), timeout=20) as client:
        client.sendall(request)
        answer = client.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 400 ")


def test_a_deadline_is_answered_when_it_passes(http: Caller) -> None:
    """Whatever the handler does; the record says that it still runs."""
    began = time.monotonic()
    answer = http.invoke({"seconds": 1.0, "stuck": True}, X_PPIO_Timeout="0.2")
    assert time.monotonic() - began < 0.9 * SLOW
    assert (answer.status, answer.json["metadata"]["confirmed"]) == (504, False)
    place = f"/invocations/{answer.headers['x-invocation-id']}"
    assert http.get(place).json["state"] == "timed_out"
    wait_until(lambda: http.get(place).json["late"] is True)


def test_a_key_runs_once(http: Caller) -> None:
    """Calls at the same time join, later ones get the stored answer."""
    answers: list[Answer] = []
    callers = [
        start_thread(
            "caller",
            lambda: answers.append(http.invoke({"seconds": 0.3}, Idempotency_Key="k")),
        )
        for _ in range(5)
    ]
    for caller in callers:
        caller.join(20)
    answers.append(http.invoke({"seconds": 0.3}, Idempotency_Key="k"))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.headers["x-invocation-id"] for answer in answers}) == 1
    replayed = [a for a in answers if "idempotency-replayed" in a.headers]
    assert len(replayed) == 5
    assert http.invoke({"seconds": 0}, Idempotency_Key="k").status == 409


def test_a_stream_lives_by_its_heartbeat_and_can_be_read_again(http: Caller) -> None:
    """First bytes at once; the events are kept and go on after the last one seen."""
    connection, lines = http.stream({"stream": True, "seconds": 0.7})
    began = time.monotonic()
    read = list(lines)
    connection.close()
    assert time.monotonic() - began > 0.6
    assert read.count(b": hb\n") >= 2
    events = b"".join(read)
    assert b'id: 1\ndata: "a"\n' in events
    assert b"id: 3\nevent: end\n" in events
    invocation_id = json.loads(events.partition(b"event: end\ndata: ")[2])[
        "invocation_id"
    ]
    place = f"/invocations/{invocation_id}/events"
    again = http.get(place, Last_Event_ID="1").body
    assert b'data: "a"' not in again
    assert b'id: 2\ndata: "b"\n' in again
    assert http.get(place, Last_Event_ID="9").status == 400


def test_a_client_that_leaves_is_noticed_when_a_write_fails(http: Caller) -> None:
    """So within two heartbeats; the invocation is cancelled."""
    body = b'{"stream": true, "seconds": 30}'
    connection, response = http.open("POST", "/invocations", body, SSE)
    place = f"/invocations/{response.headers['X-Invocation-Id']}"
    assert response.readline() == b": open\n"
    hang_up(connection)
    response.close()
    wait_until(lambda: http.get(place).json["state"] == "cancelled")
    assert http.get(place).json["cancel"]["reason"] == "disconnect"


def test_a_cancel_ends_a_call(http: Caller) -> None:
    """The caller is told; a second cancel changes nothing."""
    answers: list[Answer] = []
    caller = start_thread(
        "caller",
        lambda: answers.append(http.invoke({"seconds": 30}, X_Invocation_Id="long")),
    )
    wait_until(lambda: http.get("/invocations/long").status == 200)
    cancel = "/invocations/long/cancel"
    assert http.request("POST", cancel).status in {200, 202}
    caller.join(10)
    assert answers[0].status == 499
    assert http.request("POST", cancel).status == 200


def test_without_a_slot_a_call_is_refused_after_a_second(http: Caller) -> None:
    """Nobody in front counts who waits: 503, and when to come again."""
    names = [f"holder-{n}" for n in range(4)]
    for name in names:
        promised = http.invoke(
            {"seconds": 30}, X_Invocation_Id=name, Prefer="respond-async"
        )
        assert promised.status == 202
    wait_until(lambda: http.get("/invocations/holder-3").json["state"] == "running")
    began = time.monotonic()
    refused = http.invoke({})
    assert 0.9 < time.monotonic() - began < 1.9 * SLOW
    assert (refused.status, refused.json["code"]) == (503, "server_busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert http.get("/ping").json["status"] == "HealthyBusy"
    for name in names:
        http.request("POST", f"/invocations/{name}/cancel")
    wait_until(lambda: http.get("/ping").json["status"] == "Healthy")
    assert http.invoke({}).status == 200


def test_values_of_one_user_are_never_seen_by_another(http: Caller) -> None:
    """Threads are used again for other users; a stream keeps its own over a yield."""
    users: dict[str, list[Any]] = {"a": [], "b": []}

    def call(user: str) -> None:
        for _ in range(20):
            users[user].append(http.invoke({"user": user}, REMEMBER).json["result"])

    callers = [start_thread("caller", call, user) for user in users]
    for caller in callers:
        caller.join(30)
    for user, seen in users.items():
        assert [(s["before"], s["after"]) for s in seen] == [(None, user)] * 20
    for name in ("remember_streaming", "remember_async"):
        path = f"/invocations?entrypoint={name}"
        place = http.invoke({"user": "c"}, path, Prefer="respond-async").headers[
            "location"
        ]
        wait_until(lambda place=place: http.get(place).json["state"] == "succeeded")
        assert http.get(place).json["result"] == [None, "set", "c"]


def test_what_a_client_says_of_its_way_is_not_believed(
    http: Caller, ours: Http
) -> None:
    """Our own server takes it away; gunicorn shows it, and nobody acts on it."""
    said = {
        "Forwarded": "for=6.6.6.6;host=evil.example;proto=gopher",
        "X_Forwarded_For": "6.6.6.6",
        "X_Forwarded_Host": "evil.example",
        "X_Forwarded_Proto": "gopher",
    }
    headers = {name.replace("_", "-"): value for name, value in KEY_HEADERS.items()}
    path = "/invocations?entrypoint=claims"
    assert ours.invoke({}, path, **headers, **said).json["result"] == []
    assert len(http.invoke({}, path, **said).json["result"]) == 4
    for caller in (ours, http):
        promised = caller.invoke({}, path, Prefer="respond-async", **headers, **said)
        assert promised.headers["location"].startswith("/invocations/")
        for page in ("/", "/openapi.json"):
            body = caller.get(page, **headers, **said).body
            assert b"evil" not in body
            assert b"gopher" not in body


@pytest.mark.parametrize("how", ["as documented", "without"])
def test_sigterm_closes_the_app(how: str, tmp_path: Path) -> None:
    """As documented, what runs is cancelled and answered before gunicorn kills it.

    Without that configuration gunicorn cuts it off; what nobody waits for is cancelled
    when the process ends.
    """
    source = "from tests.serving.shapes import build\napp = build()\n"
    (tmp_path / "my_agent.py").write_text(source)
    options = ["--threads", "4", "--graceful-timeout", "10"]
    if how == "as documented":
        config = documented("# gunicorn.conf.py")
        for old, new in (("DRAIN = 25", "DRAIN = 0.3"), (":8080", ":0")):
            assert config.count(old) == 1
            config = config.replace(old, new)
        (tmp_path / "gunicorn.conf.py").write_text(config)
        options = []
    asynchronous = how == "without"
    headers = {"Prefer": "respond-async"} if asynchronous else {}
    with gunicorn("my_agent:app", tmp_path, *options) as host:
        http = host.http
        answers: list[Answer] = []
        caller = start_thread(
            "caller", lambda: answers.append(http.invoke({"seconds": 60}, **headers))
        )
        wait_until(lambda: http.get("/ping").json["status"] == "HealthyBusy")
        began = time.monotonic()
        assert host.stop() == 0
        assert time.monotonic() - began < 8 * SLOW
        caller.join(10)
    expected = (202, None) if asynchronous else (503, "server_draining")
    code = answers[0].json.get("metadata", {}).get("code")
    assert (answers[0].status, code) == expected
