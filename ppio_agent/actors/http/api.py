"""The application behind the routes: a runtime, who may call, and what all share."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent._version import __version__
from ppio_agent.actors._outage import OUTAGES
from ppio_agent.actors._send import encode_params
from ppio_agent.actors._types import ActorType
from ppio_agent.actors.runtime_abstractions import ActorId, IActorStore, Params
from ppio_agent.actors.telemetry import below
from ppio_agent.exceptions import (
    NotFoundError,
    RuntimeNotRunningError,
    ServerDrainingError,
    UnknownActorTypeError,
)
from ppio_agent.hooks import Hooks
from ppio_agent.web import RequestKit, problem
from ppio_agent.web.auth import Authenticator
from ppio_agent.web.exchange import Exchange
from ppio_agent.web.front import Front
from ppio_agent.wire.actor_bodies import valid_instance_id
from ppio_agent.wire.headers import AGENT_VERSION, IDEMPOTENCY_REPLAYED

from .errors import invalid
from .outages import told

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
        hooks: The plug-ins.
        cors_origins: Origins whose pages may call.
        allow_unauthenticated: Whether others than programs of this machine may call
            without authentication.
        max_request_size: Most bytes of a body.

    Attributes:
        runtime: Of which actors.
        client: By which they are reached.
        draining: Whether the server is being stopped.
        dismissed: Whether nobody is to wait any longer.
        held: Requests whose turns run on their own threads.
        max_request_size: Most bytes of a body.
        wsgi_app: The API as a WSGI application.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        runtime: InProcessActorRuntime,
        *,
        hooks: Hooks,
        auth: Sequence[Any] = (),
        cors_origins: tuple[str, ...] = (),
        allow_unauthenticated: bool = False,
        max_request_size: int = 1 << 20,
    ) -> None:
        from .routes import ROUTES

        self.runtime = runtime
        self.client = runtime.client()
        self.draining = False
        self.dismissed = False
        self.held: set[Exchange] = set()
        self.max_request_size = max_request_size
        self._authenticator = Authenticator(hooks, auth)
        self.front = Front(
            self,
            ROUTES,
            authenticator=self._authenticator,
            host="127.0.0.1",
            max_body=max_request_size,
            cors_origins=cors_origins,
            open_to_all=allow_unauthenticated,
        )
        self._described: tuple[list[ActorType] | None, Mapping[str, Any]] = (None, {})
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
            try:
                self.start()
            except OUTAGES as error:
                raise told(self.runtime, error) from error.__cause__
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
            self.draining = self.dismissed = self._started = False
        self.start()

    def stop(self, drain: float) -> None:
        """Stop the runtime if it was started here; a second call may hurry the first."""
        at_exit = self._at_exit
        if at_exit is not None:
            self.runtime.stop(drain)
            atexit.unregister(at_exit)

    def dismiss(self) -> None:
        """Let nobody wait any longer for what goes on, of a runtime that goes on."""
        self.dismissed = True
        for exchange in self.held.copy():
            relay = exchange.environ.get("ppio.relay")
            if relay is None or not self.let_go(exchange):
                continue
            error = ServerDrainingError(
                "the server was stopped before the run ended", retry_after=1.0
            )
            answer = partial(problem, error, exchange.request_id)
            if not relay(exchange.environ, answer):
                exchange.environ["ppio.abort"]()

    def let_go(self, exchange: Exchange) -> bool:
        """Take a request out of those held; return whether it was one of them."""
        try:
            self.held.remove(exchange)
        except KeyError:
            return False
        return True

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

    def is_visible(self, exchange: Exchange, actor_id: ActorId) -> bool:
        """Whether the caller may see what others than callers sent to an actor."""
        principal = exchange.principal
        return principal is None or self.store.owner(actor_id) == principal.id

    def claim(
        self, exchange: Exchange, actor_id: ActorId, method: str, params: Params
    ) -> None:
        """Make the caller the owner of an actor that has none, for a request to it.

        The last that is done before it is sent, so that one that is refused makes
        nobody an owner.

        Raises:
            NotFoundError: It is another's.
            RuntimeNotRunningError: The runtime has stopped.
            PPIOAgentError: It cannot be sent, see `encode_params`.
        """
        if exchange.principal is None:
            return
        if not self.running:
            raise RuntimeNotRunningError("the server is being stopped")
        if self.store.owner(actor_id) is None:
            encode_params(method, params)
        self.keep(exchange, actor_id)

    def keep(self, exchange: Exchange, actor_id: ActorId) -> None:
        """Claim an actor again after a request was accepted.

        It may have been deleted since it was claimed, with the claim.

        Raises:
            NotFoundError: It is another's.
        """
        principal = exchange.principal
        if principal is None:
            return
        owner = self.store.owner(actor_id) or self.store.own(actor_id, principal.id)
        if owner != principal.id:
            raise _anothers(actor_id)

    def replayed(
        self, actor_id: ActorId, message_id: str | None
    ) -> list[tuple[str, str]]:
        """Return the header that says that a request was sent before, if it was."""
        if message_id is None or self.store.get_request(actor_id, message_id) is None:
            return []
        return [(IDEMPOTENCY_REPLAYED, "true")]

    def below(self, exchange: Exchange) -> AbstractContextManager[None]:
        """Make what is sent to actors part of the caller's trace."""
        traceparent = exchange.environ.get("HTTP_TRACEPARENT")
        return below(self.runtime.telemetry, traceparent)

    @property
    def openapi(self) -> Mapping[str, Any]:
        """The description of the API, without `servers`; made anew for new types."""
        from .openapi import document

        agents = self.agents
        described, found = self._described
        if described != agents:
            found = document(agents, self._authenticator.security_schemes)
            self._described = agents, found
        return found


def _anothers(actor_id: ActorId) -> NotFoundError:
    return NotFoundError(f"nothing is known of actor {actor_id}")


def _stop_forgotten(runtime: weakref.ref[InProcessActorRuntime]) -> None:
    found = runtime()
    if found is not None:
        found.stop(drain=1.0)
