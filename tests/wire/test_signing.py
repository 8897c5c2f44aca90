"""Request signatures."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.wire.signing import EMPTY_SHA256, sign

BODY = hashlib.sha256(b'{"prompt":"hi"}').hexdigest()
ONE: dict[str, Any] = {
    "method": "POST",
    "target": "/invocations?x=1",
    "body_sha256": BODY,
    "key_id": "test",
    "secret": "sk_test_secret",
    "now": 1_700_000_000.0,
    "nonce": "0123456789abcdef",
}


def signed(**changes: object) -> dict[str, str]:
    values = {**ONE, **changes}
    first = [values.pop(name) for name in ("method", "target", "body_sha256")]
    return sign(*first, **values)


def test_the_vector_of_the_specification() -> None:
    """Client, app and cluster compute the same."""
    assert BODY == "14479f4e87d340fe0ca0d522d87a5b3a028ebb1af24fbb8d3ef4553044fc6db6"
    assert signed() == {
        "X-PPIO-Key": "test",
        "X-PPIO-Timestamp": "1700000000",
        "X-PPIO-Nonce": "0123456789abcdef",
        "X-PPIO-Signature": "v1="
        "e39a1b2d55c2665aea48e37ec29d3d628abdcde8714766ba7a787a90d368700e",
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "PUT"),
        ("target", "/invocations?x=2"),
        ("target", "/invocations?x=%31"),
        ("body_sha256", EMPTY_SHA256),
        ("secret", "sk_test_secres"),
        ("now", 1_700_000_001.0),
        ("nonce", "0123456789abcdeg"),
    ],
)
def test_every_part_is_signed(name: str, value: object) -> None:
    """A change of any of them gives another signature."""
    changed = signed(**{name: value})
    assert changed["X-PPIO-Signature"] != signed()["X-PPIO-Signature"]


def test_what_may_differ_between_the_sides_does_not_matter() -> None:
    """The case of the method, and the fraction of a second."""
    assert signed(method="post", now=1_700_000_000.9) == signed()


def test_a_request_without_a_body_signs_the_hash_of_nothing() -> None:
    """As the specification says."""
    assert hashlib.sha256().hexdigest() == EMPTY_SHA256


@settings(deadline=None)
@given(secret=st.text(st.characters(codec="utf-8"), min_size=20, max_size=60))
def test_the_secret_is_never_sent(secret: str) -> None:
    """It proves; it does not travel."""
    assert secret not in "\n".join(signed(secret=secret).values())
