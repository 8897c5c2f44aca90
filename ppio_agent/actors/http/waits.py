"""How callers wait for requests, and are answered when the server ends before these."""

from __future__ import annotations

from ppio_agent._util.clock import Deadline
from ppio_agent.actors.runtime_abstractions import (
    ActorResponseHandle,
    ActorResponseMessage,
)
from ppio_agent.exceptions import (
    InvocationCancelledError,
    ResponseTimeoutError,
    ServerDrainingError,
)
from ppio_agent.web.exchange import Exchange

from .api import Api

__all__ = ["dismissal", "wait_for"]

# How often a waiting thread looks whether its client has left, in seconds.
_LOOK_EVERY = 0.25


def wait_for(
    api: Api, exchange: Exchange, handle: ActorResponseHandle, seconds: float | None
) -> ActorResponseMessage | None:
    """Wait for the end of a request as long as its client does; None: it has not ended.

    Args:
        api: The application; once it dismisses its callers, nobody waits.
        exchange: The HTTP request.
        handle: The request to the actor.
        seconds: At most so long; None: as long as it takes.

    Raises:
        InvocationCancelledError: The client has left; the request goes on.
    """
    deadline = Deadline.after(seconds)
    gone = exchange.client_gone
    while True:
        response = handle.try_get_response()
        if response is not None or deadline.expired or api.dismissed:
            return response
        patience = deadline.left() if gone is None else deadline.bound(_LOOK_EVERY)
        try:
            return handle.get_response(patience)
        except ResponseTimeoutError:
            if gone is not None and gone():
                raise InvocationCancelledError(
                    "the client has closed the connection",
                    invocation_id=handle.message_id,
                ) from None


def dismissal(message_id: str) -> ServerDrainingError:
    """Return the error for those who wait for a request when the server ends."""
    return ServerDrainingError(
        f"the server was stopped before request {message_id} ended: it goes on, look"
        " it up by this id later",
        retry_after=1.0,
    )
