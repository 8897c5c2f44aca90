"""Signed URLs of files."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.supervisor.envd.signatures import check_signature, sign


def test_a_signature_is_what_the_clients_of_the_cloud_make() -> None:
    """The hash of the parts, in base64 without padding."""
    digest = hashlib.sha256(b"a b:read:user:token:99").digest()
    expected = "v1_" + base64.b64encode(digest).decode().rstrip("=")

    assert sign("a b", "read", "user", "token", 99) == expected
    digest = hashlib.sha256(b"a b:write::token").digest()
    expected = "v1_" + base64.b64encode(digest).decode().rstrip("=")
    assert sign("a b", "write", "", "token", None) == expected


@given(st.text(max_size=9), st.text(max_size=9), st.none() | st.integers(0, 10**9))
def test_what_was_signed_is_allowed_and_nothing_else(
    path: str, user: str, until: int | None
) -> None:
    """Not another path, user, operation, token or time."""
    query = {"path": path, "signature": sign(path, "read", user, "token", until)}
    if user:
        query["username"] = user
    if until is not None:
        query["signature_expiration"] = str(until)

    assert check_signature(query, "read", "token", now=0) is None
    others = [
        check_signature({**query, "path": path + "x"}, "read", "token", now=0),
        check_signature({**query, "username": user + "x"}, "read", "token", now=0),
        check_signature({**query, "signature_expiration": "5"}, "read", "t", now=0),
        check_signature(query, "write", "token", now=0),
        check_signature(query, "read", "other", now=0),
    ]
    assert others == ["invalid signature"] * 5


@pytest.mark.parametrize(("now", "why"), [(99.0, None), (100.5, "is already expired")])
def test_a_signature_ends_when_it_says(now: float, why: str | None) -> None:
    """In the words of the cloud."""
    query = {
        "path": "a",
        "signature": sign("a", "read", "", "token", 100),
        "signature_expiration": "100",
    }
    found = check_signature(query, "read", "token", now=now)

    assert found == (why and f"signature {why}")


@pytest.mark.parametrize("until", ["", "soon", "1e3", "٣"])
def test_a_time_that_is_none_is_refused(until: str) -> None:
    """It is not taken for no end."""
    query = {"path": "a", "signature": "v1_", "signature_expiration": until}

    assert check_signature(query, "read", "t", now=0) == "invalid signature expiration"
