"""Which platform is meant, and how a port of a sandbox is reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.client import ClientConfig
from ppio_agent.client.endpoint import Endpoint, choose_endpoint
from ppio_agent.exceptions import ConfigurationError


def config(environ: dict[str, str] | None = None, **settings: object) -> ClientConfig:
    return ClientConfig.from_env(environ or {}, **settings)


@pytest.mark.parametrize(
    ("environ", "settings", "has_key", "url"),
    [
        ({}, {}, False, None),
        ({}, {"base_url": "local"}, True, None),
        ({}, {}, True, "https://api.sandbox.ppio.cn"),
        ({}, {"domain": "x.example"}, False, "https://api.x.example"),
        ({"PPIO_DOMAIN": "y.example"}, {}, False, "https://api.y.example"),
        ({"PPIO_DOMAIN": "y.example:8443"}, {}, False, "https://api.y.example:8443"),
        ({"PPIO_DOMAIN": "t@y.example", "PPIO_API_URL": "https://a.example"}, {}, True,
         "https://a.example"),
        ({"PPIO_DEBUG": "true"}, {}, True, "http://127.0.0.1:3900"),
        ({"PPIO_DEBUG": "true", "PPIO_API_URL": "https://a.example"}, {}, True,
         "https://a.example"),
        ({"PPIO_API_URL": "https://a.example"}, {"base_url": "https://b.example/"},
         True, "https://b.example"),
    ],
)  # fmt: skip
def test_order_of_choice(
    environ: dict[str, str], settings: dict[str, str], *, has_key: bool, url: str | None
) -> None:
    """base_url, debug mode, domain or key, the embedded platform."""
    endpoint = choose_endpoint(config(environ, **settings), has_key=has_key)

    assert (endpoint and endpoint.url) == url


@pytest.mark.parametrize("environ", [{}, {"PPIO_DEBUG": "false"}])
def test_a_user_name_in_a_domain_that_counts_is_refused(
    environ: dict[str, str],
) -> None:
    """It would be sent to the platform as credentials."""
    settings = config({**environ, "PPIO_DOMAIN": "token@127.0.0.1:3443"})
    with pytest.raises(ConfigurationError, match="user name"):
        choose_endpoint(settings, has_key=True)


@pytest.mark.parametrize(
    ("settings", "ref"),
    [
        ({}, "abc-client"),
        ({"domain": "sandbox-test.ppio.cn"}, "abc-client"),
        ({"domain": "other.example"}, "abc"),
        ({"base_url": "https://a.example"}, "abc"),
    ],
)
def test_id_styles(settings: dict[str, str], ref: str) -> None:
    """The cloud's own domains name the client in the id, nobody else."""
    endpoint = choose_endpoint(config(**settings), has_key=True)

    assert endpoint is not None
    assert endpoint.sandbox_ref("abc", "client") == ref
    assert endpoint.sandbox_ref("abc", "") == "abc"


class TestRoute:
    def test_by_host_name(self) -> None:
        """Each port has a name of its own, under the domain of the reply."""
        endpoint = Endpoint(url="https://api.a.example", domain="a.example")

        own = endpoint.route("abc", 8080, domain=None, edge_url=None)
        told = endpoint.route("abc", 8080, domain="b.example:8443", edge_url=None)

        assert (own.origin, own.headers) == ("https://8080-abc.a.example", {})
        assert told.origin == "https://8080-abc.b.example:8443"

    @pytest.mark.parametrize(
        ("url", "sandbox_url", "edge_url", "origin"),
        [
            ("https://api.a.example", "http://edge:1", "http://e2", "http://edge:1"),
            ("https://api.a.example", None, "http://e2/", "http://e2"),
            ("http://127.0.0.1:3900", None, None, "http://127.0.0.1:3900"),
        ],
    )
    def test_by_header(
        self, url: str, sandbox_url: str | None, edge_url: str | None, origin: str
    ) -> None:
        """One origin, and headers that name the target of each request."""
        endpoint = Endpoint(url=url, domain="a.example", sandbox_url=sandbox_url)

        route = endpoint.route("abc", 49983, domain="b", edge_url=edge_url)

        assert route.origin == origin
        assert route.headers == {
            "PPIO-Sandbox-Id": "abc",
            "PPIO-Sandbox-Port": "49983",
            "E2b-Sandbox-Id": "abc",
            "E2b-Sandbox-Port": "49983",
        }

    def test_a_user_name_in_the_domain_is_refused(self) -> None:
        """It would be sent as credentials."""
        endpoint = Endpoint(url="https://api.a.example", domain="a.example")
        with pytest.raises(ConfigurationError, match="PPIO_SANDBOX_URL"):
            endpoint.route("abc", 8080, domain="user@b.example", edge_url=None)


@given(st.text(min_size=1, max_size=40))
def test_any_text_as_base_url_is_a_url_or_refused(text: str) -> None:
    """No text makes anything but a ConfigurationError."""
    try:
        url = config(base_url=text).base_url
    except ConfigurationError:
        return
    assert url == "local" or url is None or url.startswith(("https://", "http://"))
