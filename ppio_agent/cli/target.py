"""The platform that a command talks to, over its control plane.

``PPIO_API_URL`` names it; otherwise it is the one that runs on the default data
directory, and if there is none, one embedded in this process for the one command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from attrs import field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import Hooks
from ppio_agent.transport import Request, Transport, TransportConfig
from ppio_agent.wire.json import Json, encode_json

if TYPE_CHECKING:
    from ppio_agent.client import AgentRuntimeClient

__all__ = ["Target", "find_target"]

_TIMEOUT = 60.0


@frozen(kw_only=True)
class Target:
    """A platform's control plane and the key for it.

    Attributes:
        url: Its address.
        api_key: The key.
        transport: What carries the calls.
        embedded: Whether it lives in this process, and so ends with it.
    """

    url: str
    api_key: str = field(repr=False)
    transport: Transport
    embedded: bool = False

    def call(
        self,
        method: str,
        *path: str,
        query: Mapping[str, str | int | None] | None = None,
        body: Json | bytes = None,
        kind: str = "sandbox",
        timeout: float = _TIMEOUT,
    ) -> Json:
        """Call the control plane and return its JSON, None if it answers nothing.

        Args:
            method: HTTP method.
            path: Segments of the path; each is quoted.
            query: Parameters; those that are None are left out.
            body: JSON, or bytes that are sent as a gzip archive.
            kind: What a 404 means: `sandbox`, `template` or `other`.
            timeout: Seconds in all.
        """
        headers = {"X-API-KEY": self.api_key}
        data: bytes | None = None
        if isinstance(body, bytes):
            data, headers["Content-Type"] = body, "application/gzip"
        elif body is not None:
            data, headers["Content-Type"] = encode_json(body), "application/json"
        given = {k: v for k, v in (query or {}).items() if v is not None}
        where = "/".join(quote(part, safe="") for part in path)
        response = self.transport.send(
            Request(
                method=method,
                url=f"{self.url}/{where}" + (f"?{urlencode(given)}" if given else ""),
                headers=headers,
                body=data,
                deadline=Deadline.after(timeout),
                kind=kind,  # type: ignore[arg-type]  # one of its words
                subject=path[1] if len(path) > 1 else "",
            )
        )
        return response.json() if response.body else None

    def client(self) -> AgentRuntimeClient:
        """Return a client of this platform; the caller closes it."""
        from ppio_agent.client import AgentRuntimeClient

        return AgentRuntimeClient(base_url=self.url, api_key=self.api_key)


@contextmanager
def find_target() -> Iterator[Target]:
    """Find, or start for the time of the block, the platform to talk to."""
    url = os.environ.get("PPIO_API_URL", "").strip().rstrip("/")
    key = os.environ.get("PPIO_API_KEY", "").strip()
    if url and not key:
        raise ConfigurationError(
            "PPIO_API_URL is set and PPIO_API_KEY is not; set the key that belongs to"
            " it, or unset both to use the platform on this machine"
        )
    embedded = False
    if not url:
        found = Hooks.load().default_platform(None)
        if found is None:
            raise ConfigurationError(
                "there is no platform; start one with ppio-agent up, or set PPIO_API_URL"
            )
        url, key = found
        embedded = _is_ours(url)
    transport = Transport(TransportConfig())
    try:
        yield Target(url=url, api_key=key, transport=transport, embedded=embedded)
    finally:
        transport.close()


def _is_ours(url: str) -> bool:
    """Whether the platform at `url` is the one that this process has started."""
    from ppio_agent.sandbox import PlatformConfig
    from ppio_agent.sandbox.datadir import read_running

    running = read_running(PlatformConfig.from_env(os.environ).data_dir)
    return running is not None and (running.url, running.pid) == (url, os.getpid())
