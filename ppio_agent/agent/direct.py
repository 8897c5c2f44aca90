"""One call of an agent for whoever keeps its life, its answer and its steps himself.

An `Invocation` can be read, waited for and ended by other threads; a turn of an actor
is all that already. What a handler sees is the same here.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from typing import Any

from ppio_agent._util.alarm import alarms

from .chunk import Chunk
from .context import CancelToken, RequestContext, bind_context
from .handler import Handler, stream_of

__all__ = ["call_agent"]


class _Deadline:
    """Raises a flag when it is time."""

    __slots__ = ("_cancelled",)

    def __init__(self, cancelled: CancelToken) -> None:
        self._cancelled = cancelled

    def on_alarm(self) -> None:
        self._cancelled.fire("deadline")


def call_agent(
    handler: Handler,
    payload: dict[str, Any],
    context: RequestContext,
    take: Callable[[Any], object],
) -> Any:
    """Call an agent in this thread, to its end; return what it returned.

    Args:
        handler: The agent.
        payload: What it gets.
        context: What it is told; its deadline and token are in force.
        take: Called with each chunk of a stream, here.

    Raises:
        InvocationCancelledError: Its end was asked for before it was called, or between
            two chunks; or `InvocationTimeoutError`.
        NoThreadError: It has a deadline, and nobody can watch that.
        BaseException: Whatever the agent or `take` raises.

    Blocking: as the agent does.
    """
    # In variables of its own, as each call; what is set so far is seen there.
    variables = contextvars.copy_context()
    bind_context(context, variables)
    watch, deadline = None, context.deadline
    if deadline is not None:
        watch = _Deadline(context.cancelled)
        alarms().set(watch, deadline)
    try:
        return variables.run(_call, handler, payload, context, take)
    finally:
        bind_context(context, None)
        if watch is not None:
            alarms().clear(watch)


def _call(
    handler: Handler,
    payload: dict[str, Any],
    context: RequestContext,
    take: Callable[[Any], object],
) -> Any:
    argument = handler.prepare(payload)
    context.check()
    value = handler.run(argument, context)
    items = stream_of(value)
    return value if items is None else _follow(items, context, take)


def _follow(
    items: Iterator[Any], context: RequestContext, take: Callable[[Any], object]
) -> Any:
    try:
        while True:
            try:
                item = next(items)
            except StopIteration as end:
                return end.value
            take(item.data if isinstance(item, Chunk) else item)
            context.check()
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
