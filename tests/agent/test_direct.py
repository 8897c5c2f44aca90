"""Calls of agents without an invocation."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ppio_agent.agent import Chunk, RequestContext, as_handler, current_context
from ppio_agent.agent.direct import call_agent
from ppio_agent.exceptions import InvocationCancelledError, InvocationTimeoutError


def _context(**members: Any) -> RequestContext:
    return RequestContext(invocation_id="i", request_id="r", **members)


def _call(agent: Any, context: RequestContext | None = None) -> tuple[Any, list[Any]]:
    """Return what an agent returned, and its chunks."""
    chunks: list[Any] = []
    context = context or _context()
    value = call_agent(as_handler(agent), {"n": 1}, context, chunks.append)
    return value, chunks


async def _later(request: Any) -> int:
    return int(request["n"])


def _stream(request: Any) -> Iterator[Any]:
    yield request["n"]
    yield Chunk("two")
    return "end"


async def _async_stream(request: Any) -> AsyncIterator[int]:
    yield request["n"]
    yield 2


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (lambda request: request, ({"n": 1}, [])),
        (lambda: None, (None, [])),
        (_later, (1, [])),
        (_stream, ("end", [1, "two"])),
        (_async_stream, (None, [1, 2])),
    ],
)
def test_an_agent_of_any_shape_is_called(agent: Any, expected: Any) -> None:
    """Chunks go to whoever takes them; what is returned is returned."""
    assert _call(agent) == expected


def test_an_agent_knows_its_context() -> None:
    """As long as it runs, also in a stream, and nobody does afterwards."""
    context = _context()

    def agent() -> Iterator[bool]:
        yield current_context() is context

    assert _call(agent, context)[1] == [True]
    assert current_context() is None


def test_what_is_cancelled_is_not_called() -> None:
    """Nor gone on with after a chunk; its stream is closed."""
    context, steps = _context(), list[str]()

    def agent() -> Iterator[str]:
        try:
            context.cancelled.fire("client")
            yield "one"
            steps.append("two")
        finally:
            steps.append("closed")

    for _ in range(2):
        with pytest.raises(InvocationCancelledError):
            _call(agent, context)
    assert steps == ["closed"]


def test_an_agent_is_told_of_its_deadline() -> None:
    """By its token, which wakes whatever waits for that."""
    context = _context(deadline=time.monotonic() + 0.05)
    reason, _ = _call(lambda: context.cancelled.wait(20.0) and "told", context)
    assert (reason, context.cancelled.reason) == ("told", "deadline")
    with pytest.raises(InvocationTimeoutError):
        _call(lambda: "too late", context)


def test_what_an_agent_raises_is_raised() -> None:
    """Also what is no `Exception`; the same if a chunk is not taken."""

    def agent() -> Iterator[int]:
        yield 1

    def refuse(chunk: Any) -> None:
        raise LookupError(chunk)

    with pytest.raises(LookupError):
        call_agent(as_handler(agent), {}, _context(), refuse)
    with pytest.raises(SystemExit):
        _call(lambda: sys.exit(1))
