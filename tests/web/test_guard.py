"""Who may reach an app without a key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import PermissionDeniedError
from ppio_agent.web.guard import Guard

LOCAL = Guard(local_only=True, host="127.0.0.1")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True),
        ("[::1]", True), ("0.0.0.0", False), ("::", False), ("10.0.0.1", False),
        ("example.com", False),
    ],
)  # fmt: skip
def test_loopback_is_known(host: str, expected: bool) -> None:
    """A name that might resolve to anything is none."""
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8080", "127.0.0.1:80", "[::1]", "[::1]:8080", "LOCALHOST"],
)
def test_this_machines_names_are_served(host: str) -> None:
    """With and without a port."""
    LOCAL.check("POST", host, None)
    Guard(local_only=True, host="::1").check("GET", "[::1]:1", None)


@given(st.text(max_size=20))
def test_no_other_name_is_served(host: str) -> None:
    """A page that resolves its own name to this machine does not get in."""
    with pytest.raises(PermissionDeniedError) as caught:
        LOCAL.check("GET", f"{host}.evil.example", None)
    assert caught.value.code == "host_not_allowed"


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "", None])
def test_who_calls_from_this_machine_is_served(peer: str | None) -> None:
    """So is whoever comes by a server that tells no address."""
    LOCAL.check("POST", "localhost", None, peer)


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "fe80::1", "unknown"])
def test_a_name_of_this_machine_lets_nobody_else_in(peer: str) -> None:
    """Whoever sends a request chooses its Host."""
    with pytest.raises(PermissionDeniedError) as caught:
        LOCAL.check("GET", "localhost", None, peer)
    assert caught.value.code == "address_not_allowed"
    Guard(local_only=False).check("GET", "localhost", None, peer)


def test_a_foreign_page_may_not_post() -> None:
    """Whether it may read the answer or not."""
    LOCAL.check("POST", "localhost:80", "http://localhost:80")
    LOCAL.check("GET", "localhost", "https://evil.example")
    for origin in ("https://evil.example", "null", "http://localhost:81"):
        with pytest.raises(PermissionDeniedError) as caught:
            LOCAL.check("POST", "localhost:80", origin)
        assert caught.value.code == "origin_not_allowed"


def test_a_listed_page_may_post() -> None:
    """That is what the list is for."""
    guard = Guard(local_only=True, cors_origins=("https://app.example",))
    guard.check("POST", "localhost", "https://app.example")


def test_with_a_key_any_name_is_served() -> None:
    """The key is what counts."""
    Guard(local_only=False).check("POST", "agent.example", "https://evil.example")


def test_without_cors_there_is_no_cors_header() -> None:
    """Nor does a preflight pass."""
    assert LOCAL.headers("https://app.example") == ()
    with pytest.raises(PermissionDeniedError):
        LOCAL.preflight("https://app.example", "")


def test_with_cors_only_listed_origins_are_told_so() -> None:
    """Never with credentials."""
    guard = Guard(local_only=True, cors_origins=("https://app.example",))
    headers = dict(guard.headers("https://app.example"))
    assert headers["Access-Control-Allow-Origin"] == "https://app.example"
    assert "X-Invocation-Id" in headers["Access-Control-Expose-Headers"]
    assert headers["Vary"] == "Origin"
    assert guard.headers("https://other.example") == (("Vary", "Origin"),)
    preflight = dict(guard.preflight("https://app.example", "content-type"))
    assert preflight["Access-Control-Allow-Headers"] == "content-type"
    anyone = Guard(local_only=True, cors_origins=("*",))
    assert dict(anyone.headers("https://x"))["Access-Control-Allow-Origin"] == "*"
