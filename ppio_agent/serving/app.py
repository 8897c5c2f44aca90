"""`PPIOAgentRuntimeApp`: one object to decorate, which serves one agent over HTTP."""

from __future__ import annotations

import atexit
import enum
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import attrs
from attrs import frozen

from ppio_agent._util.once import Once
from ppio_agent._version import __version__
from ppio_agent.agent import RequestContext, as_handler, current_context
from ppio_agent.exceptions import ServerDrainingError
from ppio_agent.hooks import Hooks
from ppio_agent.web import RequestKit
from ppio_agent.web.auth import Authenticator
from ppio_agent.web.front import Front
from ppio_agent.wire.headers import AGENT_VERSION
from ppio_agent.wire.models import PingStatus

from .config import AgentConfig, checked_timeout, unknown_settings
from .engine import Engine, Entrypoint
from .health import BusyHandle
from .logs import logging_of_run
from .routes import ROUTES

if TYPE_CHECKING:
    import flask

    from .middleware import Middleware
    from .server import PPIOAgentRuntimeServer
    from .testing import AgentTestClient

__all__ = ["AgentRuntimeApp", "Listening", "PPIOAgentRuntimeApp"]

_log = logging.getLogger(__name__)
_F = TypeVar("_F", bound=Callable[..., Any])


class _Unset(enum.Enum):
    UNSET = enum.auto()


_UNSET = _Unset.UNSET

# Of every answer.
_HEADERS = ((AGENT_VERSION, __version__),)


class PPIOAgentRuntimeApp:
    """Serves an agent: decorate a function, then `run`.

    Args:
        config: Settings; None reads the environment.
        auth: Who may call: one or several of `ApiKeyAuth`, `HmacAuth`, another plug-in
            or a function ``(request) -> Principal | None``; asked in order.
        name: Name of the agent.
        version: Version of the agent.
        plugins: Further plug-ins.
        settings: Single settings, which override `config`: ``debug=True``.

    Raises:
        TypeError: There is no such setting.
        ConfigurationError: A setting has a value that cannot be used.

    Thread safety: requests are served in many threads at once; decorate before the
    first one.

    Example:
        >>> app = PPIOAgentRuntimeApp()
        >>> @app.entrypoint
        ... def agent(request, context):
        ...     return f"you said {request['prompt']}"
        >>> with app.test_client() as client:
        ...     client.invoke("hi").result
        'you said hi'
    """

    def __init__(
        self,
        *,
        config: AgentConfig | None = None,
        auth: Any = (),
        name: str | None = None,
        version: str | None = None,
        plugins: Iterable[object] | None = None,
        **settings: Any,
    ) -> None:
        config = AgentConfig(**settings) if config is None else config
        self.config = attrs.evolve(config, **settings) if settings else config
        self._hooks = Hooks.load(plugins or ())
        several = isinstance(auth, Sequence) and not isinstance(auth, str)
        authenticator = Authenticator(self._hooks, auth if several else (auth,))
        self._engine = Engine(
            self.config,
            name=name or "agent",
            version=version or __version__,
            security_schemes=authenticator.security_schemes,
        )
        engine, config = self._engine, self.config
        self._front = Front(
            engine,
            ROUTES,
            authenticator=authenticator,
            host=config.host,
            max_body=config.max_request_size,
            cors_origins=config.cors_origins,
            # In a sandbox the platform's edge stands in front, and names it as it likes.
            open_to_all=config.allow_unauthenticated or engine.sandbox_id is not None,
            on_refused=engine.counters.refused,
        )
        self._kit = RequestKit(self._serve, headers=_HEADERS)
        self.wsgi_app: Callable[..., Iterable[bytes]] = self._kit
        self._middleware: list[Middleware] = []
        self._on_startup: list[Callable[[], object]] = []
        self._on_shutdown: list[Callable[[], object]] = []
        self._starting: Once[None] = Once()
        self._closing: Once[bool] = Once()
        self._started = False
        self._closed = False
        self._at_exit = partial(_close_forgotten, weakref.ref(self))

    # What the user registers.

    @overload
    def entrypoint(self, function: _F) -> _F: ...

    @overload
    def entrypoint(
        self,
        *,
        name: str | None = None,
        timeout: float | None = ...,
        on_disconnect: Literal["cancel", "detach"] | None = None,
    ) -> Callable[[_F], _F]: ...

    def entrypoint(
        self,
        function: Any = None,
        *,
        name: str | None = None,
        timeout: float | _Unset | None = _UNSET,
        on_disconnect: Literal["cancel", "detach"] | None = None,
    ) -> Any:
        """Serve a function (or any agent object) at ``POST /invocations``.

        Args:
            function: The agent; left out when the decorator has arguments.
            name: Name by which ``?entrypoint=name`` chooses it; one may go without.
            timeout: Seconds an invocation of it may take, instead of the app's.
            on_disconnect: What becomes of an invocation when its last reader leaves:
                `cancel` it at once, or `detach` it: it goes on for `detach_grace`, in
                which it can be read again. None leaves that to the request.

        Returns:
            The function itself.

        Raises:
            TypeError: It is none of the shapes an agent may have.
            ConfigurationError: The timeout is no number of seconds above 0.
            ValueError: There is no such `on_disconnect`.
            RuntimeError: The name is taken, or the first request was served.
        """
        limit = self.config.timeout if timeout is _UNSET else checked_timeout(timeout)

        def register(agent: Any) -> Any:
            self._refuse_if_started()
            handler = as_handler(agent, name=name)
            served = Entrypoint(handler, limit, on_disconnect)
            self._engine.add(served, named=name is not None)
            return agent

        return register if function is None else register(function)

    def ping(self, function: _F) -> _F:
        """Let a function, sync or async, say how the agent is; see ``GET /ping``.

        Raises:
            TypeError: It needs arguments.
            RuntimeError: The first request was served.
        """
        self._refuse_if_started()
        self._engine.health.set_check(function)
        return function

    def middleware(self, function: _F) -> _F:
        """Run a function around the handler; the first registered is outermost.

        It takes ``(context, request)`` and returns None or a changed payload, or
        ``(request, call_next)`` and returns what ``call_next()`` gave.

        Raises:
            TypeError: It has neither form.
            RuntimeError: The first request was served.
        """
        from .middleware import as_middleware

        self._refuse_if_started()
        self._middleware.append(as_middleware(function))
        return function

    def on_startup(self, function: _F) -> _F:
        """Call a function before the first request is served."""
        self._refuse_if_started()
        self._on_startup.append(function)
        return function

    def on_shutdown(self, function: _F) -> _F:
        """Call a function when the app is closed; the last registered comes first.

        Nothing bounds the time it takes: what stops the app waits for it.
        """
        self._refuse_if_started()
        self._on_shutdown.append(function)
        return function

    @property
    def name(self) -> str:
        """Name of the agent."""
        return self._engine.name

    @property
    def version(self) -> str:
        """Version of the agent."""
        return self._engine.version

    @property
    def entrypoints(self) -> tuple[str, ...]:
        """Names of what is served."""
        return tuple(self._engine.entrypoints)

    def _refuse_if_started(self) -> None:
        if self._starting.begun:
            raise RuntimeError("the app serves already: register before that")

    # What user code asks and tells.

    @property
    def context(self) -> RequestContext | None:
        """The context of the invocation this code runs for; elsewhere None."""
        return current_context()

    def busy(self, name: str) -> BusyHandle:
        """Mark background work, for which ``/ping`` says `HealthyBusy`.

        Use it in a ``with`` statement, or call the handle's ``done()`` elsewhere.
        """
        return self._engine.health.busy(name)

    def force_ping_status(self, status: PingStatus | None) -> None:
        """Let ``/ping`` say this, whatever runs; None ends that."""
        self._engine.health.force(status)

    @property
    def flask(self) -> flask.Flask:
        """The Flask app for further routes, made when it is first asked for.

        From then on all requests go through it.
        """
        if self._front.flask is None:
            self._refuse_if_started()
        return self._front.make_flask(__name__)

    # Serving.

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Serve one request, as a WSGI application."""
        return self.wsgi_app(environ, start_response)

    def _serve(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if self._closed and "ppio.resume" not in environ:
            raise ServerDrainingError("the agent was shut down")
        if not self._started:
            self._start_up(multiprocess=environ.get("wsgi.multiprocess", False))
        return self._front(environ, start_response)

    def _start_up(self, *, multiprocess: bool = False) -> None:
        """Close the registration and run the start-up functions. Idempotent.

        Blocking: while another thread does it. Its own may call the app.

        Raises:
            Exception: What a start-up function raised; it stays so.
        """
        self._starting.run(partial(self._begin, multiprocess=multiprocess))

    def _begin(self, *, multiprocess: bool) -> None:
        if self._closed:
            raise ServerDrainingError("the agent was shut down")
        contributed = self._hooks.middleware(self)
        theirs: list[Middleware] = []
        if contributed:
            from .middleware import as_middleware

            theirs = [as_middleware(function) for function in contributed]
        self._engine.middleware = (*theirs, *self._middleware)
        self._hooks.close_registration()
        for name, hint in unknown_settings(os.environ):
            _log.warning("the variable %s is no setting of the agent%s", name, hint)
        for function in self._on_startup:
            function()
        atexit.register(self._at_exit)
        self._started = True
        if multiprocess:
            _log.warning(
                "invocations are known to one process only: use one worker with"
                " threads, or route by session"
            )

    def server(
        self, *, host: str | None = None, port: int | None = None
    ) -> PPIOAgentRuntimeServer:
        """Return a server for this app, to be started.

        Raises:
            ConfigurationError: Others could reach it without authentication, or there is
                no such address or port.
        """
        from .server import PPIOAgentRuntimeServer

        return PPIOAgentRuntimeServer(self, host=host, port=port)

    def run(self, port: int | None = None, host: str | None = None) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order.

        In a sandbox `HOST` and `PORT` of the environment win over the arguments. One
        byte is written to the descriptor `PPIO_READY_FD` once it listens.

        Blocking: until a signal, and then for `drain_timeout`, a little more, and the
        shut-down functions.

        Raises:
            ConfigurationError: Others could reach it without authentication, or there is
                no such address or port.
            OSError: The address is taken.
            SystemExit: Code of the agent ignored that it was cancelled (status 1).
        """
        from ppio_agent.web.run import run

        server = self.server(host=host, port=port)
        with logging_of_run(self.config):
            ended = run(server)
        if not ended:
            raise SystemExit(1)

    def test_client(self, headers: dict[str, str] | None = None) -> AgentTestClient:
        """Return a client that calls this app in process, without a socket."""
        from .testing import AgentTestClient

        return AgentTestClient(self, headers=headers)

    def drain(self) -> None:
        """Begin no more invocations, and say by ``/ping`` that the app is stopped."""
        self._engine.drain()

    def close(self, *, grace: float = 5.0) -> bool:
        """Cancel what runs and run the shut-down functions. Idempotent.

        Blocking: for `grace` and the shut-down functions, also where another thread
        closes the app already.

        Args:
            grace: Seconds that user code has to end.

        Returns:
            Whether all of it has ended.
        """
        ended = self._closing.run(partial(self._close, grace))
        return ended is not False  # None: asked by a shut-down function

    def _close(self, grace: float) -> bool:
        self._closed = True
        ended = self._engine.close(grace=grace)
        self._starting.wait()
        atexit.unregister(self._at_exit)
        for function in reversed(self._on_shutdown if self._started else []):
            try:
                function()
            except Exception:  # noqa: BLE001 - user code; the others come all the same
                _log.exception("a shut-down function failed")
        return ended

    def listen_on(self, host: str) -> Listening:
        """Take the address that is served; a server of this app calls it.

        Raises:
            ConfigurationError: Others could reach it without authentication.
        """
        wrapped = self.wsgi_app is not self._kit
        self._front.listen_on(host, wrapped=wrapped)
        self._engine.host = host
        return Listening(
            wsgi_app=self.wsgi_app,
            headers=_HEADERS,
            front=self._front,
            engine=self._engine,
            start_up=self._start_up,
        )


@frozen(kw_only=True)
class Listening:
    """What a server of an app needs of it.

    Attributes:
        wsgi_app: The app, or what the user put around it.
        headers: Of every answer.
        front: The app itself.
        engine: Where its invocations are started.
        start_up: Runs the start-up functions, once.
    """

    wsgi_app: Callable[..., Iterable[bytes]]
    headers: tuple[tuple[str, str], ...]
    front: Front
    engine: Engine
    start_up: Callable[[], None]


AgentRuntimeApp = PPIOAgentRuntimeApp


def _close_forgotten(app: weakref.ref[PPIOAgentRuntimeApp]) -> None:
    """Cancel what still runs when the interpreter ends."""
    found = app()
    if found is not None:
        found.close(grace=1.0)
