"""Where a URL leads: its origin, and the proxy on the way there."""

from __future__ import annotations

import base64
import os
from functools import lru_cache
from urllib.parse import unquote, urlsplit

from attrs import field, frozen

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import ConfigurationError, ValidationError

__all__ = ["Origin", "Proxy", "parse_proxy", "proxy_for", "split_url"]

_PORTS = {"http": 80, "https": 443}


@frozen(cache_hash=True)
class Origin:
    """Scheme, host and port: what connections are kept for."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The host, and the port if it is not the usual one, for a `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@frozen
class Proxy:
    """A proxy, and what it wants to see."""

    origin: Origin
    authorization: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@lru_cache(maxsize=1024)
def split_url(url: str) -> tuple[Origin, str]:
    """Return the origin of `url` and what stands behind it, path and query.

    Raises:
        ValidationError: It is no absolute http or https URL, or has a user name in it.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode("ascii")
    except ValueError:
        raise ValidationError("the URL of the request cannot be read") from None
    if parts.scheme not in _PORTS or not host:
        raise ValidationError("the URL of the request is no absolute http(s) URL")
    if "@" in parts.netloc:
        raise ValidationError("the URL of the request must not contain a user name")
    target = parts.path or "/"
    if parts.query:
        target = f"{target}?{parts.query}"
    return Origin(parts.scheme, host, port or _PORTS[parts.scheme]), target


def parse_proxy(url: str) -> Proxy:
    """Return the proxy of a URL such as ``http://user:password@proxy:3128``.

    Raises:
        ConfigurationError: It is none; the URL is not shown.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ConfigurationError("the URL of the proxy cannot be read") from None
    if parts.scheme not in _PORTS or not host:
        raise ConfigurationError(
            "the URL of the proxy has to start with http:// or https://"
        )
    authorization = password = None
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        authorization = f"Basic {pair}"
    origin = Origin(parts.scheme, host, port or _PORTS[parts.scheme])
    return Proxy(origin, authorization, password)


def proxy_for(origin: Origin, configured: str | None) -> Proxy | None:
    """Return the proxy for an origin.

    Args:
        origin: Where the request goes.
        configured: The proxy to use for all; None asks the environment, by the rules
            of requests. This machine itself is reached directly then: proxies that
            are set for the web know nothing of local sandboxes.

    Raises:
        ConfigurationError: The proxy's URL cannot be used.
    """
    if configured is not None:
        return parse_proxy(configured)
    if is_loopback(origin.host) or not any(
        name.lower().endswith("_proxy") for name in os.environ
    ):
        return None
    from requests.utils import get_environ_proxies, select_proxy

    url = f"{origin.scheme}://{origin.authority}"
    found = select_proxy(url, get_environ_proxies(url))
    return parse_proxy(found) if found else None
