"""API keys: who is who, and what counts as a credential."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.exceptions import AuthenticationError
from ppio_agent.sandbox import keys
from ppio_agent.sandbox.keys import KeyRing, basic_user

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


def test_keys_that_were_seen_are_bounded_in_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks with ever new ones; those in use are still recognised."""
    monkeypatch.setattr(keys, "_MOST_SEEN", 3)
    ring = KeyRing(KEYS, any_key=True)
    for number in range(10):
        ring.tenant_of("used-again", None)
        ring.tenant_of(f"unknown-{number}", None)

    assert len(ring._seen) == 3
    for number in range(10, 20):
        assert ring.is_credential("authorization", "Bearer used-again")
        ring.tenant_of(f"unknown-{number}", None)

    assert not ring.is_credential("authorization", "Bearer unknown-0")


def test_only_keys_of_the_platform_are_credentials() -> None:
    ring = KeyRing(KEYS, any_key=True)
    ring.tenant_of("seen-before", None)

    assert ring.is_credential("x-api-key", "sk_red")
    assert ring.is_credential("authorization", "Bearer sk_blue")
    assert ring.is_credential("authorization", "Bearer seen-before")
    assert not ring.is_credential("authorization", "Bearer the-agent's-own")
    assert not ring.is_credential("x-other", "sk_red")


@pytest.mark.parametrize(
    "value",
    [
        "sk_red",
        " sk_red ",
        "bearer\tsk_red",
        "Bearer \t sk_red",
        "Token sk_red",
        "Basic sk_red",
        "Basic " + base64.b64encode(b"sk_red").decode(),
        "Basic " + base64.b64encode(b"sk_red:").decode(),
        "basic\t" + base64.b64encode(b"user:sk_red").decode(),
    ],
)
def test_a_key_is_a_credential_wherever_it_stands(value: str) -> None:
    """Also where it proves nothing: a caller's mistake is not to tell it to an agent."""
    assert KeyRing(KEYS).is_credential("authorization", value)
    assert not KeyRing({}).is_credential("authorization", value)


def test_scheme_and_key_may_be_apart_by_a_tab() -> None:
    assert KeyRing(KEYS).tenant_of(None, "Bearer\tsk_red") == "red"


def test_where_any_key_counts_each_is_a_credential() -> None:
    """But not what an agent's own users send: that is known by having been used."""
    ring = KeyRing(KEYS, any_key=True)

    assert ring.is_credential("x-api-key", "never-seen-before")
    assert not ring.is_credential("authorization", "Bearer never-seen-before")
    assert not KeyRing(KEYS).is_credential("x-api-key", "never-seen-before")


def test_keys_are_in_no_repr() -> None:
    assert "sk_red" not in repr(KeyRing(KEYS))


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:".encode()).decode()


def test_a_short_form_is_hex_and_tells_its_tenant() -> None:
    """It does not tell the key, and is the same in every ring of that key."""
    ring = KeyRing(KEYS)
    short = ring.short_of("red")

    assert short is not None
    assert len(short) == 32
    assert int(short, 16) >= 0
    assert short == KeyRing({"sk_red": "other"}).short_of("other")
    assert ring.tenant_of_short(short) == "red"
    assert ring.short_of("blue") != short
    assert ring.short_of("green") is None


@pytest.mark.parametrize("text", ["", "0" * 32, "sk_red", "\udce4", "\u00fc"])
def test_no_other_text_is_a_short_form(text: str) -> None:
    assert KeyRing(KEYS, any_key=True).tenant_of_short(text) is None


def test_a_key_that_was_seen_has_a_short_form() -> None:
    ring = KeyRing({}, any_key=True)
    tenant = ring.tenant_of("unknown-1", None)
    short = ring.short_of(tenant)

    assert short is not None
    assert ring.tenant_of_short(short) == tenant
    assert ring.tenant_of_short(short[:16] + "0" * 16) is None


def test_a_basic_user_with_a_short_form_is_a_credential() -> None:
    ring = KeyRing(KEYS)
    short = ring.short_of("blue")

    assert ring.is_credential("authorization", basic(f"api.{short}"))
    assert ring.is_credential("authorization", basic(f"8080-x-local.{short}"))
    assert not ring.is_credential("authorization", basic(f"{short}"))
    assert not ring.is_credential("authorization", basic("the-agent's.own"))


@pytest.mark.parametrize(
    ("header", "user"),
    [
        ("basic dXNlcjpzZWNyZXQ=", "user"),
        ("Basic dXNlcg==", "user"),
        ("Basic Og==", ""),
        ("Basic !", None),
        ("Basic \u00fc", None),
        ("Basic", ""),
        ("Bearer dXNlcg==", None),
        (None, None),
    ],
)
def test_a_basic_header_names_a_user(header: str | None, user: str | None) -> None:
    assert basic_user(header) == user


@given(st.text(st.characters(max_codepoint=255, exclude_characters=":")), st.text())
def test_any_user_name_is_read_back(user: str, password: str) -> None:
    pair = user.encode("latin-1") + b":" + password.encode()
    assert basic_user(f"Basic {base64.b64encode(pair).decode()}") == user


@given(st.text())
def test_any_header_is_a_credential_or_not(value: str) -> None:
    ring = KeyRing(KEYS, any_key=True)
    assert not ring.is_credential("authorization", f"Basic {value}")
    assert ring.tenant_of_short(value) is None
