"""The WSGI callable of an app: guard, authentication, route, answer.

Routes are served from the table; with a Flask app, made because the user asked for it,
all requests go through that, and the same functions are its views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    NotFoundError,
    PermissionDeniedError,
    PPIOAgentError,
    PPIOAgentRuntimeError,
)
from ppio_agent.web import Lane, Reply, declared_length, problem

from .auth import Authenticator
from .engine import Engine
from .exchange import Exchange
from .guard import Guard
from .routes import ROUTES, Route, RouteTable

if TYPE_CHECKING:
    import flask

__all__ = ["Front", "Listening"]

_EXCHANGE = "ppio.exchange"
_CHALLENGE = ("WWW-Authenticate", "Bearer, PPIO-HMAC")

# Answers by which a request is turned away, rather than told what is wrong with it.
_REFUSALS = frozenset({401, 403, 409, 413, 429, 503})

StartResponse = Callable[..., Any]


class Front:
    """Serves the requests of one app.

    Args:
        engine: Where invocations are started.
        authenticator: Who finds out who sent a request.

    Attributes:
        engine: Where invocations are started.
        flask: The Flask app, once there is one.
        wrapped: Whether the server calls something around the app, such as the site in
            which it is mounted.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine, authenticator: Authenticator) -> None:
        self.engine = engine
        self.flask: flask.Flask | None = None
        self.wrapped = False
        # Where the app is mounted, as the latest request said; None before the first.
        self._prefix: str | None = ""
        self._authenticator = authenticator
        # A plug-in may wait for whom it asks; health checks must not wait for that.
        self._unhurried = Lane.EXPRESS if authenticator.quick else Lane.READ
        self._guard = self._guard_at(engine.config.host)
        self._table = RouteTable(ROUTES)

    def listen_on(self, host: str, *, wrapped: bool) -> None:
        """Take the address that a server of ours will listen on.

        Args:
            host: The address, which decides who may reach the app.
            wrapped: Whether the server calls something around the app.

        Raises:
            ConfigurationError: Others could reach it without authentication.
        """
        if not (is_loopback(host) or self._is_free):
            raise ConfigurationError(
                f"whoever reaches {host} could call the agent: set up auth=…, listen on"
                " 127.0.0.1, or say allow_unauthenticated=True"
            )
        self.engine.host = host
        self._guard = self._guard_at(host)
        self.wrapped = wrapped
        self._prefix = None if wrapped else ""

    @property
    def _is_free(self) -> bool:
        """Whether requests may come from anywhere."""
        # In a sandbox the platform's edge stands in front, and names it as it likes.
        return (
            self._authenticator.active
            or self.engine.config.allow_unauthenticated
            or self.engine.sandbox_id is not None
        )

    def _guard_at(self, host: str) -> Guard:
        return Guard(
            local_only=is_loopback(host) and not self._is_free,
            host=host,
            cors_origins=self.engine.config.cors_origins,
        )

    def lane(self, method: str, path: str, headers: Mapping[str, str]) -> Lane:
        """Return where the server runs a request; see `ppio_agent.web.Lanes`."""
        prefix = self._prefix
        if prefix != "":
            if prefix is None or not path.startswith(prefix):
                return Lane.INVOKE
            path = path[len(prefix) :] or "/"
        asked = method == "OPTIONS" and "ACCESS_CONTROL_REQUEST_METHOD" in headers
        if asked and "ORIGIN" in headers:
            return Lane.EXPRESS
        if len(path) > 1:
            path = path.rstrip("/")
        routes, _ = self._table.find(path)
        route = routes.get(method)
        if route is None:
            foreign = not routes and (self.wrapped or self.flask is not None)
            return Lane.INVOKE if foreign else self._unhurried
        if route.lane is Lane.EXPRESS and not route.public:
            return self._unhurried
        # In front of a wrapped app there may be code that takes as long as it likes.
        queued = route.lane is Lane.QUEUED
        return Lane.INVOKE if queued and self.wrapped else route.lane

    def __call__(
        self, environ: dict[str, Any], start_response: StartResponse
    ) -> Iterable[bytes]:
        """Serve one request."""
        exchange = Exchange(environ, max_body=self.engine.config.max_request_size)
        if environ.get("SCRIPT_NAME", "") != self._prefix:
            self._prefix = environ.get("SCRIPT_NAME", "")
        if self._guard.cors_origins:
            cors = self._guard.headers(environ.get("HTTP_ORIGIN"))
            start_response = partial(_start_with, start_response, cors)
        try:
            resume: Callable[[], Reply] | None = environ.get("ppio.resume")
            if resume is not None:
                return resume().respond(start_response)
            routes, params = self._table.find(exchange.path)
            route = routes.get(exchange.method)
            reply = self._admit(exchange, route)
            if (
                reply is None
                and self.flask is not None
                and not (exchange.method == "OPTIONS" and routes)
            ):
                environ[_EXCHANGE] = exchange
                # What runs around the views of a Flask app must run once.
                environ.pop("ppio.relay", None)
                return self.flask.wsgi_app(environ, start_response)
            if reply is None and route is not None:
                reply = route.view(self.engine, exchange, **params)
        except PPIOAgentError as error:
            if _is_unexpected(error):
                raise
            reply = self._problem(error, exchange.request_id)
        if reply is None:
            reply = self._no_route(exchange, routes)
        if exchange.method == "HEAD":
            reply = _head_of(reply)
        return reply.respond(start_response)

    def _admit(self, exchange: Exchange, route: Route | None) -> Reply | None:
        """Refuse whoever may not call; return the answer of a preflight."""
        environ = exchange.environ
        origin = environ.get("HTTP_ORIGIN")
        host = environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")
        self._guard.check(exchange.method, host, origin)
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
        if exchange.method == "OPTIONS" and origin is not None and asked is not None:
            return self._preflight(exchange, origin)
        if self._authenticator.active and not (route is not None and route.public):
            # A body that says it is too large is refused before anything else is told.
            declared_length(environ, self.engine.config.max_request_size)
            self._authenticator.admit(exchange)
        return None

    def _preflight(self, exchange: Exchange, origin: str) -> Reply:
        names = exchange.environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
        headers = [
            *self._guard.preflight(origin, names),
            ("Content-Type", "text/plain"),
        ]
        return Reply(200, headers, b"OK")

    def _no_route(self, exchange: Exchange, routes: Mapping[str, Route]) -> Reply:
        if not routes:
            missing = NotFoundError(f"there is nothing at {exchange.path[:200]}")
            return problem(missing, exchange.request_id)
        allow = ("Allow", ", ".join(sorted({*routes, "OPTIONS"})))
        if exchange.method == "OPTIONS":
            return Reply(200, [allow], b"")
        error = _not_allowed(exchange.method, exchange.path)
        return problem(error, exchange.request_id, headers=[allow])

    def _problem(self, error: PPIOAgentError, request_id: str) -> Reply:
        if error.http_status in _REFUSALS:
            self.engine.counters.refused(error.code)
        unknown = isinstance(error, AuthenticationError) and not isinstance(
            error, PermissionDeniedError
        )
        return problem(error, request_id, headers=[_CHALLENGE] if unknown else [])

    def make_flask(self, import_name: str) -> flask.Flask:
        """Return the Flask app, made at the first call, with our routes as views."""
        if self.flask is None:
            import flask

            made = flask.Flask(import_name)
            made.url_map.strict_slashes = False
            made.url_map.merge_slashes = False  # which redirects, and a body is lost
            # What is unexpected goes up to the request kit, which logs and answers.
            made.config["PROPAGATE_EXCEPTIONS"] = True
            for route in ROUTES:
                made.add_url_rule(
                    route.path,
                    endpoint=f"ppio{route.path}:{route.method}",
                    view_func=partial(self._view, route),
                    methods=[route.method],
                )
            made.register_error_handler(PPIOAgentError, self._flask_problem)
            made.register_error_handler(404, self._flask_not_found)
            made.register_error_handler(405, self._flask_not_allowed)
            self.flask = made
        return self.flask

    def _view(self, route: Route, **params: str) -> flask.Response:
        import flask

        exchange: Exchange = flask.request.environ[_EXCHANGE]
        return _as_flask(route.view(self.engine, exchange, **params))

    def _flask_problem(self, error: PPIOAgentError) -> flask.Response:
        import flask

        if _is_unexpected(error):
            raise error
        request_id = flask.request.environ[_EXCHANGE].request_id
        return _as_flask(self._problem(error, request_id))

    def _flask_not_found(self, error: Any) -> flask.Response:
        import flask

        text = f"there is nothing at {flask.request.path[:200]}"
        if error.description != type(error).description:  # said by a view of the user
            text = error.description
        return self._flask_problem(NotFoundError(text))

    def _flask_not_allowed(self, error: Any) -> flask.Response:
        import flask

        allow = ", ".join(sorted({*(error.valid_methods or ()), "OPTIONS"}))
        request_id = flask.request.environ[_EXCHANGE].request_id
        cause = _not_allowed(flask.request.method, flask.request.path)
        return _as_flask(problem(cause, request_id, headers=[("Allow", allow)]))


@frozen(kw_only=True)
class Listening:
    """What a server of an app needs of it.

    Attributes:
        wsgi_app: The app, or what the user put around it.
        headers: Of every answer.
        front: The app itself, and its engine.
        start_up: Runs the start-up functions, once.
    """

    wsgi_app: Callable[..., Iterable[bytes]]
    headers: tuple[tuple[str, str], ...]
    front: Front
    start_up: Callable[[], None]


def _head_of(reply: Reply) -> Reply:
    """Return the answer without its body; nobody reads a stream for its head."""
    if isinstance(reply.body, bytes):
        length = ("Content-Length", str(len(reply.body)))
        return Reply(reply.status, [*reply.headers, length], iter(()))
    close = getattr(reply.body, "close", None)
    if close is not None:
        close()
    return Reply(reply.status, reply.headers, iter(()))


def _is_unexpected(error: PPIOAgentError) -> bool:
    """Whether the request kit should log it, and make the same problem of it."""
    return error.http_status == 500


def _as_flask(reply: Reply) -> flask.Response:
    import flask

    return flask.Response(reply.body, reply.status, headers=list(reply.headers))


def _not_allowed(method: str, path: str) -> PPIOAgentError:
    return PPIOAgentRuntimeError(
        f"{path[:200]} does not take {method}",
        code="method_not_allowed",
        http_status=405,
    )


def _start_with(
    start_response: StartResponse,
    extra: Iterable[tuple[str, str]],
    status: str,
    headers: Iterable[tuple[str, str]],
    *exc_info: Any,
) -> Any:
    return start_response(status, [*headers, *extra], *exc_info)
