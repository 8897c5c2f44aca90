"""The platform that a command talks to, over its control plane.

``PPIO_API_URL`` names it; otherwise it is the one that runs on the default data
directory, and if there is none, one embedded in this process for the one command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from attrs import evolve, field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import Hooks
from ppio_agent.transport import (
    Kind,
    RawStream,
    Request,
    Transport,
    TransportConfig,
)
from ppio_agent.wire.headers import LAST_EVENT_ID
from ppio_agent.wire.json import Json, encode_json
from ppio_agent.wire.sse import CONTENT_TYPE, SSEEvent, SSEFramer

if TYPE_CHECKING:
    from ppio_agent.client import AgentRuntimeClient
    from ppio_agent.sandbox import SandboxPlatform

__all__ = ["Target", "find_target"]

_TIMEOUT = 60.0
_PAGE = 100
_PREFIXES = ("platform", "v1", "v2")
# Three times as long as a stream of the platform is ever silent, in seconds.
_SILENCE = 45.0


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
        kind: Kind = "sandbox",
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
        request = self._request(method, path, query, kind, timeout=timeout)
        data: bytes | None = None
        headers = dict(request.headers)
        if isinstance(body, bytes):
            data, headers["Content-Type"] = body, "application/gzip"
        elif body is not None:
            data, headers["Content-Type"] = encode_json(body), "application/json"
        request = evolve(request, headers=headers, body=data)
        response = self.transport.send(request)
        return response.json() if response.body else None

    def pages(self, *path: str) -> list[dict[str, Json]]:
        """Return all items of a list that comes in pages."""
        found: list[dict[str, Json]] = []
        token: str | None = None
        while True:
            query = {"limit": _PAGE, "nextToken": token}
            request = self._request("GET", path, query, "other", timeout=_TIMEOUT)
            response = self.transport.send(request)
            found += response.json()
            token = response.headers.get("x-next-token")
            if not token:
                return found

    @contextmanager
    def events(
        self,
        *path: str,
        query: Mapping[str, str | int | None],
        after: str | None = None,
    ) -> Iterator[Iterator[SSEEvent]]:
        """Open a stream; yield its events as they come, until it ends or breaks.

        Args:
            path: Segments of the path; each is quoted.
            query: Parameters; those that are None are left out.
            after: Id of the last event that is known already.

        Raises:
            NetworkError: It broke, or was silent for too long.
        """
        request = self._request("GET", path, query, "sandbox", timeout=None)
        headers = {**request.headers, "Accept": CONTENT_TYPE}
        if after is not None:
            headers[LAST_EVENT_ID] = after
        request = evolve(request, headers=headers, idle_timeout=_SILENCE)
        with self.transport.stream(request) as stream:
            yield _read_events(stream)

    def _request(
        self,
        method: str,
        path: tuple[str, ...],
        query: Mapping[str, str | int | None] | None,
        kind: Kind,
        *,
        timeout: float | None,
    ) -> Request:
        given = {k: v for k, v in (query or {}).items() if v is not None}
        where = "/".join(quote(part, safe="") for part in path)
        # What the call is about comes after the name of its kind.
        names = [part for part in path if part not in _PREFIXES]
        return Request(
            method=method,
            url=f"{self.url}/{where}" + (f"?{urlencode(given)}" if given else ""),
            headers={"X-API-KEY": self.api_key},
            deadline=Deadline.after(timeout),
            kind=kind,
            subject=names[1] if len(names) > 1 else "",
        )

    def client(self) -> AgentRuntimeClient:
        """Return a client of this platform; the caller closes it."""
        from ppio_agent.client import AgentRuntimeClient

        return AgentRuntimeClient(base_url=self.url, api_key=self.api_key)


def _read_events(stream: RawStream) -> Iterator[SSEEvent]:
    framer = SSEFramer()
    while data := stream.read():
        for event in framer.feed(data):
            if isinstance(event, SSEEvent):
                yield event


@contextmanager
def find_target(*, runs: bool = False) -> Iterator[Target]:
    """Find, or start for the time of the block, the platform to talk to.

    Args:
        runs: Whether sandboxes are to be run. Else a platform that is started here
            only answers for what it holds.
    """
    with ExitStack() as stack:
        address = _named() or _found()
        embedded = address is None
        if address is None:
            platform = stack.enter_context(_embedded(runs=runs))
            address = platform.url, platform.api_key
        url, key = address
        transport = Transport(TransportConfig())
        stack.callback(transport.close)
        yield Target(url=url, api_key=key, transport=transport, embedded=embedded)


def _named() -> tuple[str, str] | None:
    """Return the platform that the environment names."""
    url = os.environ.get("PPIO_API_URL", "").strip().rstrip("/")
    key = os.environ.get("PPIO_API_KEY", "").strip()
    if url and not key:
        raise ConfigurationError(
            "PPIO_API_URL is set and PPIO_API_KEY is not; set the key that belongs to"
            " it, or unset both to use the platform on this machine"
        )
    return (url, key) if url else None


def _found() -> tuple[str, str] | None:
    """Return the platform of a plug-in, or the one that runs on this machine."""
    return Hooks.load().default_platform(None)


def _embedded(*, runs: bool) -> SandboxPlatform:
    from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
    from ppio_agent.sandbox.backends.process import ProcessBackend

    # The sandboxes of one that crashed are for the next that stays.
    return SandboxPlatform(
        PlatformConfig.from_env(os.environ),
        backend=None if runs else ProcessBackend(),
        take_over=False,
    )
