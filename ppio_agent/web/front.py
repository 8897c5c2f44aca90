"""The WSGI callable of an application: guard, authentication, route, answer.

Routes are served from their table. With a Flask app, whose views the same functions
are, all requests go through that; or only those that our routes do not serve, as long
as nothing is registered to run around its views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    NotFoundError,
    PermissionDeniedError,
    PPIOAgentError,
    PPIOAgentRuntimeError,
)

from .auth import Authenticator
from .exchange import Exchange
from .guard import Guard
from .kit import Reply, declared_length, problem
from .lanes import Lane
from .routes import Route, RouteTable

if TYPE_CHECKING:
    import flask

__all__ = ["Front"]

_EXCHANGE = "ppio.exchange"
_CHALLENGE = ("WWW-Authenticate", "Bearer, PPIO-HMAC")

# Answers by which a request is turned away, rather than told what is wrong with it.
_REFUSALS = frozenset({401, 403, 409, 413, 429, 503})

StartResponse = Callable[..., Any]


class Front:
    """Serves the requests of one application.

    Args:
        target: The application; views are called with it.
        routes: What it serves.
        authenticator: Who finds out who sent a request.
        host: The address that it is meant to listen on, which decides who may reach it.
        max_body: Most bytes a request's body may have.
        cors_origins: Origins whose pages may call.
        open_to_all: Whether requests may come from anywhere without authentication.
        on_refused: Called with the code of each request that is turned away.

    Attributes:
        flask: The Flask app, once there is one.
        wrapped: Whether the server calls something around the application, such as the
            site in which it is mounted.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        target: Any,
        routes: Sequence[Route],
        *,
        authenticator: Authenticator,
        host: str,
        max_body: int,
        cors_origins: tuple[str, ...] = (),
        open_to_all: bool = False,
        on_refused: Callable[[str], object] | None = None,
    ) -> None:
        self.flask: flask.Flask | None = None
        self.wrapped = False
        self._target = target
        self._routes = tuple(routes)
        self._table = RouteTable(routes)
        # What a request does that Flask is to serve.
        self._inner: Callable[..., Iterable[bytes]] | None = None
        self._beside = False
        # Where the app is mounted, as the latest request said; None before the first.
        self._prefix: str | None = ""
        self._authenticator = authenticator
        # A plug-in may wait for whom it asks; health checks must not wait for that.
        self._unhurried = Lane.EXPRESS if authenticator.quick else Lane.READ
        self._max_body = max_body
        self._cors_origins = cors_origins
        self._open_to_all = open_to_all
        self._on_refused = on_refused
        self._guard = self._guard_at(host)

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
        self._guard = self._guard_at(host)
        self.wrapped = wrapped
        self._prefix = None if wrapped else ""

    @property
    def local_only(self) -> bool:
        """Whether only programs and pages of this machine are served."""
        return self._guard.local_only

    @property
    def _is_free(self) -> bool:
        """Whether requests may come from anywhere."""
        return self._authenticator.active or self._open_to_all

    def _guard_at(self, host: str) -> Guard:
        return Guard(
            local_only=is_loopback(host) and not self._is_free,
            host=host,
            cors_origins=self._cors_origins,
            methods=tuple(
                dict.fromkeys([*(route.method for route in self._routes), "OPTIONS"])
            ),
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
        exchange = Exchange(environ, max_body=self._max_body)
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
            if reply is None and self._is_flasks(exchange.method, route, routes):
                environ[_EXCHANGE] = exchange
                # What runs around the views of a Flask app must run once.
                environ.pop("ppio.relay", None)
                return self._inner(environ, start_response)  # type: ignore[misc] # it is set where the answer is yes
            if reply is None and route is not None:
                reply = route.view(self._target, exchange, **params)
        except PPIOAgentError as error:
            if _is_unexpected(error):
                raise
            reply = self._problem(error, exchange.request_id)
        if reply is None:
            reply = self._no_route(exchange, routes)
        if exchange.method == "HEAD":
            reply = _head_of(reply)
        return reply.respond(start_response)

    def _is_flasks(
        self, method: str, route: Route | None, routes: Mapping[str, Route]
    ) -> bool:
        """Whether a request goes through the Flask app."""
        if self.flask is None or (method == "OPTIONS" and routes):
            return False
        return route is None or not self._beside or _runs_around(self.flask)

    def _admit(self, exchange: Exchange, route: Route | None) -> Reply | None:
        """Refuse whoever may not call; return the answer of a preflight."""
        environ = exchange.environ
        origin = environ.get("HTTP_ORIGIN")
        host = environ.get("HTTP_HOST") or environ.get("SERVER_NAME", "")
        self._guard.check(exchange.method, host, origin, environ.get("REMOTE_ADDR"))
        asked = environ.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD")
        if exchange.method == "OPTIONS" and origin is not None and asked is not None:
            return self._preflight(exchange, origin)
        if self._authenticator.active and not (route is not None and route.public):
            # A body that says it is too large is refused before anything else is told.
            declared_length(environ, self._max_body)
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
        if error.http_status in _REFUSALS and self._on_refused is not None:
            self._on_refused(error.code)
        unknown = isinstance(error, AuthenticationError) and not isinstance(
            error, PermissionDeniedError
        )
        return problem(error, request_id, headers=[_CHALLENGE] if unknown else [])

    def make_flask(self, import_name: str) -> flask.Flask:
        """Return the Flask app of this application, made at the first call."""
        if self.flask is None:
            import flask

            made = flask.Flask(import_name)
            self.install(made)
            return made
        return self.flask

    def install(self, app: flask.Flask, *, beside: bool = False) -> None:
        """Make our routes views of a Flask app, to which other requests go.

        Args:
            app: It has no routes yet.
            beside: Serve our routes without it as long as nothing runs around its
                views. Its `wsgi_app` may then be replaced by this front.
        """
        app.url_map.strict_slashes = False
        app.url_map.merge_slashes = False  # which redirects, and a body is lost
        # What is unexpected goes up to the request kit, which logs and answers.
        app.config["PROPAGATE_EXCEPTIONS"] = True
        for route in self._routes:
            app.add_url_rule(
                route.path,
                endpoint=f"ppio{route.path.replace('.', '-')}:{route.method}",
                view_func=partial(self._view, route),
                methods=[route.method],
            )
        app.register_error_handler(PPIOAgentError, self._flask_problem)
        app.register_error_handler(404, self._flask_not_found)
        app.register_error_handler(405, self._flask_not_allowed)
        self.flask = app
        self._beside = beside
        # Without `beside` looked up late: the user may put something around it.
        self._inner = app.wsgi_app if beside else partial(_call_wsgi_app, app)

    def _view(self, route: Route, **params: str) -> flask.Response:
        import flask

        exchange: Exchange = flask.request.environ[_EXCHANGE]
        return _as_flask(route.view(self._target, exchange, **params))

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


def _call_wsgi_app(
    app: flask.Flask, environ: dict[str, Any], start_response: StartResponse
) -> Iterable[bytes]:
    return app.wsgi_app(environ, start_response)


def _runs_around(app: flask.Flask) -> bool:
    """Whether the user has registered what runs around every view."""
    return bool(
        app.before_request_funcs
        or app.after_request_funcs
        or app.teardown_request_funcs
        or app.teardown_appcontext_funcs
        or app.url_value_preprocessors
    )


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
