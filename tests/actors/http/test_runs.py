"""Runs: conversations with agents over HTTP."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.actors import ActorId, ActorOptions, InProcessActorRuntime
from ppio_agent.actors.http_api import create_app
from ppio_agent.serving import ApiKeyAuth
from ppio_agent.storage.actors.records import Retention
from tests.actors.http.conftest import Serve
from tests.actors.http.support import SSE, Gate, Http, said
from tests.serving.support import JSON
from tests.support import wait_until

KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}
ANN, BOB = ({"Authorization": f"Bearer {key}"} for key in KEYS.values())
KEY = "0123456789abcdef"


def test_the_call_of_the_readme_is_answered(shared: Http) -> None:
    """With exactly the members that clients in the field know."""
    body = {
        "agent_name": "echo",
        "conversation_id": "test-conversation",
        "messages": [{"role": "user", "content": "Hello! How are you?"}],
    }
    answer = shared.run("echo", body)
    assert answer.status == 200
    assert answer.json.keys() == {"messages", "status", "conversation_id"}
    assert answer.json["conversation_id"] == "test-conversation"
    assert answer.json["status"] == "completed"
    (message,) = answer.json["messages"]
    assert message.keys() == {"role", "content", "message_id"}
    assert message["role"] == "assistant"
    assert message["content"] == "Echo: Hello! How are you?"
    assert message["message_id"]
    assert answer.headers["x-invocation-id"]


def test_a_conversation_goes_on(shared: Http) -> None:
    """By its id; the agent gets what was said before."""
    for text in ("one", "two"):
        assert shared.run("echo", said(text, conversation_id="goes-on")).status == 200
    inspected = shared.get("/actors/v1/echo/goes-on").json
    assert inspected["queued"] == 0
    assert inspected["last_turn"] is not None


def test_runs_without_a_conversation_share_nothing(shared: Http) -> None:
    """Each gets one that nobody can guess."""
    first, second = (
        shared.run("echo", said(conversation_id=None)).json["conversation_id"]
        for _ in range(2)
    )
    assert first != second
    assert re.fullmatch("anon-[0-9a-f]{32}", first)


@pytest.mark.parametrize(
    ("agent", "body", "status", "place"),
    [
        ("nope", said(), 404, None),
        ("hidden", said(), 404, None),
        ("echo", {}, 422, ["body", "messages"]),
        ("echo", [], 422, ["body"]),
        ("echo", {"messages": []}, 422, ["body", "messages"]),
        ("echo", {"messages": "hi"}, 422, ["body", "messages"]),
        (
            "echo",
            {"messages": [{"role": "robot", "content": "hi"}]},
            422,
            ["body", "messages", 0, "role"],
        ),
        (
            "echo",
            {"messages": [{"role": "user"}]},
            422,
            ["body", "messages", 0, "content"],
        ),
        ("echo", said(conversation_id="x" * 300), 422, ["body", "conversation_id"]),
        ("echo", said(conversation_id="a/b"), 422, ["body", "conversation_id"]),
        ("echo", said(on_busy="maybe"), 422, ["body", "on_busy"]),
        ("echo", b"{not json", 400, None),
        ("echo", b"[" + b" " * (2 << 20) + b"]", 413, None),
    ],
)
def test_what_cannot_be_run_leaves_nothing_behind(
    shared: Http, agent: str, body: Any, status: int, place: list[Any] | None
) -> None:
    """It is told what is wrong, and where."""
    before = shared.runtime.stats()
    answer = shared.run(agent, body)
    assert answer.status == status
    problem = answer.json
    assert isinstance(problem["detail"], str)
    code = {404: "agent_not_found", 413: "request_too_large"}
    assert problem["code"] == code.get(status, "invalid_request")
    if place is None:
        assert "errors" not in problem
    else:
        assert [error["loc"] for error in problem["errors"]] == [place]
        assert problem["errors"][0].keys() == {"loc", "msg", "type"}
    after = shared.runtime.stats()
    assert (before["known"], before["live"]) == (after["known"], after["live"])


def test_a_failure_tells_nothing_of_its_text(shared: Http) -> None:
    """That is in the log; the body has a code, and the header the id."""
    answer = shared.run("broken", said())
    assert answer.status == 500
    assert answer.json["code"] == "invocation_failed"
    assert b"secret" not in answer.body
    assert answer.headers["x-invocation-id"]


def test_a_conversation_belongs_to_who_began_it(serve: Serve) -> None:
    """For others it does not exist."""
    http = serve(auth=ApiKeyAuth(KEYS))
    assert http.run("echo", said()).status == 401
    body = said(conversation_id="private")
    answer = http.run("echo", body, **ANN)
    assert answer.status == 200
    place = f"/actors/v1/echo/private/{answer.headers['x-invocation-id']}"
    for status, who in ((200, ANN), (404, BOB)):
        assert http.run("echo", body, **who).status == status
        assert http.get("/actors/v1/echo/private", **who).status == status
        assert http.get(place, **who).status == status
        assert http.post(f"{place}:cancel", **who).status in (status, 409)
        assert http.post(f"{place}x", {"method": "run"}, **who).status in (status, 202)
    assert http.delete("/actors/v1/echo/private", **BOB).status == 404
    unnamed = http.run("echo", said(), **ANN).json["conversation_id"]
    assert http.run("echo", said(conversation_id=unnamed), **BOB).status == 404


def test_a_key_of_no_one_has_to_be_long(shared: Http) -> None:
    """Strangers' short keys collide; within a conversation they do not."""
    short = shared.run("echo", said(), Idempotency_Key="short")
    assert short.status == 400
    assert short.json["code"] == "idempotency_key_too_short"
    within = said(conversation_id="keyed")
    assert shared.run("echo", within, Idempotency_Key="short").status == 200
    assert shared.run("echo", within, Idempotency_Key="a b").status == 400


def test_a_key_runs_once(shared: Http) -> None:
    """Also where it is no id of a request; another body is a conflict."""
    for key in (KEY, "orders/2026/0017"):
        answers = [shared.run("echo", said(), Idempotency_Key=key) for _ in range(2)]
        assert answers[0].body == answers[1].body
        ids = {answer.headers["x-invocation-id"] for answer in answers}
        assert len(ids) == 1
        other = shared.run("echo", said("other"), Idempotency_Key=key)
        assert (other.status, other.json["code"]) == (409, "idempotency_conflict")


def test_a_key_runs_once_also_after_a_restart(serve: Serve, tmp_path: Path) -> None:
    """With a store that is durable."""
    url = f"sqlite:///{tmp_path / 'actors.db'}"
    bodies = []
    for _ in range(2):
        http = serve(InProcessActorRuntime(url))
        bodies.append(http.run("echo", said(), Idempotency_Key=KEY).body)
        http.server.close()
    assert bodies[0] == bodies[1]


def test_a_message_sent_again_runs_once(shared: Http) -> None:
    """By the id of the last one; one whose run failed is run again."""
    message = {"role": "user", "content": "hi", "message_id": "m-1"}
    body = {"messages": [message], "conversation_id": "again"}
    first, second = shared.run("echo", body), shared.run("echo", body)
    assert first.body == second.body
    assert first.headers["x-invocation-id"] == "m-1"
    failed = [shared.run("broken", body).headers["x-invocation-id"] for _ in range(2)]
    assert failed[0] == "m-1" != failed[1]


def test_a_run_that_others_wait_for_is_promised(serve: Serve, gate: Gate) -> None:
    """At once, or after as long as the caller waits."""
    http = serve()
    body = said(conversation_id="later")
    answer = http.run("slow", body, Prefer="respond-async")
    assert answer.status == 202
    message_id = answer.headers["x-invocation-id"]
    assert answer.json == {
        "status": "pending",
        "conversation_id": "later",
        "message_id": message_id,
    }
    place = answer.headers["location"]
    assert place == f"/actors/v1/slow/later/{message_id}"
    assert http.get(place).json["status"] == "pending"
    assert http.run("slow", body, Prefer="wait=0").status == 202
    gate.open()
    ended = http.get(f"{place}?blocking=true&timeout=20").json
    assert ended["status"] == "completed"
    assert http.run("slow", body, Prefer="respond-async, wait=20").status == 200


def test_a_full_mailbox_is_429(serve: Serve, gate: Gate) -> None:
    """And says when to come again; a busy actor, if one asks so, is 409."""
    runtime = InProcessActorRuntime()
    http = serve(runtime)
    runtime.register_agent(
        "tight", lambda request: gate.stand(), options=ActorOptions(mailbox_limit=2)
    )
    body = said(conversation_id="c")
    for _ in range(2):
        assert http.run("tight", body, Prefer="respond-async").status == 202
    gate.wait_reached()
    full = http.run("tight", body)
    assert (full.status, full.json["code"]) == (429, "mailbox_full")
    assert int(full.headers["retry-after"]) >= 1
    busy = http.run("tight", {**body, "on_busy": "reject"})
    assert (busy.status, busy.json["code"]) == (409, "actor_busy")


def test_a_client_that_leaves_ends_no_turn(serve: Serve, gate: Gate) -> None:
    """Its answer is there for the next one who asks."""
    http = serve()
    body = json.dumps(said(conversation_id="left")).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": KEY}
    connection, _ = http.events(
        "POST", "/agents/stubborn/run", said(conversation_id="left"),
        {**SSE, **headers},
    )  # fmt: skip
    gate.wait_reached()
    connection.close()
    gate.open()
    place = f"/actors/v1/stubborn/left/{KEY}"
    wait_until(lambda: http.get(place).json["status"] == "completed")
    again = http.request("POST", "/agents/stubborn/run", body, headers)
    assert again.json["messages"][0]["content"] == "at last"


def test_a_client_that_leaves_keeps_no_thread(serve: Serve, gate: Gate) -> None:
    """Of a run that waits for another one of its conversation, which goes on."""
    http = serve()
    body = said(conversation_id="busy")
    assert http.run("stubborn", body, Prefer="respond-async").status == 202
    gate.wait_reached()
    connection = HTTPConnection("127.0.0.1", http.port, timeout=20)
    connection.request("POST", "/agents/stubborn/run", json.dumps(body), JSON)
    wait_until(lambda: http.get("/actors/v1/stubborn/busy").json["queued"] == 1)
    connection.close()
    wait_until(lambda: http.busy("invoke") == 0)
    assert http.get("/actors/v1/stubborn/busy").json["queued"] == 1


def test_a_repetition_says_that_it_is_one(shared: Http) -> None:
    """Whatever it is answered with."""
    body = said(conversation_id="replayed")
    for headers in ({}, {"Prefer": "respond-async"}, SSE):
        answer = shared.run("echo", body, Idempotency_Key="replayed-1", **headers)
        replayed = answer.headers.get("idempotency-replayed")
        assert replayed == (None if headers == {} else "true")
    sent = [
        shared.post("/actors/v1/counter/replayed/m-1", {"method": "add"})
        for _ in range(2)
    ]
    assert [one.headers.get("idempotency-replayed") for one in sent] == [None, "true"]


def test_a_run_may_have_a_deadline(serve: Serve, gate: Gate) -> None:
    """Then it is 504, also where nobody else wants the conversation."""
    http = serve()
    late = http.run("slow", said(), X_PPIO_Timeout="0.05")
    assert (late.status, late.json["code"]) == (504, "invocation_timeout")
    place = "/actors/v1/slow/late/m-1"
    body = {"method": "run", "params": said()}
    http.post(place, body, X_PPIO_Timeout="0.05")
    assert http.get(f"{place}?blocking=true").json["status"] == "expired"
    for wrong in ("0", "-1", "nan", "soon"):
        refused = http.run("slow", said(), X_PPIO_Timeout=wrong)
        assert (refused.status, refused.json["code"]) == (400, "invalid_request")


def test_what_is_refused_makes_nobody_an_owner(serve: Serve) -> None:
    """Another may begin the conversation."""
    http = serve(auth=ApiKeyAuth(KEYS))
    body = said("\ud800", conversation_id="mine")
    call = {"method": "a\x00"}
    for refused in (
        http.run("echo", body, **ANN),
        http.run("echo", said(conversation_id="mine"), Idempotency_Key="a b", **ANN),
        http.run("echo", said(conversation_id="mine"), X_PPIO_Timeout="x", **ANN),
        http.post("/actors/v1/echo/mine/m-1", call, **ANN),
    ):
        assert refused.status in (400, 422)
    assert http.run("echo", said(conversation_id="mine"), **BOB).status == 200


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": KEY}])
def test_a_conversation_deleted_meanwhile_is_its_senders(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    """One that is deleted between its claim and its request has an owner after it."""
    http = serve(auth=ApiKeyAuth(KEYS))
    runtime, body = http.runtime, said(conversation_id="gone")
    assert http.run("echo", body, **ANN).status == 200
    actor_id = ActorId("echo", "gone")
    api = http.server._api
    claim = api.claim

    def claim_late(*args: Any) -> None:
        claim(*args)
        assert runtime.delete_actor(actor_id)

    monkeypatch.setattr(api, "claim", claim_late)
    assert http.run("echo", body, **ANN, **headers).status == 200
    monkeypatch.undo()
    assert runtime.store.owner(actor_id) == "ann"
    assert http.run("echo", body, **BOB).status == 404


def test_a_result_that_is_no_longer_kept_is_404(serve: Serve) -> None:
    """In every form; it is not run again."""
    runtime = InProcessActorRuntime()
    http = serve(runtime)
    body = said(conversation_id="old")
    assert http.run("echo", body, Idempotency_Key="k").status == 200
    store = runtime.store
    store.purge(store.now() + 1, 1000, Retention(payload_bytes=0))
    again = http.run("echo", body, Idempotency_Key="k")
    assert (again.status, again.json["code"]) == (404, "result_evicted")
    assert again.headers["x-invocation-id"] == "k"
    place = "/actors/v1/echo/old/k"
    assert http.get(place).json["error"]["code"] == "result_evicted"
    for streamed in (
        http.run("echo", body, Idempotency_Key="k", **SSE),
        http.get(f"{place}?streaming=true"),
    ):
        assert b'"code":"result_evicted"' in streamed.body
        assert streamed.body.rstrip().endswith(b'data: {"status":"completed"}')


def test_what_a_conversation_without_a_name_said_is_not_kept_for_long(
    tmp_path: Path,
) -> None:
    """Its state goes an hour after its last turn; that of named ones stays."""
    runtime = InProcessActorRuntime(f"sqlite:///{tmp_path / 'actors.db'}")
    client = create_app(runtime, agents={"echo": lambda request: "ok"}).test_client()
    kept = []
    for name in (None, "named"):
        answer = client.post("/agents/echo/run", json=said(conversation_id=name))
        assert answer.json is not None
        kept.append(ActorId("echo", answer.json["conversation_id"]))
    store = runtime.store
    for hours, expected in ((0.9, [True, True]), (1.1, [False, True])):
        store.purge(store.now() + hours * 3600, 100, runtime.options.retention)
        assert [bool(store.read_state(one)) for one in kept] == expected
    runtime.stop()
