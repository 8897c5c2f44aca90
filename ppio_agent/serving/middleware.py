"""Middleware: what runs around the handler, on the invocation's own thread.

Two forms, told apart when they are registered: `(context, request)` looks at a request
and may change its payload or refuse it; `(request, call_next)` has the answer in hand,
too. Either may be `async`; what it calls stays on the invocation's thread.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, field, frozen

from ppio_agent.agent import Invocation, RequestContext
from ppio_agent.agent.handler import is_async_result, stream_of
from ppio_agent.agent.loop import AsyncCall
from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.models import InvocationRequest

from .passthrough import is_response

__all__ = ["AgentRequest", "AgentResponse", "Chain", "Middleware", "as_middleware"]

_log = logging.getLogger(__name__)

_FORMS = "a middleware takes (context, request) or (request, call_next)"


@define(eq=False, kw_only=True)
class AgentRequest:
    """A request on its way to the handler.

    Attributes:
        payload: What the handler gets; may be replaced.
        context: The invocation's context.
        headers: The request's headers, lower-case names.
        path: The route.
        invocation: The invocation itself.
    """

    payload: dict[str, Any]
    context: RequestContext
    headers: Mapping[str, str]
    path: str
    invocation: Invocation = field(repr=False)


@define(eq=False)
class AgentResponse:
    """An outcome on its way back from the handler; all of it may be changed.

    Attributes:
        result: What the handler returned, if it does not stream.
        chunks: Its stream; may be replaced by another iterator, to filter it.
        status_code: HTTP status of the answer, 200 to 599.
        headers: Further headers of the answer.
    """

    result: Any = None
    chunks: Iterator[Any] | None = field(default=None, kw_only=True)
    status_code: int = field(default=200, kw_only=True)
    headers: dict[str, str] = field(factory=dict, kw_only=True)

    @classmethod
    def json(cls, obj: Any, status: int = 200) -> AgentResponse:
        """Return an answer with this result; from status 400 on it is an error."""
        return cls(obj, status_code=status)

    @classmethod
    def of(cls, outcome: Any) -> AgentResponse:
        """Return what a handler gave, as a value or as a stream."""
        items = stream_of(outcome)
        return cls(outcome) if items is None else cls(chunks=items)


_Next = Callable[[AgentRequest], AgentResponse]


@frozen
class Middleware:
    """One registered function.

    Attributes:
        function: What the user registered.
        wraps: Whether it has the form `(request, call_next)`.
        is_async: Whether it is `async`.
    """

    function: Callable[..., Any]
    wraps: bool
    is_async: bool

    @property
    def name(self) -> str:
        """Its name, for messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def run(self, request: AgentRequest, follow: _Next) -> AgentResponse:
        """Run it, and through it whatever follows."""
        if self.wraps:
            return self._run_around(request, follow)
        return self._run_before(request, follow)

    def _run_before(self, request: AgentRequest, follow: _Next) -> AgentResponse:
        try:
            seen = InvocationRequest.from_dict(request.payload)
        except WireError as error:
            raise ValidationError(str(error)) from error
        changed = self.function(request.context, seen)
        if is_async_result(changed):
            changed = AsyncCall(request.context.cancelled).result(changed)
        if isinstance(changed, InvocationRequest):
            request.payload = changed.to_dict()
        elif isinstance(changed, Mapping):
            request.payload = dict(changed)
        elif changed is not None:
            raise TypeError(
                f"the middleware {self.name} returned a {type(changed).__name__};"
                " it returns None, a mapping or an InvocationRequest"
            )
        return follow(request)

    def _run_around(self, request: AgentRequest, follow: _Next) -> AgentResponse:
        once = _Once(self.name, request, follow)
        if self.is_async:
            call = AsyncCall(request.context.cancelled)

            async def call_next(changed: AgentRequest | None = None) -> Any:
                return await call.on_thread(partial(once, changed))

            response = call.result(self.function(request, call_next))
        else:
            response = self.function(request, once)
        if isinstance(response, AgentResponse):
            return response
        if is_response(response):
            return AgentResponse(response)
        raise TypeError(
            f"the middleware {self.name} returned a {type(response).__name__};"
            " it returns what call_next() gave, or an AgentResponse"
        )


class _Once:
    """What a middleware calls to go on; only once."""

    def __init__(self, name: str, request: AgentRequest, follow: _Next) -> None:
        self._name = name
        self._request = request
        self._follow: _Next | None = follow

    def __call__(self, request: AgentRequest | None = None) -> AgentResponse:
        follow, self._follow = self._follow, None
        if follow is None:
            raise RuntimeError(f"the middleware {self._name} called call_next() twice")
        return follow(self._request if request is None else request)


def as_middleware(function: Callable[..., Any]) -> Middleware:
    """Return a function as middleware.

    Raises:
        TypeError: It has neither of the two forms.
    """
    if not callable(function):
        raise TypeError(f"a {type(function).__name__} is no function: {_FORMS}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function!r} has no readable signature: {_FORMS}") from error
    wraps = _form(parameters)
    if wraps is None:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(f"{name} has another form: {_FORMS}")
    target = function if inspect.isroutine(function) else function.__call__  # type: ignore[operator]
    return Middleware(function, wraps, inspect.iscoroutinefunction(target))


def _form(parameters: Sequence[inspect.Parameter]) -> bool | None:
    """Return whether the form is `(request, call_next)`; None if it is neither."""
    kinds = inspect.Parameter
    required = [
        p
        for p in parameters
        if p.default is kinds.empty
        and p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) != 2:
        return None
    first, second = (p.name for p in required)
    if second == "call_next":
        return True
    if first == "context":
        return False
    types = [str(getattr(p.annotation, "__name__", p.annotation)) for p in required]
    if types[0].endswith("RequestContext"):
        return False
    if types[0].endswith("AgentRequest") or "Callable" in types[1]:
        return True
    return None


def _checked_status(response: AgentResponse) -> int:
    status = response.status_code
    if isinstance(status, int) and not isinstance(status, bool) and 200 <= status < 600:
        return int(status)
    close = getattr(response.chunks, "close", None)
    if close is not None:
        close()
    raise ValueError(
        f"a middleware set the status code {status!r}: it has to be a whole number"
        " between 200 and 599"
    )


class Chain:
    """The middleware of an app around one invocation.

    It is what the kernel runs around the handler; afterwards it knows status and
    headers of the answer, also for a replay of it.

    Thread safety: runs on one thread; the others look after the end.
    """

    __slots__ = ("_items", "_path", "_request", "headers", "opened", "status_code")

    def __init__(self, items: Sequence[Middleware], path: str) -> None:
        self._items = items
        self._path = path
        self._request: AgentRequest | None = None
        self.status_code = 200
        self.headers: Mapping[str, str] = {}
        self.opened = False

    def bind(self, invocation: Invocation) -> None:
        """Take the invocation it is going to run around."""
        context = invocation.context
        self._request = AgentRequest(
            payload={},
            context=context,
            headers=context.headers,
            path=self._path,
            invocation=invocation,
        )

    def __call__(self, reach: Callable[[Any], Any], payload: Any) -> Any:
        """Run the chain; see `ppio_agent.agent.handler.Around`."""
        request, self._request = self._request, None
        if request is None:
            raise RuntimeError("a chain of middleware runs once, for one invocation")
        request.payload = payload
        response = self._step(0, reach, request)
        self.status_code = _checked_status(response)
        self.headers = dict(response.headers)
        if self.opened and self.headers:
            _log.warning(
                "headers set by middleware are dropped: the stream of invocation %s"
                " was opened before",
                request.context.invocation_id,
            )
        return response.result if response.chunks is None else response.chunks

    def _step(
        self, index: int, reach: Callable[[Any], Any], request: AgentRequest
    ) -> AgentResponse:
        if index == len(self._items):
            return AgentResponse.of(reach(request.payload))
        return self._items[index].run(request, partial(self._step, index + 1, reach))
