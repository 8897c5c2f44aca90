"""Methods that await, made of methods that block.

Each keeps the signature and the docstring of its original: for people, for `help`, and
for type checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeAlias,
    TypeVar,
)

from ppio_agent.transport import CallScope

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from .bridge import Bridge

__all__ = ["Async", "ClosingMirror", "Mirror", "awaited", "ending", "like", "opening"]

_B = TypeVar("_B")
_B_co = TypeVar("_B_co", covariant=True)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_M = TypeVar("_M")


class Mirror(Generic[_B_co]):
    """An object whose methods await what those of a blocking one give.

    Args:
        bridge: Runs them.
        blocking: The original.
    """

    def __init__(self, bridge: Bridge, blocking: _B_co) -> None:
        self._bridge = bridge
        self._blocking = blocking

    def __repr__(self) -> str:
        return f"<aio {self._blocking!r}>"


class ClosingMirror(Mirror[_B_co]):
    """One that ends something at the end of ``async with``, as its original does."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        leave: Any = self._blocking
        await self._bridge.finish(partial(leave.__exit__, kind, error, trace))


Async: TypeAlias = Callable[Concatenate[Mirror[_B], _P], Coroutine[Any, Any, _T]]
"""A method that is awaited."""


def like(method: Callable[..., object]) -> Callable[[_T], _T]:
    """Return a decorator that gives a function the face of `method`."""
    return wraps(method, assigned=("__name__", "__qualname__", "__doc__"))  # type: ignore[return-value] # it returns what it decorates


def awaited(method: Callable[Concatenate[_B, _P], _T]) -> Async[_B, _P, _T]:
    """Return the method that awaits `method`; a cancelled task aborts it."""

    @like(method)
    async def call(self: Mirror[_B], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await self._bridge.call(partial(method, self._blocking, *args, **kwargs))

    return call


def ending(method: Callable[Concatenate[_B, _P], _T]) -> Async[_B, _P, _T]:
    """Return the method that awaits `method`, which goes on if the task is cancelled."""

    @like(method)
    async def call(self: Mirror[_B], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        fn = partial(method, self._blocking, *args, **kwargs)
        return await self._bridge.finish(fn)

    return call


def opening(
    method: Callable[Concatenate[_B, _P], _T],
    mirror: Callable[[Bridge, _T, CallScope], _M],
    *,
    discard: Callable[[_T], object],
) -> Async[_B, _P, _M]:
    """Return the method that awaits `method` and gives the mirror of what that opened.

    Args:
        method: What opens something.
        mirror: Makes the mirror; gets the scope of what was opened, too.
        discard: Gives up what was opened for a task that is gone.
    """

    @like(method)
    async def call(self: Mirror[_B], /, *args: _P.args, **kwargs: _P.kwargs) -> _M:
        fn, scope = partial(method, self._blocking, *args, **kwargs), CallScope()
        opened = await self._bridge.call(fn, discard=discard, scope=scope)
        return mirror(self._bridge, opened, scope)

    return call
