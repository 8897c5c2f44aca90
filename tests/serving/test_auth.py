"""How plug-ins are asked who has sent a request, and what follows from that."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ppio_agent.exceptions import PermissionDeniedError
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import ApiKeyAuth, HmacAuth
from ppio_agent.wire.models import Principal
from tests.serving.conftest import Serve
from tests.serving.support import JSON, Gate, make_app
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
