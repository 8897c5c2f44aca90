"""The client's own plug-in: what is configured travels the way any plug-in's does."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from ppio_agent._util.redact import Redactor
from ppio_agent.hooks import hookimpl

__all__ = ["ConfiguredHeaders"]

_redactor = Redactor()


@frozen(eq=False)
class ConfiguredHeaders:
    """Adds `ClientConfig.headers` to every request of one client.

    Registered by the client with its own hooks, last, so that what the program
    configured wins over what an installed plug-in adds.
    """

    headers: Mapping[str, str] = field(
        repr=lambda headers: repr(_redactor.headers(headers))
    )

    @hookimpl
    def ppio_client_headers(self) -> Mapping[str, str]:
        """Return the configured headers."""
        return self.headers
