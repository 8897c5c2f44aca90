"""Whatever a client is told of places leads to the platform."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.control.places import Places

SHORT = "5" * 32
URL, TLS_AT = "http://127.0.0.1:3900", "127.0.0.1:3443"
PLAIN = Places(domain="sandbox.test", url=URL, tls_authority=None)
TLS = Places(domain="sandbox.test", url=URL, tls_authority=TLS_AT)


@pytest.mark.parametrize("host", ["", "127.0.0.1:3900", "localhost", "api.other.test"])
def test_without_a_name_a_user_name_leads_there(host: str) -> None:
    """But only over TLS; on the plain listener headers do."""
    assert TLS.domain_for(host, SHORT) == f"{SHORT}@{TLS_AT}"
    assert TLS.domain_for(host, None) == "sandbox.test"
    assert PLAIN.domain_for(host, SHORT) == "sandbox.test"


@pytest.mark.parametrize("port", ["", ":3443"])
def test_who_asked_a_name_of_the_domain_is_given_the_domain(port: str) -> None:
    """With its port, since the others are reached by that, too."""
    host = f"API.Sandbox.Test{port}"
    for places in (TLS, PLAIN):
        assert places.domain_for(host, SHORT) == f"sandbox.test{port}"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1:3900", "http://127.0.0.1:3900"),
        ("box.example:3900", "http://box.example:3900"),
        ("[::1]:3900", "http://[::1]:3900"),
        ("127.0.0.1:3443", "https://127.0.0.1:3443"),
        ("api.sandbox.test", "https://api.sandbox.test"),
        ("api.sandbox.test:3443", "https://api.sandbox.test:3443"),
        ("localhost", URL),
        ("", URL),
        ("a/b:3900", URL),
        ("user@127.0.0.1:3900", URL),
    ],
)
def test_a_client_is_sent_where_it_came_to(host: str, url: str) -> None:
    """Who chose TLS stays there; the name is that by which it knows this machine."""
    assert TLS.url_for(host) == url


def test_without_tls_nobody_is_sent_there() -> None:
    """Whatever port or name it asked."""
    assert PLAIN.url_for("127.0.0.1:3443") == "http://127.0.0.1:3443"
    assert PLAIN.url_for("api.sandbox.test") == URL


@given(st.text())
def test_any_host_has_an_answer(host: str) -> None:
    """It is whatever a client sends."""
    assert TLS.url_for(host).startswith("http")
    assert TLS.domain_for(host, SHORT)
