"""Where the control plane and the ports of a sandbox are reached. Pure.

The cloud names a sandbox `{sandboxID}-{clientID}` on its own domains ("composite");
everywhere else the id stands alone ("plain"). A port is reached by its own host name,
or at one origin for all, where two headers name the target of each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.headers import SANDBOX_ID, SANDBOX_PORT

if TYPE_CHECKING:
    from .config import ClientConfig

__all__ = [
    "AGENT_PORT",
    "ENVD_PORT",
    "ROUTING",
    "Endpoint",
    "Route",
    "choose_endpoint",
    "parse_origin",
]

AGENT_PORT = 8080
ENVD_PORT = 49983
ROUTING = (SANDBOX_ID, SANDBOX_PORT, "E2b-Sandbox-Id", "E2b-Sandbox-Port")
"""Headers that name the target of a request where one origin is many: id, port, and
both once more as other platforms spell them."""

_DEBUG_URL = "http://127.0.0.1:3900"
_COMPOSITE_DOMAINS = frozenset({"sandbox.ppio.cn", "sandbox-test.ppio.cn"})


@frozen(kw_only=True)
class Route:
    """How one port of one sandbox is reached: an origin and what names the target."""

    origin: str
    headers: Mapping[str, str]


@frozen(kw_only=True)
class Endpoint:
    """One platform as a client sees it.

    Attributes:
        url: Control plane, without a slash at the end.
        domain: Domain of the sandboxes' host names, unless a reply names another.
        sandbox_url: One origin for all ports of all sandboxes, if configured.
        composite: Whether ids carry the client id.
        where: What error messages call it.
    """

    url: str
    domain: str
    sandbox_url: str | None = None
    composite: bool = False
    where: str = "the platform"

    def sandbox_ref(self, sandbox_id: str, client_id: str = "") -> str:
        """Return the id under which paths, hosts and headers name the sandbox."""
        if self.composite and client_id and "-" not in sandbox_id:
            return f"{sandbox_id}-{client_id}"
        return sandbox_id

    def route(
        self, ref: str, port: int, *, domain: str | None, edge_url: str | None
    ) -> Route:
        """Return how a port is reached.

        Args:
            ref: The sandbox, as `sandbox_ref` gives it.
            port: Port inside the sandbox.
            domain: Domain of the platform's reply, if it named one.
            edge_url: Origin for header routing of the reply, if it named one.

        Raises:
            ConfigurationError: The domain contains a user name.
        """
        origin = self.sandbox_url or edge_url
        if origin is None and is_loopback(urlsplit(self.url).hostname or ""):
            origin = self.url
        if origin is None:
            host = _without_user(domain or self.domain)
            return Route(origin=f"https://{port}-{ref}.{host}", headers={})
        headers = dict(zip(ROUTING, (ref, str(port)) * 2, strict=True))
        return Route(origin=origin.rstrip("/"), headers=headers)


def choose_endpoint(config: ClientConfig, *, has_key: bool) -> Endpoint | None:
    """Return the platform that the configuration names; None means the embedded one.

    Order: `base_url`, debug mode, the domain if it or a key is given.

    Raises:
        ConfigurationError: The domain is used and contains a user name.
    """
    if config.base_url == "local":
        return None
    if config.base_url is not None:
        return Endpoint(
            url=config.base_url,
            domain=config.domain,
            sandbox_url=config.sandbox_url,
            where=config.base_url,
        )
    if config.debug:
        return Endpoint(
            url=_DEBUG_URL,
            domain=config.domain,
            sandbox_url=config.sandbox_url,
            where=_DEBUG_URL,
        )
    if has_key or config.origin("domain") != "default":
        return Endpoint(
            url=f"https://api.{_without_user(config.domain)}",
            domain=config.domain,
            sandbox_url=config.sandbox_url,
            composite=config.domain in _COMPOSITE_DOMAINS,
            where=config.domain,
        )
    return None


def _without_user(domain: str) -> str:
    """Return the domain; raise if it has a user name, which would be sent along."""
    if "@" in domain:
        raise ConfigurationError(
            "the domain of the sandboxes must not contain a user name; set"
            " PPIO_API_URL, and PPIO_SANDBOX_URL to route by header instead"
        )
    return domain


def parse_origin(url: str, name: str, *, https_unless_loopback: bool = False) -> str:
    """Return `url` without a slash at the end.

    Args:
        url: An http or https URL.
        name: What the error calls it.
        https_unless_loopback: Refuse http to another host, since the key would
            travel in the clear.

    Raises:
        ConfigurationError: It is not such a URL.
    """
    try:
        parts = urlsplit(url.strip())
        parts.port  # noqa: B018 - parsed when asked for; a bad one is a ValueError
    except ValueError:
        raise ConfigurationError(f"the setting {name} is not a URL") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigurationError(
            f"the setting {name} has to be a URL that starts with http:// or https://"
        )
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ConfigurationError(
            f"the setting {name} must not contain a user name, query or fragment"
        )
    if (
        https_unless_loopback
        and parts.scheme == "http"
        and not is_loopback(parts.hostname)
    ):
        raise ConfigurationError(
            f"the setting {name} names another machine by http, where the key would"
            " travel in the clear; use https"
        )
    return url.strip().rstrip("/")
