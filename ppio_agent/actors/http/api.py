"""The application behind the routes: a runtime, who may call, and what all share."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent._version import __version__
from ppio_agent.actors._types import ActorType
from ppio_agent.actors.runtime_abstractions import ActorId, IActorStore
from ppio_agent.actors.telemetry import below
from ppio_agent.exceptions import (
    NotFoundError,
    RuntimeNotRunningError,
    UnknownActorTypeError,
)
from ppio_agent.hooks import Hooks
from ppio_agent.web import RequestKit
from ppio_agent.web.auth import Authenticator
from ppio_agent.web.exchange import Exchange
from ppio_agent.web.front import Front
from ppio_agent.wire.actor_bodies import valid_instance_id
from ppio_agent.wire.headers import AGENT_VERSION

from .errors import invalid

if TYPE_CHECKING:
    from ppio_agent.actors.runtime import InProcessActorRuntime

__all__ = ["HEADERS", "Api"]

HEADERS = ((AGENT_VERSION, __version__),)
"""Of every answer."""


class Api:
    """Serves the actors of one runtime.

    Args:
        runtime: Of which actors; started with the first request unless it runs.
        auth: Who may call: plug-ins or functions, asked in order.
        plugins: Further plug-ins.
        cors_origins: Origins whose pages may call.
        allow_unauthenticated: Whether others than programs of this machine may call
            without authentication.
        max_request_size: Most bytes of a body.

    Attributes:
        runtime: Of which actors.
        client: By which they are reached.
        draining: Whether the server is being stopped.
        max_request_size: Most bytes of a body.
        wsgi_app: The API as a WSGI application.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        runtime: InProcessActorRuntime,
        *,
        auth: Sequence[Any] = (),
        plugins: Iterable[object] = (),
        cors_origins: tuple[str, ...] = (),
        allow_unauthenticated: bool = False,
        max_request_size: int = 1 << 20,
    ) -> None:
        from .routes import ROUTES

        self.runtime = runtime
        self.client = runtime.client()
        self.draining = False
        self.max_request_size = max_request_size
        self._authenticator = Authenticator(Hooks.load(plugins), auth)
        self.front = Front(
            self,
            ROUTES,
            authenticator=self._authenticator,
            host="127.0.0.1",
            max_body=max_request_size,
            cors_origins=cors_origins,
            open_to_all=allow_unauthenticated,
        )
        self.wsgi_app = RequestKit(self._serve, headers=HEADERS)
        self._forget()
        renew_in_child(self, Api._forget)

    def _forget(self) -> None:
        # Lets one thread start the runtime.
        self._lock = threading.Lock()
        self._started = False
        self._at_exit: Callable[[], object] | None = None

    def _serve(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if not self._started:
            self.start()
        return self.front(environ, start_response)

    # Life.

    def start(self) -> None:
        """Start the runtime, unless it runs or was stopped since.

        Raises:
            PPIOAgentError: It cannot be started; the next call tries again.
        """
        with self._lock:
            if self._started:
                return
            if not self.runtime.running:
                self.runtime.start()
                self._at_exit = partial(_stop_forgotten, weakref.ref(self.runtime))
                atexit.register(self._at_exit)
            self._started = True

    def open(self) -> None:
        """Start the runtime, also after it was stopped.

        Raises:
            PPIOAgentError: It cannot be started.
        """
        with self._lock:
            self.draining = self._started = False
        self.start()

    def stop(self, drain: float) -> None:
        """Stop the runtime if it was started here; a second call may hurry the first."""
        at_exit = self._at_exit
        if at_exit is not None:
            self.runtime.stop(drain)
            atexit.unregister(at_exit)

    def drain(self) -> None:
        """Say by ``/health`` that the server is being stopped."""
        self.draining = True

    @property
    def running(self) -> bool:
        """Whether requests are taken."""
        return not self.draining and self.runtime.running

    # What the routes ask.

    @property
    def agents(self) -> list[ActorType]:
        """The types that are reached over HTTP, by name."""
        return [one for one in self.runtime.types.listed() if one.expose]

    @property
    def store(self) -> IActorStore:
        """Where the actors are kept.

        Raises:
            RuntimeNotRunningError: The runtime does not run.
        """
        return self.runtime.engine.store

    def type_of(self, name: str) -> ActorType:
        """Return a type that may be reached over HTTP.

        Raises:
            UnknownActorTypeError: There is none of this name.
        """
        types = self.runtime.types
        if name not in types or not types.find(name).expose:
            raise UnknownActorTypeError(f"there is no agent {name[:100]!r}")
        return types.find(name)

    def actor(self, exchange: Exchange, type_name: str, key: str) -> ActorId:
        """Return the actor that a path names, if its caller may know of it.

        Raises:
            NotFoundError: There is no such type, or the actor is another's.
            InvalidMessageError: The key cannot be one.
        """
        self.type_of(type_name)
        if not valid_instance_id(key):
            raise invalid(
                ["path", "key"], "expected 1 to 200 characters of A-Z a-z 0-9 . _ ~ -"
            )
        actor_id = ActorId(type_name, key)
        principal = exchange.principal
        if principal is not None:
            owner = self.store.owner(actor_id)
            if owner is not None and owner != principal.id:
                raise _anothers(actor_id)
        return actor_id

    def claim(self, exchange: Exchange, actor_id: ActorId) -> None:
        """Make the caller the owner of an actor that has none.

        Raises:
            NotFoundError: It is another's.
            RuntimeNotRunningError: The runtime has stopped.
        """
        principal = exchange.principal
        if principal is None:
            return
        if not self.running:
            raise RuntimeNotRunningError("the server is being stopped")
        if self.store.own(actor_id, principal.id) != principal.id:
            raise _anothers(actor_id)

    def below(self, exchange: Exchange) -> AbstractContextManager[None]:
        """Make what is sent to actors part of the caller's trace."""
        traceparent = exchange.environ.get("HTTP_TRACEPARENT")
        return below(self.runtime.telemetry, traceparent)

    @cached_property
    def openapi(self) -> Mapping[str, Any]:
        """The description of the API, without `servers`."""
        from .openapi import document

        return document(self.agents, self._authenticator.security_schemes)


def _anothers(actor_id: ActorId) -> NotFoundError:
    return NotFoundError(f"nothing is known of actor {actor_id}")


def _stop_forgotten(runtime: weakref.ref[InProcessActorRuntime]) -> None:
    found = runtime()
    if found is not None:
        found.stop(drain=1.0)
