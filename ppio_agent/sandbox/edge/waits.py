"""What a socket of the edge waits with, and what can be told of it without reading."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from typing import TypeVar

__all__ = ["hung_up", "settle", "tried"]

_T = TypeVar("_T")

# Where it does not exist, an end is a hang-up, which is told unasked.
_ENDED = getattr(select, "POLLRDHUP", 0)


def hung_up(sock: socket.socket) -> bool:
    """Whether the other side has ended or broken the connection.

    It shows before what came earlier is read, if all of that is here: an end that is
    behind more than this machine has room for is not.
    """
    poll = select.poll()
    poll.register(sock, _ENDED)
    return bool(poll.poll(0))


def tried(act: Callable[[], _T]) -> _T | None:
    """Return what `act` gives, None if it has to wait."""
    try:
        return act()
    except BlockingIOError:
        return None


def settle(
    waiter: asyncio.Future[None] | None, error: BaseException | None = None
) -> None:
    """End a wait, unless it has ended."""
    if waiter is None or waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
