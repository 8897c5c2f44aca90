"""How plug-ins are asked who has sent a request, and what follows from that."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.exceptions import PermissionDeniedError
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import ApiKeyAuth, HmacAuth
from ppio_agent.storage import open_nonces
from ppio_agent.web import Lane
from ppio_agent.wire.models import Principal
from tests.serving.conftest import Serve
from tests.serving.support import JSON, Gate, in_background, make_app
from tests.serving.support_auth import KEY, SECRET, app_with, bearer, client_of, signed


def test_ping_and_root_ask_for_no_key(through_flask: bool) -> None:
    """The platform's health checks have none."""
    client = client_of(ApiKeyAuth([KEY]), through_flask=through_flask)
    assert client.get("/ping").status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/invocations/x").status_code == 401


def test_several_are_asked_in_order() -> None:
    """A function is as good as a plug-in; the first that knows the sender wins."""
    asked = []

    def first(request: Any) -> Principal | None:
        asked.append((request.method, request.path, request.target, request.body))
        return None

    def second(request: Any) -> Principal | None:
        asked.append("second")
        return Principal("ben", "test")

    client = client_of([first, second, ApiKeyAuth([KEY])])
    name, _, headers = client.invoke({"a": 1}, headers=bearer("sk-any")).result
    assert name == "ben"
    assert asked == [("POST", "/invocations", "/invocations", b'{"a":1}'), "second"]
    # It did not say which header it looked at, so none of them is shown.
    assert "authorization" not in headers


def test_a_plug_in_may_refuse_or_fail(caplog: pytest.LogCaptureFixture) -> None:
    """403 as it says; anything unexpected is 500 and told to the log only."""

    def deny(request: Any) -> Principal | None:
        if request.headers.get("x-mode") == "deny":
            raise PermissionDeniedError("not for you")
        raise LookupError("secret detail")

    client = client_of(deny)
    denied = client.invoke({}, headers={"X-Mode": "deny"})
    assert (denied.status_code, denied.json["code"]) == (403, "permission_denied")
    assert "www-authenticate" not in denied.headers
    with caplog.at_level(logging.ERROR, "ppio_agent"):
        failed = client.invoke({})
    assert (failed.status_code, failed.json["detail"]) == (500, "internal error")
    assert "secret detail" in caplog.text


class Plugin:
    @hookimpl
    def ppio_authenticate(self, request: Any) -> Principal | None:
        return Principal("installed", "test")


def test_an_installed_plug_in_turns_authentication_on() -> None:
    """It is the same hook."""
    assert client_of((), plugins=[Plugin()]).invoke({}).result[0] == "installed"


def test_something_else_is_no_auth() -> None:
    """`auth="key"` is a mistake."""
    with pytest.raises(TypeError, match="str"):
        make_app(auth="sk-key")


def test_an_invocation_is_its_principals_alone() -> None:
    """Another one gets 404, as if it did not exist."""
    client = client_of(ApiKeyAuth({"anna": "key-a", "ben": "key-b"}))
    mine = client.invoke({}, headers={**bearer("key-a"), "X-Invocation-Id": "i1"})
    assert mine.headers["x-invocation-id"] == "i1"
    path = "/invocations/i1"
    assert client.get(path, headers=bearer("key-a")).json["state"] == "succeeded"
    for call in (client.get, client.post):
        target = path if call == client.get else f"{path}/cancel"
        answer = call(target, headers=bearer("key-b"))
        assert (answer.status_code, answer.json["code"]) == (
            404,
            "invocation_not_found",
        )
    again = client.invoke({}, headers={**bearer("key-b"), "X-Invocation-Id": "i1"})
    assert again.result[0] == "ben"


def test_over_a_socket_nobody_reaches_the_invocations_of_others(
    serve: Serve, gate: Gate, through_flask: bool
) -> None:
    """Not by look-up, events, cancel, id or idempotency key; however they prove it."""
    auth = [ApiKeyAuth({"anna": KEY}), HmacAuth({"ben": SECRET})]
    app = make_app(auth=auth, through_flask=through_flask)
    started: list[str] = []

    @app.entrypoint
    def agent(request: Any, context: Any) -> Any:
        started.append(context.principal.id)
        gate.stand()
        return context.principal.id

    http = serve(app)
    run = {**JSON, "Idempotency-Key": "k", "X-Invocation-Id": "i1"}
    wait = {**run, "Prefer": "respond-async"}

    def as_ben(method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        own = signed(method, path, body, key_id="ben", secret=SECRET)
        return http.request(method, path, body or None, {**own, **headers})

    anna = bearer(KEY)
    assert (
        http.request("POST", "/invocations", b"{}", {**anna, **wait}).status,
        http.request("GET", "/invocations/i1", None, anna).status,
    ) == (202, 200)
    for method, path in (
        ("GET", "/invocations/i1"),
        ("GET", "/invocations/i1/events"),
        ("POST", "/invocations/i1/cancel"),
    ):
        answer = as_ben(method, path)
        assert (answer.status, answer.json["code"]) == (404, "invocation_not_found")
        assert "anna" not in str(answer)
    # Neither id nor key joins ben to the run of anna.
    assert as_ben("POST", "/invocations", b"{}", **wait).status == 202
    gate.wait_reached(2)
    gate.open()
    joined = http.request("POST", "/invocations", b"{}", {**anna, **run})
    assert (joined.json["result"], joined.headers["idempotency-replayed"]) == (
        "anna",
        "true",
    )
    assert as_ben("POST", "/invocations", b"{}", **run).json["result"] == "ben"
    events = as_ben("GET", "/invocations/i1/events")
    assert b'"ben"' in events.body
    assert as_ben("POST", "/invocations/i1/cancel").json["state"] == "succeeded"
    assert sorted(started) == ["anna", "ben"]


def test_no_key_secret_or_signature_is_ever_shown(
    serve: Serve, through_flask: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by repr, answer, log record or traceback, however much is logged."""
    keys, hmac = ApiKeyAuth({"anna": KEY}), HmacAuth({"test": [SECRET, "sk_former"]})
    app = app_with([keys, hmac], debug=True, through_flask=through_flask)

    @app.entrypoint(name="fails")
    def fails(request: Any, context: Any) -> Any:
        raise LookupError(f"{context.headers} {context!r} {app.config}")

    @app.middleware
    def middleware(request: Any, call_next: Any) -> Any:
        logging.getLogger("agent").info("%r %r", request, request.headers)
        return call_next()

    shown = [repr(keys), repr(hmac), repr(vars(app)["_front"])]
    proofs = [KEY, SECRET, "sk_former"]
    with caplog.at_level(logging.DEBUG):
        http = serve(app)

        def call(target: str, headers: dict[str, str], body: bytes = b"{}") -> int:
            answer = http.request("POST", target, body, {**JSON, **headers})
            proofs.append(headers.get("X-PPIO-Signature", KEY).removeprefix("v1="))
            shown.append(str(answer))
            return answer.status

        good = "/invocations"
        once = signed("POST", good, b"{}")
        late = signed("POST", good, b"{}", now=1.0)
        odd = {**signed("POST", good, b"{}"), "X-PPIO-Signature": "v1=" + KEY}
        statuses = [
            call(good, bearer(KEY)), call(good, {"X-API-Key": KEY}), call(good, once),
            call(good, bearer(KEY + "x")), call(good, once), call(good, late),
            call(good, once, b"[]"), call(good, odd),
            call(f"{good}?entrypoint=fails", bearer(KEY)),
            call(f"{good}?entrypoint=fails",
                 signed("POST", f"{good}?entrypoint=fails", b"{}")),
        ]  # fmt: skip
    assert statuses == [200, 200, 200, 401, 401, 401, 401, 400, 500, 500]
    shown += [repr(record.__dict__) for record in caplog.records]
    shown.append(caplog.text)
    assert "LookupError" in caplog.text
    everything = "\n".join(shown)
    assert [proof for proof in proofs if proof in everything] == []


def test_a_page_of_a_foreign_site_may_call_once_it_has_a_key(serve: Serve) -> None:
    """With authentication neither Host nor Origin matter, but the key does."""
    http = serve(app_with(ApiKeyAuth([KEY])))
    foreign = {"Host": "evil.example", "Origin": "https://evil.example", **JSON}
    refused = http.request("POST", "/invocations", b"{}", foreign)
    assert (refused.status, refused.json["code"]) == (401, "authentication_required")
    admitted = {**foreign, **bearer(KEY)}
    assert http.request("POST", "/invocations", b"{}", admitted).status == 200


def test_an_app_that_signatures_protect_may_listen_everywhere() -> None:
    """They are authentication, as keys are."""
    with app_with(HmacAuth({"test": SECRET})).server(host="0.0.0.0", port=0) as server:
        assert server.port


class Asking:
    """Waits for somebody, as a look-up in a database does."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    @hookimpl
    def ppio_authenticate(self, request: Any) -> Principal | None:
        self._gate.stand()
        return Principal("anna", "test")


@pytest.mark.parametrize("path", ["/invocations/x", "/metrics", "/nothing"])
def test_health_checks_never_wait_for_a_plug_in(
    serve: Serve, gate: Gate, path: str
) -> None:
    """However many requests it holds up; preflights do not wait either."""
    http = serve(app_with(Asking(gate), cors_origins=["https://a.example"]))
    waiting = [in_background(lambda: http.get(path)) for _ in range(3)]
    gate.wait_reached(3)
    assert http.get("/ping").status == 200
    assert http.get("/").status == 200
    preflight = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
    }
    assert http.request("OPTIONS", path, headers=preflight).status == 200
    gate.open()
    assert {answer().status for answer in waiting} <= {200, 404}


@pytest.mark.parametrize(
    ("auth", "lane"),
    [
        ((), Lane.EXPRESS),
        (ApiKeyAuth([KEY]), Lane.EXPRESS),
        (HmacAuth({"test": SECRET}), Lane.EXPRESS),
        ([ApiKeyAuth([KEY]), HmacAuth({"test": SECRET})], Lane.EXPRESS),
        (ApiKeyAuth(lambda: [KEY]), Lane.READ),
        (HmacAuth(lambda: {"test": SECRET}), Lane.READ),
        ([ApiKeyAuth([KEY]), lambda request: None], Lane.READ),
    ],
)
def test_only_what_answers_from_memory_is_asked_on_the_express_lane(
    auth: Any, lane: Lane
) -> None:
    """What is public stays there in any case."""
    front = app_with(auth)._front
    for method, path in [
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/invocations/x"),
        ("POST", "/invocations/x/cancel"),
        ("GET", "/nothing"),
        ("POST", "/ping"),
    ]:
        assert front.lane(method, path, {}) is lane
    assert front.lane("GET", "/ping", {}) is Lane.EXPRESS
    assert front.lane("HEAD", "/", {}) is Lane.EXPRESS
    assert front.lane("POST", "/invocations", {}) is Lane.QUEUED
    assert front.lane("GET", "/invocations/x/events", {}) is Lane.READ


def test_nonces_elsewhere_may_take_their_time(tmp_path: Path) -> None:
    """A file may be locked."""
    with contextlib.closing(open_nonces(f"sqlite:///{tmp_path}/nonces.db")) as nonces:
        assert not HmacAuth({"test": SECRET}, nonces=nonces).quick


def test_a_class_is_no_plug_in() -> None:
    """It was forgotten to be called."""
    with pytest.raises(TypeError, match="call it, ApiKeyAuth"):
        make_app(auth=ApiKeyAuth)


class Agreeing:
    """Means well."""

    @hookimpl
    def ppio_authenticate(self, request: Any) -> Any:
        return "anna"


def agreeing(request: Any) -> Any:
    return True


@pytest.mark.parametrize(
    ("auth", "told"),
    [(Agreeing(), ["Agreeing", "a str"]), (agreeing, ["agreeing", "a bool"])],
)
def test_nobody_is_admitted_by_what_is_no_principal(
    auth: Any, told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says whose result it is, and what to return."""
    client = client_of(auth)
    with caplog.at_level(logging.ERROR, "ppio_agent"):
        answer = client.invoke({})
    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")
    for part in [*told, "return a Principal, or None"]:
        assert part in caplog.text
