"""The domain that a client is told, so that what it builds from it leads here. Pure."""

from __future__ import annotations

from attrs import field, frozen

__all__ = ["Domains"]


@frozen(kw_only=True)
class Domains:
    """Chooses the domain of an answer.

    Attributes:
        domain: Of the platform's host names; a port at its end does not count.
        tls_authority: Host and port of the TLS listener; None: there is none.
    """

    domain: str
    tls_authority: str | None = field(default=None)

    def given(self, host: str, short_key: str | None) -> str:
        """Return the domain for a client.

        Args:
            host: The host that it asked, empty if it is not known. Who reached a name
                below the domain, by DNS or a proxy, reaches the others as well.
            short_key: Short form of its API key. It takes the place of a name where
                there is none: `8080-<id>.<short>@127.0.0.1:3443`.
        """
        asked = host.partition(".")[2].lower()
        if asked and _name(asked) == _name(self.domain):
            return asked
        if self.tls_authority is None or short_key is None:
            return self.domain
        return f"{short_key}@{self.tls_authority}"


def _name(authority: str) -> str:
    return authority.partition(":")[0].lower()
