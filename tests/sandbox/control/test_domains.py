"""Whatever a client builds from the domain it is told leads to the platform."""

from __future__ import annotations

import pytest

from ppio_agent.sandbox.control.domains import Domains

SHORT = "5" * 32
PLAIN = Domains(domain="sandbox.test")
TLS = Domains(domain="sandbox.test", tls_authority="127.0.0.1:3443")


@pytest.mark.parametrize("host", ["", "127.0.0.1:3900", "localhost", "api.other.test"])
def test_without_a_name_a_user_name_leads_there(host: str) -> None:
    """But only over TLS; on the plain listener headers do."""
    assert TLS.given(host, SHORT) == f"{SHORT}@127.0.0.1:3443"
    assert TLS.given(host, None) == "sandbox.test"
    assert PLAIN.given(host, SHORT) == "sandbox.test"


@pytest.mark.parametrize("port", ["", ":3443"])
def test_who_asked_a_name_of_the_domain_is_given_the_domain(port: str) -> None:
    """With its port, since the others are reached by that, too."""
    for domains in (TLS, PLAIN):
        assert domains.given(f"API.Sandbox.Test{port}", SHORT) == f"sandbox.test{port}"
