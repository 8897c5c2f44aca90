"""An app with an agent of every shape, for tests of each server that can host it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from functools import partial, wraps
from typing import Any

import attrs

from ppio_agent.agent import RequestContext
from ppio_agent.serving import ApiKeyAuth, PPIOAgentRuntimeApp
from ppio_agent.wire.models import InvocationRequest

__all__ = ["KEY", "SHAPES", "build"]

KEY = "sk-tests-only"


def nothing() -> str:
    return "nothing"


def plain(request: dict[str, Any]) -> Any:
    return [request["n"], request["other"]]


def with_context(request: dict[str, Any], context: RequestContext) -> Any:
    return [request["n"], context.session_id]


def keyword_only(request: dict[str, Any], *, context: RequestContext) -> Any:
    return [request["n"], context.session_id]


def by_annotation(told: RequestContext, request: dict[str, Any]) -> Any:
    return [request["n"], told.session_id]


def any_keywords(request: dict[str, Any], **more: Any) -> Any:
    return [request["n"], more["context"].session_id]


async def asynchronous(request: dict[str, Any]) -> Any:
    await asyncio.sleep(0.001)
    return [request["n"]]


def generator(request: dict[str, Any], context: RequestContext) -> Iterator[Any]:
    yield f"n={request['n']}"
    yield f" by {context.session_id}"


async def async_generator(request: dict[str, Any]) -> AsyncIterator[Any]:
    yield {"n": request["n"]}
    await asyncio.sleep(0.001)
    yield None


def returns_iterator(request: dict[str, Any]) -> Any:
    return iter([request["n"], 2])


def returns_async_iterator(request: dict[str, Any]) -> Any:
    return async_generator(request)


def wrapped(request: dict[str, Any]) -> Awaitable[Any]:
    return asynchronous(request)


def scaled(factor: int, request: dict[str, Any]) -> Any:
    return factor * request["n"]


class Runner:
    def run(self, request: dict[str, Any], context: RequestContext) -> Any:
        return [request["n"], context.session_id]

    def method(self, request: dict[str, Any]) -> Any:
        return [request["n"]]


class AsyncRunner:
    async def run(self, request: dict[str, Any]) -> Any:
        return [request["n"]]


class Called:
    def __call__(self, request: dict[str, Any]) -> Any:
        return [request["n"]]


class AsyncCalled:
    async def __call__(self, request: dict[str, Any], context: RequestContext) -> Any:
        return [request["n"], context.session_id]


class StreamRunner:
    def run(self, request: dict[str, Any]) -> Iterator[Any]:
        yield request["n"]


@wraps(plain)
def decorated(*args: Any, **kwargs: Any) -> Any:
    return plain(*args, **kwargs)


@attrs.frozen
class Order:
    n: int
    other: list[int]


def structured(order: Order) -> Any:
    return [order.n, order.other, type(order).__name__]


def as_request(request: InvocationRequest) -> Any:
    return [request.to_dict()["n"], type(request).__name__]


SHAPES: dict[str, tuple[Any, Any]] = {
    "nothing": (nothing, "nothing"),
    "plain": (plain, [7, [1]]),
    "with context": (with_context, [7, "s1"]),
    "keyword only": (keyword_only, [7, "s1"]),
    "by annotation": (by_annotation, [7, "s1"]),
    "any keywords": (any_keywords, [7, "s1"]),
    "async": (asynchronous, [7]),
    "generator": (generator, "n=7 by s1"),
    "async generator": (async_generator, [{"n": 7}, None]),
    "returns iterator": (returns_iterator, [7, 2]),
    "returns async iterator": (returns_async_iterator, [{"n": 7}, None]),
    "returns awaitable": (wrapped, [7]),
    "decorated": (decorated, [7, [1]]),
    "partial": (partial(scaled, 3), 21),
    "method": (Runner().method, [7]),
    "run": (Runner(), [7, "s1"]),
    "async run": (AsyncRunner(), [7]),
    "run streams": (StreamRunner(), [7]),
    "call": (Called(), [7]),
    "async call": (AsyncCalled(), [7, "s1"]),
    "attrs": (structured, [7, [1], "Order"]),
    "InvocationRequest": (as_request, [7, "InvocationRequest"]),
}
"""Name of an entrypoint: the agent, and its result for `{"n": 7, "other": [1]}`."""


_user: contextvars.ContextVar[str | None] = contextvars.ContextVar("user", default=None)


def remember(request: dict[str, Any]) -> Any:
    """Tell what a context variable held, and leave something in it."""
    before = _user.get()
    _user.set(request["user"])
    return {"before": before, "after": _user.get(), "thread": threading.get_ident()}


def remember_streaming(request: dict[str, Any]) -> Iterator[Any]:
    yield _user.get()
    _user.set(request["user"])
    yield "set"
    yield _user.get()


async def remember_async(request: dict[str, Any]) -> AsyncIterator[Any]:
    for item in remember_streaming(request):
        yield item


def wait(request: dict[str, Any], context: RequestContext) -> Iterator[Any] | Any:
    """Do what a test asks for, some seconds long."""
    seconds = request.get("seconds", 0)
    if request.get("stream"):
        return _wait_streaming(seconds, context)
    if request.get("stuck"):
        threading.Event().wait(seconds)
    else:
        context.sleep(seconds)
    return {"pid": os.getpid(), "attempt": context.attempt}


def _wait_streaming(seconds: float, context: RequestContext) -> Iterator[str]:
    yield "a"
    context.sleep(seconds)
    yield "b"


def claims(request: dict[str, Any], context: RequestContext) -> Any:
    """Tell which headers speak of the way of the request."""
    return sorted(name for name in context.headers if "forwarded" in name)


def build(**settings: Any) -> PPIOAgentRuntimeApp:
    """Return an app with all of them."""
    app = PPIOAgentRuntimeApp(auth=ApiKeyAuth({"tester": KEY}), **settings)
    for name, (agent, _) in SHAPES.items():
        app.entrypoint(name=name)(agent)
    for agent in (remember, remember_streaming, remember_async, claims):
        app.entrypoint(name=agent.__name__)(agent)
    app.entrypoint(wait)
    return app
