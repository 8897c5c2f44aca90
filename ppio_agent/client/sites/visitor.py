"""Visitors of a web site and the agents they talk to: one client, streams that end.

Shared by `ppio_agent.client.django` and `ppio_agent.client.flask`. A WSGI server has
one thread for a visitor, which only learns that the visitor has left when it writes. So
another thread reads the agent's stream, and the server's thread has something to write
also while the agent is silent.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from ppio_agent._util.aside import run_aside
from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.redact import mask
from ppio_agent._util.threads import start_thread
from ppio_agent.client.client import AgentRuntimeClient
from ppio_agent.client.config import ClientConfig
from ppio_agent.client.limits import seconds
from ppio_agent.exceptions import ConfigurationError, PPIOAgentError
from ppio_agent.wire.headers import Accept
from ppio_agent.wire.json import Json, encode_json

from .web import StreamFormat

if TYPE_CHECKING:
    from ppio_agent.client.stream import StreamingResponse

__all__ = [
    "SharedClient",
    "SiteSettings",
    "VisitorStream",
    "ask",
    "log_failure",
    "parse_settings",
]

_log = logging.getLogger(__name__)

# Chunks read ahead of the visitor.
_MOST_AHEAD = 16
_numbers = itertools.count(1)
_KEYS = ("api_key", "api_secret")


def _masked(secret: str | None) -> str:
    return "None" if secret is None else mask(secret)


@frozen(kw_only=True)
class SiteSettings:
    """What the setting ``PPIO_AGENT`` of a site says."""

    api_key: str | None = field(default=None, repr=_masked)
    api_secret: str | None = field(default=None, repr=_masked)
    config: ClientConfig = field(factory=ClientConfig)


def parse_settings(value: object) -> SiteSettings:
    """Return what ``PPIO_AGENT`` says: a dict of settings, the key and the secret.

    Args:
        value: The dict; None, as for a site that has no such setting, is an empty one.
            What it leaves out is read from the environment.

    Raises:
        ConfigurationError: It is no dict, a name in it is unknown (the nearest one is
            told), or a value cannot be used.
    """
    given: Any = {} if value is None else value
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            "the setting PPIO_AGENT has to be a dict of the settings of ClientConfig,"
            f" api_key and api_secret, not {type(given).__name__}"
        )
    known = [*_KEYS, *(a.name for a in attrs.fields(ClientConfig) if a.init)]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"PPIO_AGENT has no setting {name!r}{hint}")
    for name in _KEYS:
        if not isinstance(given.get(name), (str, type(None))):
            raise ConfigurationError(f"the setting {name} of PPIO_AGENT is no text")
    settings = {name: given[name] for name in given if name not in _KEYS}
    return SiteSettings(
        api_key=given.get("api_key"),
        api_secret=given.get("api_secret"),
        config=ClientConfig(**settings),
    )


class SharedClient:
    """The one client of a site in each of its processes, made when it is first used.

    A forked child inherits the object, which begins anew there without sessions and
    connections. It is closed when the process ends, but for its conversations.

    Args:
        settings: Says how it is made.

    Thread safety: thread-safe.
    """

    def __init__(self, settings: Callable[[], SiteSettings]) -> None:
        self._settings = settings
        self._client: AgentRuntimeClient | None = None
        self._renew()
        renew_in_child(self, SharedClient._renew)

    def _renew(self) -> None:
        # Guards the making of _client.
        self._lock = threading.Lock()

    def get(self) -> AgentRuntimeClient:
        """Return the client.

        Raises:
            ConfigurationError: A setting cannot be used.
            AuthenticationError: There is an address but no key.
        """
        client = self._client
        if client is None:
            with self._lock:
                if self._client is None:
                    settings = self._settings()
                    self._client = AgentRuntimeClient(
                        settings.api_key, settings.api_secret, config=settings.config
                    )
                client = self._client
        return client

    def close(self) -> None:
        """Close the client; the next `get` makes another."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class VisitorStream:
    """An agent's stream on its way to a visitor: an iterator of bytes for WSGI.

    The server closes it, as it does with every body, when it was sent or the visitor
    has left. In that case the agent's run is cancelled and the stream is closed, with
    its sandbox if that is its own, on a thread that nobody waits for.

    Args:
        stream: What the agent gives.
        form: How it is written.
        heartbeat: Seconds of silence after which something is written all the same;
            None: never.

    Raises:
        ValidationError: `heartbeat` is no number of seconds.

    Thread safety: one thread at a time, which is the server's.

    Blocking: each step waits for the agent, at most until the next heartbeat.
    """

    def __init__(
        self, stream: StreamingResponse, form: StreamFormat, *, heartbeat: float | None
    ) -> None:
        self._stream = stream
        self._form = form
        silence = seconds("heartbeat", heartbeat, none="means no heartbeat")
        self._silence = None if form.heartbeat is None else silence
        self._begun = self._over = False
        # From the reading thread: pieces, then None for the end or the error.
        self._pieces: queue.Queue[bytes | Exception | None]
        self._pieces = queue.Queue(_MOST_AHEAD)
        self._ended = threading.Event()  # set by the reading thread
        self._left = threading.Event()  # set by `close`

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._over:
            raise StopIteration
        if not self._begun:
            self._begun = True
            name = f"ppio-client-visitor-{next(_numbers)}"
            start_thread(name, copy_context().run, self._read)
            return self._form.opening
        try:
            piece = self._pieces.get(timeout=self._silence)
        except queue.Empty:
            return self._form.heartbeat or b""
        if isinstance(piece, bytes):
            return piece
        self._over = True
        return self._form.end if piece is None else self._failure(piece)

    def _failure(self, error: Exception) -> bytes:
        log_failure("the stream to a visitor broke off", error)
        if self._form.error is None:
            raise error
        return self._form.error(error)

    def _read(self) -> None:
        """Read the stream until it ends, in a thread of its own."""
        try:
            for event in self._stream.events():
                self._pieces.put(self._form.chunk(event))
                if self._left.is_set():
                    return
        except PPIOAgentError as error:
            self._finish(error)
        except Exception as error:  # noqa: BLE001 - the server's thread answers with it
            self._pieces.put(error)  # not the stream's end: `close` ends the run
        else:
            self._finish(None)

    def _finish(self, end: Exception | None) -> None:
        self._ended.set()
        self._pieces.put(end)

    def close(self) -> None:
        """Let go of the stream; end the agent's run if it has not ended. Idempotent."""
        if self._left.is_set():
            return
        self._left.set()
        # The reading thread may wait for room. It puts one piece at most from now on.
        with contextlib.suppress(queue.Empty):
            while True:
                self._pieces.get_nowait()
        if not self._ended.is_set():
            run_aside(self._end_run)

    def _end_run(self) -> None:
        try:
            found = self._stream.cancel()
        except Exception as error:  # noqa: BLE001 - a pool's thread: nobody else hears it
            _log.info("a run that its visitor left could not be cancelled: %s", error)
        else:
            _log.debug("a run that its visitor left is now %s", found.state)


def ask(
    client: AgentRuntimeClient,
    template_id: str,
    request: Json,
    *,
    session_id: str | None,
    accept: str | None,
) -> bytes | StreamingResponse:
    """Ask an agent for a visitor; return JSON, or a stream if `accept` wants one."""
    if Accept.parse(accept).envelope:
        answer = client.invoke_agent(template_id, request, session_id=session_id)
        return encode_json({"result": answer.result})
    return client.invoke_agent_stream(template_id, request, session_id=session_id)


def log_failure(what: str, error: Exception) -> None:
    """Log what a visitor is not told; one of our errors says all in its text."""
    known = isinstance(error, PPIOAgentError)
    level = logging.WARNING if known else logging.ERROR
    _log.log(level, "%s: %s", what, error, exc_info=None if known else error)
