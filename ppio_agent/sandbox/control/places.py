"""What a client is told of the platform's places, so that they lead here. Pure."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

__all__ = ["Places"]

_HOST: Final = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]+))?")


@frozen(kw_only=True)
class Places:
    """Chooses domain and URL for an answer, by the host that the client has asked.

    Attributes:
        domain: Of the platform's host names; a port at its end does not count.
        url: Of the plain listener, from this machine.
        tls_authority: Host and port of the TLS listener; None: there is none.
    """

    domain: str
    url: str
    tls_authority: str | None

    def domain_for(self, host: str, short_key: str | None) -> str:
        """Return what the client builds host names from.

        Args:
            host: What it asked, empty if that is not known. Who reached a name below
                the domain, by DNS or a proxy, reaches the others as well.
            short_key: Short form of its API key. It takes the place of a name where
                there is none: `8080-<id>.<short>@127.0.0.1:3443`.
        """
        if self._is_below(host):
            return host.partition(".")[2].lower()
        if self.tls_authority is None or short_key is None:
            return self.domain
        return f"{short_key}@{self.tls_authority}"

    def url_for(self, host: str) -> str:
        """Return where the client reaches the platform again, as it did with `host`.

        Who came over TLS is not sent to the plain listener.
        """
        match = _HOST.fullmatch(host)
        if match is None:
            return self.url
        port = match[2]
        tls_port = (self.tls_authority or "").rpartition(":")[2]
        if tls_port and (port == tls_port or (not port and self._is_below(host))):
            return f"https://{host}"
        return f"http://{host}" if port else self.url

    def _is_below(self, host: str) -> bool:
        parent = host.partition(".")[2]
        return bool(parent) and _name(parent) == _name(self.domain)


def _name(authority: str) -> str:
    return authority.partition(":")[0].lower()
