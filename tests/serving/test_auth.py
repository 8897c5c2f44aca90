"""Who may call: keys, functions and plug-ins."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ppio_agent.exceptions import ConfigurationError, PermissionDeniedError
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import ApiKeyAuth
from ppio_agent.wire.models import Principal
from tests.serving.support import make_app

KEY = "sk-0123456789abcdef"


def client_of(auth: Any, through_flask: bool = False, **options: Any) -> Any:
    app = make_app(through_flask=through_flask, auth=auth, **options)

    @app.entrypoint
    def agent(request: Any, context: Any) -> Any:
        return [context.principal.id, context.principal.scheme, dict(context.headers)]

    return app.test_client()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_known_key_is_admitted_and_hidden_from_the_handler(
    through_flask: bool,
) -> None:
    """By either header; the other one is left alone."""
    client = client_of(ApiKeyAuth({"anna": KEY}), through_flask)
    name, scheme, headers = client.invoke(
        {}, headers={**bearer(KEY), "X-API-Key": "for another service"}
    ).result
    assert (name, scheme) == ("anna", "api-key")
    assert "authorization" not in headers
    assert headers["x-api-key"] == "for another service"
    assert client.invoke({}, headers={"X-API-Key": KEY}).result[0] == "anna"


def test_no_key_and_a_wrong_key_are_told_apart(through_flask: bool) -> None:
    """Both are 401 and say what would help."""
    client = client_of(ApiKeyAuth([KEY]), through_flask)
    for path in ("/invocations", "/nothing", "/invocations/x/cancel"):
        none = client.post(path, json={})
        assert (none.status_code, none.json["code"]) == (401, "authentication_required")
        assert none.headers["www-authenticate"] == "Bearer, PPIO-HMAC"
    wrong = client.invoke({}, headers=bearer("sk-wrong"))
    assert (wrong.status_code, wrong.json["code"]) == (401, "invalid_credentials")


def test_ping_and_root_ask_for_no_key(through_flask: bool) -> None:
    """The platform's health checks have none."""
    client = client_of(ApiKeyAuth([KEY]), through_flask)
    assert client.get("/ping").status_code == 200
    assert client.get("/").status_code == 200
    assert client.get("/invocations/x").status_code == 401


def test_keys_may_be_a_list_or_come_from_a_function() -> None:
    """Which is asked for each request, so that they can change."""
    assert client_of(ApiKeyAuth(["a-key", KEY])).invoke(
        {}, headers=bearer(KEY)
    ).result[0] == "key-2"  # fmt: skip
    keys = {"anna": "old"}
    client = client_of(ApiKeyAuth(lambda: keys))
    keys["anna"] = "new"
    assert client.invoke({}, headers=bearer("new")).status_code == 200
    assert client.invoke({}, headers=bearer("old")).status_code == 401


@pytest.mark.parametrize("keys", [{}, [], [""], {"anna": ""}, "one-key", [5]])
def test_keys_that_open_nothing_or_everything_are_refused(keys: Any) -> None:
    """When the app is made, not at the first request."""
    with pytest.raises(ConfigurationError):
        ApiKeyAuth(keys)


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


def test_no_key_is_ever_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Not by repr, answer or log."""
    auth = ApiKeyAuth({"anna": KEY})
    with caplog.at_level(logging.DEBUG):
        client = client_of(auth, debug=True)
        answers = [
            client.invoke({}, headers=bearer(KEY)),
            client.invoke({}, headers=bearer(KEY + "x")),
        ]
    shown = repr(auth) + caplog.text + "".join(answer.text for answer in answers)
    assert KEY not in shown
