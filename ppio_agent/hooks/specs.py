"""Every place where a plug-in may take part, with when, where and what for.

A plug-in is a module or an object with functions of these names, each marked with
`ppio_agent.hooks.hookimpl`; it may leave out arguments that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:
    from ppio_agent.wire.models import Principal

    from .records import (
        RequestEvent,
        ResponseEvent,
        RetryEvent,
        SessionEvent,
        StreamEvent,
    )

__all__ = [
    "PROJECT",
    "ClientAuth",
    "hookimpl",
    "hookspec",
    "ppio_actor_escalation",
    "ppio_adapt_agent",
    "ppio_authenticate",
    "ppio_client_auth",
    "ppio_client_headers",
    "ppio_client_middleware",
    "ppio_client_request",
    "ppio_client_response",
    "ppio_client_retry",
    "ppio_client_session_changed",
    "ppio_client_stream_event",
    "ppio_default_platform",
    "ppio_find_template",
    "ppio_middleware",
    "ppio_model_provider",
    "ppio_open_store",
]

PROJECT = "ppio_agent"

_F = TypeVar("_F", bound=Callable[..., Any])

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as a plug-in's implementation of the hook of its name."""

_hookspec = pluggy.HookspecMarker(PROJECT)


def hookspec(*, firstresult: bool = False) -> Callable[[_F], _F]:
    """Mark a function as a hook; `firstresult` stops at the first non-None result."""
    return _hookspec(firstresult=firstresult)


class ClientAuth(Protocol):
    """What proves who asks, in the place of the API key.

    Thread safety: whoever implements it is thread-safe; calls of many threads ask.
    """

    def headers(self, request: Any, *, refresh: bool = False) -> Mapping[str, str]:
        """Return the headers that prove who asks.

        Called for each attempt, in the thread of the call, so they may be made anew
        each time; not for the controller of a sandbox. What it raises fails the call.

        Args:
            request: Has `method`, `url`, `headers`, `body` and `kind`.
            refresh: The last headers were answered 401. Other ones are tried once,
                the same ones not.
        """


@hookspec(firstresult=True)
def ppio_authenticate(request: Any) -> Principal | None:
    """Say who sent a request to an agent app, or to actors over HTTP.

    Called once a request, on the server's thread, before the body is parsed; never for
    ``/``, ``/ping``, ``/health``, ``/docs`` and preflights. The first `Principal` admits the request; None
    leaves it to the next plug-in.

    Args:
        request: Has `method`, `path`, `target`, `headers` (lower-case names), `body`,
            and `hide(*names)` for the headers that were verified.

    Raises:
        AuthenticationError: To refuse: 401, or 403 for `PermissionDeniedError`. Any
            other exception refuses with 500 and is logged.
    """


@hookspec()
def ppio_middleware(app: Any) -> Sequence[Callable[..., Any]] | None:
    """Contribute middleware to an agent app.

    Called once an app, before its first request. Each item has one of the two forms
    of ``app.middleware``; those of the plug-in registered first are outermost, and all
    of them are outside the app's own.
    """


@hookspec()
def ppio_client_headers(request: Any) -> Mapping[str, str] | None:
    """Add headers to a request of the client.

    Called in the calling thread for each attempt. Results are merged; of two plug-ins
    that name one header the one registered later wins. Authentication and hop-by-hop
    headers are refused. An exception fails the call.

    Args:
        request: Has `method`, `url`, `headers` and `kind`.
    """


@hookspec(firstresult=True)
def ppio_client_auth(config: Any) -> ClientAuth | None:
    """Authenticate the requests of a client, in the place of its API key.

    Called once a client, in the thread of its first request, or when it is made with
    neither key nor address. None leaves it to the next plug-in, and at last to the API
    key or the embedded platform. An exception fails what asked.

    Args:
        config: The client's settings, a `ClientConfig`.
    """


@hookspec(firstresult=True)
def ppio_client_middleware(call_next: Callable[[Any], Any], request: Any) -> Any:
    """Take part in a call of the client: change it, time it, or answer it.

    Called once a call, in the calling thread; all attempts are made inside
    `call_next`. The plug-in registered first is outermost. What it raises is what
    the call raises.

    Args:
        call_next: Takes a `Request`, makes the call and returns its answer; raises
            the errors of the call, as a failure's status is one.
        request: A `Request`, frozen; pass on a changed one by ``attrs.evolve``.
            Headers that prove who asks may not be added, and are not sent to another
            origin.

    Returns:
        What `call_next` gave: a `Response`, or a `RawStream` for what is read as a
        stream, which invocations are. Or an answer of its own, by `Response.make` or
        `RawStream.of`; both do for both.
    """


@hookspec()
def ppio_client_request(record: RequestEvent) -> None:
    """Hear that an attempt of a call begins.

    Called in the calling thread. What it raises is logged once and ignored.
    """


@hookspec()
def ppio_client_response(record: ResponseEvent) -> None:
    """Hear how an attempt of a call ended; each `ppio_client_request` is followed by one.

    Called in the calling thread: with the whole answer, with the head of a stream, or
    without an answer. What it raises is logged once and ignored.
    """


@hookspec()
def ppio_client_retry(record: RetryEvent) -> None:
    """Hear that an attempt failed and that another one will follow.

    Called in the calling thread, before the pause. What it raises is logged once and
    ignored.
    """


@hookspec()
def ppio_client_stream_event(record: StreamEvent) -> None:
    """Hear that an agent's stream gave an event.

    Called in the thread that reads the stream. What it raises is logged once and
    ignored.
    """


@hookspec()
def ppio_client_session_changed(record: SessionEvent) -> None:
    """Hear that a session of the client has another state.

    Called in the thread that changed or saw it. What it raises is logged once and
    ignored.
    """


@hookspec(firstresult=True)
def ppio_find_template(ref: str) -> Path | str | None:
    """Find the folder of an agent that the local platform does not hold.

    Called on a thread of the platform when a sandbox is asked for by an unknown
    reference. The folder is then deployed for the caller's key.
    """


@hookspec(firstresult=True)
def ppio_default_platform(config: Any) -> tuple[str, str] | None:
    """Start or find the platform for a client that was given no address.

    Called once a client, in the thread of its first request, and by the command line,
    which has no client: `config` is None then, and nothing is to be started for it.

    Returns:
        The URL of the control plane and an API key for it.
    """


@hookspec(firstresult=True)
def ppio_adapt_agent(obj: Any) -> Callable[..., Any] | None:
    """Make a foreign object, say of an agent framework, an agent.

    Called once an agent, in the thread that registers it with an actor runtime, before
    its shape is looked at. None leaves it to the next plug-in, and at last to the
    object as it is. An exception fails the registration.

    Args:
        obj: What was registered as an agent.

    Returns:
        A function or an object that may be registered.
    """


@hookspec(firstresult=True)
def ppio_model_provider(name: str) -> Any:
    """Give the agent that asks a model.

    Called once a name, in the thread of `ppio_agent.actors.agents_from_env`, which a
    server of actors calls when it starts: for `azure`, `openai` and the names in
    ``PPIO_MODEL_PROVIDERS``. None leaves it to the next plug-in, and at last to what
    is built in. An exception fails the start.

    Args:
        name: The provider; the agent is registered under it.

    Returns:
        A function or an object that may be registered as an agent.
    """


@hookspec(firstresult=True)
def ppio_open_store(kind: str, url: str) -> Any:
    """Open a store of a scheme that this package does not know.

    Called in the thread that opens it. None leaves it to the next plug-in, and at last
    to an error that names the known schemes. An exception fails the opening.

    Args:
        kind: What is to be kept: `actor` (an `IActorStore`, or an `IActorStateStorage`
            for state alone) or `nonce` (a `NonceStore`).
        url: Its URL; it may hold a password.
    """


@hookspec()
def ppio_actor_escalation(type_name: str, stopped: int) -> None:
    """Hear that actors of a type crash again and again.

    Called once when the type becomes degraded, in the thread of the turn that crashed
    last; must be quick. What it raises is logged once and ignored.

    Args:
        type_name: The type.
        stopped: How many of its actors were stopped within the window of its
            supervision.
    """
