"""`POST /invocations` and what can be asked of an invocation afterwards."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.agent import RequestContext
from ppio_agent.exceptions import (
    AuthenticationError,
    ServerBusyError,
    ValidationError,
)
from ppio_agent.serving import log_filter
from tests.serving.conftest import Serve
from tests.serving.support import Gate, hang_up, make_app
from tests.support import SLOW


def echo(request: Any) -> Any:
    return request


def client_of(agent: Any, **options: Any) -> Any:
    app = make_app(**options)
    app.entrypoint(agent)
    return app.test_client()


def test_the_envelope_has_its_five_members_in_order(through_flask: bool) -> None:
    """Ids in the metadata are those of the headers."""
    answer = client_of(echo, through_flask=through_flask).invoke(
        {"a": "ä"}, headers={"X-PPIO-Session-Id": "s1"}
    )
    assert answer.status_code == 200
    assert list(answer.json) == ["result", "status", "duration", "metadata", "error"]
    assert answer.result == {"a": "ä"}
    assert (answer.json["status"], answer.error) == ("success", None)
    assert answer.json["metadata"] == {
        "request_id": answer.headers["x-request-id"],
        "invocation_id": answer.headers["x-invocation-id"],
        "session_id": "s1",
    }
    assert answer.headers["x-ppio-session-id"] == "s1"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[1]", {"input": [1]}),
        (b'"hi"', {"prompt": "hi"}),
        (b'\xef\xbb\xbf{"a":1}', {"a": 1}),
        (b"3", {"input": 3}),
        (b"false", {"input": False}),
    ],
)
def test_any_json_reaches_the_handler_as_an_object(body: bytes, expected: Any) -> None:
    """A byte order mark does not matter."""
    assert client_of(echo).post("/invocations", data=body).result == expected


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"", {}, 400, "Invalid JSON: the body is empty"),
        (b"null", {}, 400, "the body is null"),
        (b"{", {}, 400, "Invalid JSON"),
        (b'{"a":NaN}', {}, 400, "Invalid JSON"),
        (b"\x80\x81", {}, 400, "Invalid encoding"),
        (b"[" * 200 + b"]" * 200, {}, 400, "Invalid JSON"),
        (b"a=1", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "form"),
        (b"{}", {"Content-Encoding": "gzip"}, 415, "compressed"),
        (b"{}", {"X-Invocation-Id": "a b"}, 400, "X-Invocation-Id"),
        (b"{}", {"X-PPIO-Timeout": "-1"}, 400, "seconds"),
    ],
)
def test_what_cannot_be_used_is_refused_without_a_call(
    body: bytes,
    headers: dict[str, str],
    status: int,
    text: str,
    through_flask: bool,
) -> None:
    """A problem, since there is no invocation."""
    called = []
    client = client_of(called.append, through_flask=through_flask)
    answer = client.post("/invocations", data=body, headers=headers)
    assert answer.status_code == status
    assert text in answer.json["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert "x-invocation-id" not in answer.headers
    assert called == []


def test_a_result_without_json_form_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the ids of its answer."""
    with caplog.at_level(logging.ERROR, "ppio_agent"):
        answer = client_of(lambda _: object()).invoke({})
    assert answer.status_code == 500
    assert answer.json["metadata"]["code"] == "not_serializable"
    (record,) = caplog.records
    assert record.ppio_invocation_id == answer.headers["x-invocation-id"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("no"), 500, "invocation_failed"),
        (json.JSONDecodeError("bad", "x", 0), 500, "invocation_failed"),
        (AuthenticationError("upstream"), 401, "invalid_credentials"),
        (ServerBusyError("later", retry_after=7.2), 503, "server_busy"),
        (SystemExit(1), 500, "invocation_failed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_an_envelope_with_its_facts(
    error: BaseException, status: int, code: str, through_flask: bool
) -> None:
    """Its type, code, and whether trying again may help."""

    def agent(request: Any) -> None:
        raise error

    answer = client_of(agent, through_flask=through_flask).invoke({})
    assert answer.status_code == status
    assert (answer.json["status"], answer.result) == ("error", None)
    metadata = answer.json["metadata"]
    assert (metadata["error_type"], metadata["code"]) == (type(error).__name__, code)
    assert metadata["retryable"] == (status == 503)
    assert "traceback" not in metadata
    assert answer.headers.get("retry-after") == ("8" if status == 503 else None)
    assert answer.headers["x-invocation-id"]


def test_debug_shows_tracebacks_and_privacy_hides_texts() -> None:
    """Each by its setting."""

    def agent(request: Any) -> None:
        raise ValueError("connection string")

    shown = client_of(agent, debug=True).invoke({})
    assert "ValueError: connection string" in shown.json["metadata"]["traceback"]
    hidden = client_of(agent, expose_errors=False).invoke({})
    assert hidden.error == "agent failed"
    assert "connection string" not in hidden.text


def test_a_request_lowers_the_limit_and_never_raises_it() -> None:
    """An entrypoint has its own."""

    def left(request: Any, context: RequestContext) -> float | None:
        return context.time_left()

    client = client_of(left, timeout=50)
    assert 49 < client.invoke({}).result <= 50
    assert client.invoke({"timeout": 5}).result <= 5
    assert 49 < client.invoke({}, headers={"X-PPIO-Timeout": "900"}).result <= 50
    app = make_app(timeout=50)
    app.entrypoint(timeout=None)(left)
    assert app.test_client().invoke({}).result is None


def test_a_client_that_hangs_up_cancels(serve: Serve) -> None:
    """A silent handler learns of it within 0.6 s."""
    app = make_app()
    reached, ended = threading.Event(), threading.Event()
    reasons: list[str | None] = []

    @app.entrypoint
    def agent(request: Any, context: RequestContext) -> None:
        reached.set()
        context.cancelled.wait(20)
        reasons.append(context.cancelled.reason)
        ended.set()

    http = serve(app)
    from http import client

    connection = client.HTTPConnection("127.0.0.1", http.port)
    connection.request("POST", "/invocations", b"{}")
    reached.wait(10)
    began = time.monotonic()
    hang_up(connection)
    assert ended.wait(10)
    assert time.monotonic() - began < 0.6 * SLOW
    assert reasons == ["disconnect"]


def test_a_failure_is_replayed_with_its_status() -> None:
    """The handler is not started again."""
    starts = []

    def agent(request: Any) -> None:
        starts.append(1)
        raise ValueError("no")

    client = client_of(agent)
    answers = [client.invoke({}, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert [a.status_code for a in answers] == [500, 500]
    assert answers[1].error == "no"
    assert starts == [1]


def test_of_a_result_only_the_json_is_kept() -> None:
    """And the replay is made of that; a Flask response is kept as it is."""
    import flask

    class Large(dict[str, str]):
        pass

    kept: list[weakref.ref[Any]] = []

    def agent(request: Any) -> Any:
        if "page" in request:
            return flask.Response("a page", 201)
        value = Large(text="x" * 1000)
        kept.append(weakref.ref(value))
        return value

    app = make_app()
    app.entrypoint(agent)
    with app.test_client() as client:
        for key in ({"Idempotency-Key": "a"}, {"Idempotency-Key": "b"}):
            values = [client.invoke({}, headers=key).result for _ in range(2)]
            assert values == [{"text": "x" * 1000}] * 2
        key = {"Idempotency-Key": "c"}
        pages = [client.invoke({"page": 1}, headers=key) for _ in range(2)]
        assert [(p.status_code, p.text) for p in pages] == [(201, "a page")] * 2
        gc.collect()
        assert [value() for value in kept] == [None, None]
        assert app._engine.registry.totals().size < 2200


@pytest.mark.parametrize("debug", [False, True])
def test_of_a_failure_no_frame_is_kept(debug: bool) -> None:
    """Nor of what it was raised from; but debug answers show where it came from."""

    class Large:
        pass

    kept: list[weakref.ref[Any]] = []

    def agent(request: Any) -> None:
        large = Large()
        kept.append(weakref.ref(large))
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValidationError("no") from error  # the log of others keeps it

    client = client_of(agent, debug=debug)
    answer = client.invoke({})
    gc.collect()
    assert (kept[0]() is None) is not debug
    assert ("traceback" in answer.json["metadata"]) is debug


def test_a_slot_is_not_waited_for_behind_another_server() -> None:
    """There is no lane: after a second it is 503, and the key is as if never used."""
    app = make_app(max_concurrency=1)
    gate = Gate()
    app.entrypoint(lambda request: gate.stand())
    client = app.test_client()
    key = {"Idempotency-Key": "k"}
    thread = start_thread("caller", client.invoke, {})
    gate.wait_reached()
    refused = client.invoke({}, headers=key)
    assert (refused.status_code, refused.json["code"]) == (503, "server_busy")
    gate.open()
    thread.join(10)
    again = client.invoke({}, headers=key)
    assert (again.status_code, again.headers.get("idempotency-replayed")) == (200, None)


def test_a_context_has_what_the_request_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And nothing of another request."""
    monkeypatch.setenv("PPIO_SANDBOX_ID", "sb1")

    def agent(request: Any, context: RequestContext) -> Any:
        return [
            context.session_id,
            context.sandbox_id,
            context.attempt,
            context.metadata,
            context.headers["x-custom"],
            context.timestamp.tzinfo is not None,
            context.principal,
        ]

    answer = client_of(agent).invoke(
        {"metadata": {"user": "u"}, "custom": 1}, headers={"X-Custom": "c"}
    )
    assert answer.result == ["sb1", "sb1", 1, {"user": "u"}, "c", True, None]


def test_log_records_carry_the_ids(caplog: pytest.LogCaptureFixture) -> None:
    """Of handlers, of every step of a stream, and of helper threads."""
    logger = logging.getLogger("my.agent")

    def agent(request: Any, context: RequestContext) -> Iterator[int]:
        logger.info("step")
        yield 1
        logger.info("step")
        helper = start_thread("helper", context.wrap(lambda: logger.info("helper")))
        helper.join(5)

    caplog.handler.addFilter(log_filter())
    try:
        with caplog.at_level(logging.INFO, "my.agent"):
            answer = client_of(agent).invoke(
                {}, headers={"X-Request-Id": "r1", "X-PPIO-Session-Id": "s1"}
            )
            logger.info("outside")
    finally:
        caplog.handler.filters.clear()
    found: list[Any] = [
        (r.message, vars(r).get("ppio_request_id"), vars(r).get("ppio_session_id"))
        for r in caplog.records
        if r.name == "my.agent"
    ]
    assert found == [
        ("step", "r1", "s1"),
        ("step", "r1", "s1"),
        ("helper", "r1", "s1"),
        ("outside", None, None),
    ]
    assert answer.headers["x-request-id"] == "r1"


def test_without_a_thread_to_run_on_it_is_refused_and_may_be_sent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is no shutdown, and nothing of it is kept."""
    client = client_of(echo)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("ppio-invoke"):
            raise RuntimeError("can't start new thread")
        start(thread)

    ids = {"X-Invocation-Id": "inv_1"}
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        answer = client.invoke({}, headers=ids)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert "no thread can be started for invocation inv_1" in answer.json["detail"]
    answer = client.invoke({}, headers=ids)
    assert answer.status_code == 200
    assert "idempotency-replayed" not in answer.headers


def test_a_function_that_blocks_holds_up_no_other_request(
    serve: Serve, gate: Gate
) -> None:
    """Of several invocations that are cancelled; the express lane has two threads."""
    ready = threading.Semaphore(0)

    def agent(request: Any, context: RequestContext) -> None:
        context.on_cancel(gate.stand)
        ready.release()
        context.sleep(60)

    app = make_app()
    app.entrypoint(agent)
    http = serve(app)
    places = []
    for _ in range(3):
        places.append(http.invoke({}, Prefer="respond-async").headers["location"])
        assert ready.acquire(timeout=5 * SLOW)
    began = time.monotonic()
    for place in places:
        assert http.request("POST", f"{place}/cancel").status == 202
    assert http.get("/ping").status == 200
    assert time.monotonic() - began < 2 * SLOW
    gate.open()
