"""The hooks of one client, found once: what no plug-in takes part in is None."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import field, frozen

from .records import (
    RequestEvent,
    ResponseEvent,
    RetryEvent,
    SessionEvent,
    StreamEvent,
)

__all__ = ["ClientHooks", "ClientMiddleware"]


@frozen
class ClientMiddleware:
    """One plug-in's part in the chain around a call.

    Attributes:
        name: The plug-in, for messages.
        run: Takes `call_next` and a request, returns an answer.
    """

    name: str
    run: Callable[[Callable[[Any], Any], Any], Any]


@frozen(kw_only=True)
class ClientHooks:
    """What plug-ins take part in at one client; a call asks for no more than that.

    None of the notifications raises.

    Attributes:
        headers: Gives further headers of a request.
        middleware: Outermost first.
        request: Is told that an attempt begins.
        response: Is told how an attempt ended.
        retry: Is told that another attempt follows.
        stream_event: Is told of an event of a stream.
        session_changed: Is told of a session's new state.
        observed: Whether anybody is told of attempts.

    Thread safety: immutable.
    """

    headers: Callable[[Any], Mapping[str, str]] | None = None
    middleware: tuple[ClientMiddleware, ...] = ()
    request: Callable[[RequestEvent], None] | None = None
    response: Callable[[ResponseEvent], None] | None = None
    retry: Callable[[RetryEvent], None] | None = None
    stream_event: Callable[[StreamEvent], None] | None = None
    session_changed: Callable[[SessionEvent], None] | None = None
    observed: bool = field(init=False)

    @observed.default
    def _observed(self) -> bool:
        return any((self.request, self.response, self.retry))
