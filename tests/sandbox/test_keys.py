"""API keys: who is who, and what counts as a credential."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import AuthenticationError
from ppio_agent.sandbox.keys import KeyRing

KEYS = {"sk_red": "red", "sk_blue": "blue"}


def test_either_header_proves_the_tenant() -> None:
    ring = KeyRing(KEYS)

    assert ring.tenant_of("sk_red", None) == "red"
    assert ring.tenant_of(None, "Bearer sk_blue") == "blue"
    assert ring.tenant_of("sk_red", "bearer sk_red") == "red"
    assert ring.tenant_of("sk_red", "Basic abc") == "red"


@pytest.mark.parametrize(
    ("api_key", "authorization"),
    [
        (None, None),
        ("", ""),
        ("sk_redd", None),
        ("sk_red", "Bearer sk_blue"),
        (None, "Basic sk_red"),
        ("s\u00fcr\udce4", None),
    ],
)
def test_none_two_or_an_unknown_key_is_refused(
    api_key: str | None, authorization: str | None
) -> None:
    with pytest.raises(AuthenticationError, match="invalid or missing API key"):
        KeyRing(KEYS).tenant_of(api_key, authorization)


def test_any_key_of_eight_characters_is_a_tenant_of_its_own() -> None:
    ring = KeyRing(KEYS, any_key=True)
    one, other = ring.tenant_of("unknown-1", None), ring.tenant_of("unknown-2", None)

    assert one != other
    assert one == ring.tenant_of(None, "Bearer unknown-1")
    assert "unknown-1" not in one
    assert ring.tenant_of("sk_red", None) == "red"
    with pytest.raises(AuthenticationError):
        ring.tenant_of("short", None)


def test_only_keys_of_the_platform_are_credentials() -> None:
    ring = KeyRing(KEYS, any_key=True)
    ring.tenant_of("seen-before", None)

    assert ring.is_credential("x-api-key", "sk_red")
    assert ring.is_credential("authorization", "Bearer sk_blue")
    assert ring.is_credential("authorization", "Bearer seen-before")
    assert not ring.is_credential("authorization", "Bearer the-agent's-own")
    assert not ring.is_credential("authorization", "Basic sk_red")
    assert not ring.is_credential("x-other", "sk_red")


def test_keys_are_in_no_repr() -> None:
    assert "sk_red" not in repr(KeyRing(KEYS))
