"""Every place where a plug-in may take part, with when, where and what for.

A plug-in is a module or an object with functions of these names, each marked with
`ppio_agent.hooks.hookimpl`; it may leave out arguments that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    from ppio_agent.wire.models import Principal

__all__ = [
    "PROJECT",
    "hookimpl",
    "hookspec",
    "ppio_authenticate",
    "ppio_client_headers",
    "ppio_default_platform",
    "ppio_find_template",
    "ppio_middleware",
]

PROJECT = "ppio_agent"

_F = TypeVar("_F", bound=Callable[..., Any])

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function as a plug-in's implementation of the hook of its name."""

_hookspec = pluggy.HookspecMarker(PROJECT)


def hookspec(*, firstresult: bool = False) -> Callable[[_F], _F]:
    """Mark a function as a hook; `firstresult` stops at the first non-None result."""
    return _hookspec(firstresult=firstresult)


@hookspec(firstresult=True)
def ppio_authenticate(request: Any) -> Principal | None:
    """Say who sent a request to an agent app.

    Called once a request, on the server's thread, before the body is parsed; never for
    ``/``, ``/ping`` and preflights. The first `Principal` admits the request; None
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
def ppio_find_template(ref: str) -> Path | str | None:
    """Find the folder of an agent that the local platform does not hold.

    Called on a thread of the platform when a sandbox is asked for by an unknown
    reference. The folder is then deployed for the caller's key.
    """


@hookspec(firstresult=True)
def ppio_default_platform(config: Any) -> tuple[str, str] | None:
    """Start or find the platform for a client that was given no address.

    Called once a client, in the thread of its first request.

    Returns:
        The URL of the control plane and an API key for it.
    """
