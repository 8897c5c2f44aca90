"""The platform that a command talks to, over its control plane.

``PPIO_API_URL`` names it; otherwise it is the one that runs on the default data
directory. Where there is none, one can be embedded in this process for the one command.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode

from attrs import evolve, field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    ConfigurationError,
    PlatformAlreadyRunningError,
    SandboxPlatformError,
)
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

__all__ = ["Target", "find_or_embed", "find_or_open", "find_target", "open_target"]

_T = TypeVar("_T")

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
    """

    url: str
    api_key: str = field(repr=False)
    transport: Transport

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
def find_target() -> Iterator[Target]:
    """Find the platform to talk to.

    Raises:
        SandboxPlatformError: None is named, and none runs on this machine.
    """
    address = _find()
    if address is None:
        raise SandboxPlatformError("no platform runs: start one with ppio-agent up")
    with open_target(address) as target:
        yield target


@contextmanager
def find_or_embed() -> Iterator[Target]:
    """Find the platform to talk to, or start one for this block alone.

    Raises:
        PlatformAlreadyRunningError: As `find_or_open`.
    """
    with ExitStack() as stack:
        found = find_or_open(stack, _embedded)
        address = found if isinstance(found, tuple) else (found.url, found.api_key)
        yield stack.enter_context(open_target(address))


def _embedded() -> SandboxPlatform:
    from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

    return SandboxPlatform(PlatformConfig.from_env(os.environ), stays=False)


def find_or_open(
    stack: ExitStack, make: Callable[[], AbstractContextManager[_T]]
) -> tuple[str, str] | _T:
    """Return address and key of the platform to talk to, or what stands in for it.

    Args:
        stack: Gets what is opened.
        make: Makes what is opened in its place where none runs; it uses the default
            data directory.

    Raises:
        PlatformAlreadyRunningError: Another command uses that for too long.
    """
    address = _find()
    if address is None:
        try:
            return stack.enter_context(make())
        except PlatformAlreadyRunningError:
            address = _find()  # one that was just starting
            if address is None:
                raise
    return address


@contextmanager
def open_target(address: tuple[str, str]) -> Iterator[Target]:
    """Return the platform at an address, with a transport to it, for the block."""
    url, key = address
    with closing(Transport(TransportConfig())) as transport:
        yield Target(url=url, api_key=key, transport=transport)


def _find() -> tuple[str, str] | None:
    """Return the platform that the environment names, or that of a plug-in.

    The last plug-in names the one that runs on this machine. A key alone is that one's,
    or a mistake: clients would take it to the cloud.
    """
    url = os.environ.get("PPIO_API_URL", "").strip().rstrip("/")
    key = os.environ.get("PPIO_API_KEY", "").strip()
    if url and not key:
        raise ConfigurationError(
            "PPIO_API_URL is set and PPIO_API_KEY is not; set the key that belongs to"
            " it, or unset both to use the platform on this machine"
        )
    if url:
        return url, key
    found = Hooks.load().default_platform(None)
    if key and (found is None or found[1] != key):
        raise ConfigurationError(
            "PPIO_API_KEY is set and PPIO_API_URL is not; set the address of the"
            " platform that it belongs to, or unset it to use the one on this machine"
        )
    return found
