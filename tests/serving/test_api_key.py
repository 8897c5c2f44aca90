"""Authentication by API keys."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.serving import ApiKeyAuth
from tests.serving.support_auth import KEY, bearer, client_of


def test_a_known_key_is_admitted_and_hidden_from_the_handler(
    through_flask: bool,
) -> None:
    """By either header; the other one is left alone."""
    client = client_of(ApiKeyAuth({"anna": KEY}), through_flask=through_flask)
    name, scheme, headers = client.invoke(
        {}, headers={**bearer(KEY), "X-API-Key": "for another service"}
    ).result
    assert (name, scheme) == ("anna", "api-key")
    assert "authorization" not in headers
    assert headers["x-api-key"] == "for another service"
    assert client.invoke({}, headers={"X-API-Key": KEY}).result[0] == "anna"


def test_no_key_and_a_wrong_key_are_told_apart(through_flask: bool) -> None:
    """Both are 401 and say what would help."""
    client = client_of(ApiKeyAuth([KEY]), through_flask=through_flask)
    for path in ("/invocations", "/nothing", "/invocations/x/cancel"):
        none = client.post(path, json={})
        assert (none.status_code, none.json["code"]) == (401, "authentication_required")
        assert none.headers["www-authenticate"] == "Bearer, PPIO-HMAC"
    wrong = client.invoke({}, headers=bearer("sk-wrong"))
    assert (wrong.status_code, wrong.json["code"]) == (401, "invalid_credentials")


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
