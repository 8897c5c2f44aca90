"""Where URLs lead."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import ConfigurationError, ValidationError
from ppio_agent.transport.route import (
    Origin,
    Proxy,
    is_loopback,
    parse_proxy,
    proxy_for,
    split_url,
)


@pytest.mark.parametrize(
    ("url", "origin", "target", "authority"),
    [
        ("http://h", ("http", "h", 80), "/", "h"),
        ("https://H.test:443/a?b=c#d", ("https", "h.test", 443), "/a?b=c", "h.test"),
        ("https://h:80/", ("https", "h", 80), "/", "h:80"),
        ("http://[::1]:8080/x", ("http", "::1", 8080), "/x", "[::1]:8080"),
        ("http://h/?q", ("http", "h", 80), "/?q", "h"),
        ("http://b\xfccher.test/", ("http", "xn--bcher-kva.test", 80), "/",
         "xn--bcher-kva.test"),
    ],
)  # fmt: skip
def test_urls_are_split(
    url: str, origin: tuple[str, str, int], target: str, authority: str
) -> None:
    """Origin, what is asked of it, and what the `Host` header says."""
    assert split_url(url) == (Origin(*origin), target)
    assert Origin(*origin).authority == authority


@pytest.mark.parametrize(
    "url", ["", "h/p", "//h/p", "ws://h", "http://", "http://h:x/", "http://u@h/"]
)
def test_other_urls_are_refused(url: str) -> None:
    """Only absolute http and https ones, without a user name."""
    with pytest.raises(ValidationError):
        split_url(url)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True), ("a.localhost", True), ("127.8.8.8", True), ("::1", True),
        ("localhost.test", False), ("10.0.0.1", False), ("h", False),
    ],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    """By name or address."""
    assert is_loopback(host) is expected


def test_proxies_are_read() -> None:
    """Scheme and port have defaults; credentials are decoded and not shown."""
    assert parse_proxy("h:3128") == Proxy(Origin("http", "h", 3128))
    assert parse_proxy("https://h") == Proxy(Origin("https", "h", 443))
    found = parse_proxy("http://user:p%3As@h")
    assert found.authorization == "Basic dXNlcjpwOnM="
    assert "dXNlcjpwOnM=" not in repr(found)
    with pytest.raises(ConfigurationError) as caught:
        parse_proxy("socks5://user:secret@h")
    assert "secret" not in str(caught.value)


def test_a_configured_proxy_is_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's is asked only where there is none."""
    monkeypatch.setenv("HTTPS_PROXY", "http://environment:1")
    far, near = Origin("https", "h.test", 443), Origin("https", "127.0.0.1", 443)
    mine = Proxy(Origin("http", "mine", 2))
    assert proxy_for(far, "http://mine:2") == proxy_for(near, "http://mine:2") == mine
    assert proxy_for(far, None) == Proxy(Origin("http", "environment", 1))
    assert proxy_for(near, None) is None
    assert proxy_for(Origin("http", "h.test", 80), None) is None
