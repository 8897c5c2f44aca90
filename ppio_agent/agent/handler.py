"""What an agent is: any callable, made uniform when it is registered.

The shape of a callable is decided once, so that a mistake shows where the agent is
written and a call costs no inspection.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, get_args

import attrs
from attrs import frozen

from ppio_agent.exceptions import ValidationError, WireError
from ppio_agent.wire.model import structure
from ppio_agent.wire.models import InvocationRequest

from .context import RequestContext

__all__ = ["Around", "Handler", "as_handler", "as_payload"]

_SHAPES = (
    "an agent is a function, async function, generator, async generator, bound method,"
    " functools.partial, or an object with run() or __call__(); it takes (),"
    " (request) or (request, context)"
)
_PLAIN = {type(None), bool, int, float, str, bytes, dict, list, tuple, set, frozenset}


@frozen(kw_only=True)
class Handler:
    """One agent, called the same way whatever its shape.

    Attributes:
        name: Name of the entrypoint.
        is_stream: Whether it gives chunks; None if only the call can tell.
        is_async: Whether it is known to be `async`.
        input_type: Class the payload is structured into; None for the payload as is.
        input_hint: What its annotation says it takes, or None.
        output_type: What its annotation says it returns, or None.
        doc: Its docstring, or None.

    Thread safety: immutable, as far as the agent itself allows it.
    """

    name: str
    is_stream: bool | None
    is_async: bool
    input_type: type | None
    input_hint: Any
    output_type: Any
    doc: str | None
    _invoke: Callable[[Any, RequestContext], Any] = attrs.field(alias="invoke")

    def prepare(self, payload: Any) -> Any:
        """Return the payload in the form that the agent wants.

        Raises:
            ValidationError: It does not have the form of `input_type`; the message
                names the place, as in ``$.items[0].n: expected int``.
        """
        if self.input_type is None:
            return payload
        try:
            return structure(self.input_type, payload)
        except WireError as error:
            raise ValidationError(str(error)) from error

    def call(self, argument: Any, context: RequestContext) -> Any:
        """Call the agent with what `prepare` returned; the result is not awaited."""
        return self._invoke(argument, context)

    def run(self, argument: Any, context: RequestContext) -> Any:
        """Call the agent and return its value, or the iterator of its chunks."""
        outcome = self._invoke(argument, context)
        if is_async_result(outcome):
            from .loop import AsyncCall

            return AsyncCall(context.cancelled).result(outcome)
        return outcome


class Around(Protocol):
    """What runs around a handler, on the invocation's thread: a middleware chain."""

    def __call__(self, reach: Callable[[Any], Any], payload: Any) -> Any:
        """Return the outcome; `reach(payload)` calls the handler.

        An iterator, from `reach` or as the outcome, is a stream of chunks.
        """


def as_handler(obj: Any, *, name: str | None = None) -> Handler:
    """Return `obj` as a handler.

    Args:
        obj: The agent.
        name: Name of the entrypoint; None takes the function's or the class's own.

    Raises:
        TypeError: It is none of the shapes an agent may have.
    """
    target = _callable_of(obj)
    bare = _without_partials(target)
    signature = _signature(target, bare)
    call = _plan(target, signature)
    is_generator = inspect.isgeneratorfunction(target)
    is_async_generator = inspect.isasyncgenfunction(target)
    return Handler(
        name=name or _name_of(obj, bare),
        is_stream=True if is_generator or is_async_generator else None,
        is_async=is_async_generator or inspect.iscoroutinefunction(target),
        input_type=_input_type(call.input_hint),
        input_hint=call.input_hint,
        output_type=(
            None
            if signature.return_annotation is inspect.Signature.empty
            else signature.return_annotation
        ),
        doc=inspect.getdoc(bare),
        invoke=call.invoke,
    )


def as_payload(value: Any) -> dict[str, Any]:
    """Return a request body as the object that handlers get.

    An object is kept as it is, a text becomes ``{"prompt": …}``, anything else
    ``{"input": …}``.

    Raises:
        ValidationError: There is nothing: `null`, or no body.
    """
    if isinstance(value, dict):
        return value
    if value is None:
        raise ValidationError("the body is null; send a JSON object, or a text")
    return {"prompt": value} if isinstance(value, str) else {"input": value}


def is_async_result(value: Any) -> bool:
    """Whether a handler's result has to be driven by an event loop."""
    if type(value) in _PLAIN:
        return False
    return inspect.isawaitable(value) or hasattr(value, "__aiter__")


def stream_of(value: Any) -> Iterator[Any] | None:
    """Return a handler's result as the iterator of chunks it is; None if it is none."""
    if type(value) in _PLAIN or not isinstance(value, Iterator):
        return None
    return None if attrs.has(type(value)) else value


@frozen
class _Call:
    """How to call one agent."""

    invoke: Callable[[Any, RequestContext], Any]
    input_hint: Any


def _callable_of(obj: Any) -> Callable[..., Any]:
    if inspect.isclass(obj):
        raise TypeError(f"{obj.__name__} is a class: register an instance; {_SHAPES}")
    target: Any = obj
    if not inspect.isroutine(obj) and not isinstance(obj, functools.partial):
        run = getattr(obj, "run", None)
        # The bound method, since `inspect` does not look behind an instance.
        target = run if callable(run) else getattr(obj, "__call__", None)  # noqa: B004
    if not callable(target):
        raise TypeError(f"a {type(obj).__name__} cannot be called: {_SHAPES}")
    found: Callable[..., Any] = target
    return found


def _without_partials(target: Callable[..., Any]) -> Callable[..., Any]:
    while isinstance(target, functools.partial):
        target = target.func
    return target  # a bound method knows its function's docstring and globals


def _name_of(obj: Any, bare: Callable[..., Any]) -> str:
    if not inspect.isroutine(obj) and not isinstance(obj, functools.partial):
        return type(obj).__name__
    return getattr(bare, "__name__", None) or type(bare).__name__


def _signature(
    target: Callable[..., Any], bare: Callable[..., Any]
) -> inspect.Signature:
    """Return the signature with every annotation evaluated that can be.

    One by one: a name imported only for type checkers must not hide the others.
    """
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{target!r} has no readable signature: {_SHAPES}") from error
    names = getattr(inspect.unwrap(bare), "__globals__", {})
    return signature.replace(
        parameters=[
            p.replace(annotation=_evaluated(p.annotation, names))
            for p in signature.parameters.values()
        ],
        return_annotation=_evaluated(signature.return_annotation, names),
    )


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, names)  # noqa: S307 - the author's own code, as typing does
    except Exception:  # noqa: BLE001 - it may run any code; the text is good enough
        return annotation


def _plan(target: Callable[..., Any], signature: inspect.Signature) -> _Call:
    """Decide which of the call's two arguments goes where."""
    kinds = inspect.Parameter
    positional, keywords, rest, more = [], [], False, False
    for parameter in signature.parameters.values():
        if parameter.kind is kinds.VAR_POSITIONAL:
            rest = True
        elif parameter.kind is kinds.VAR_KEYWORD:
            more = True
        elif parameter.kind is kinds.KEYWORD_ONLY:
            keywords.append(parameter)
        else:
            positional.append(parameter)
    context = _context_parameter([*positional, *keywords])
    requests = [p for p in positional if p is not context]
    if context is None and len(requests) > 1 and requests[1].default is kinds.empty:
        context = requests.pop(1)
    _refuse_further(target, requests[1:], [k for k in keywords if k is not context])
    takes_request = bool(requests) or rest
    hint = requests[0].annotation if requests else kinds.empty
    return _Call(
        _caller(target, takes_request, context, positional, more),
        None if hint is kinds.empty else hint,
    )


def _refuse_further(
    target: Callable[..., Any],
    positional: list[inspect.Parameter],
    keywords: list[inspect.Parameter],
) -> None:
    for parameter in (*positional, *keywords):
        if parameter.default is inspect.Parameter.empty:
            name = getattr(target, "__name__", repr(target))
            raise TypeError(
                f"{name} requires the parameter {parameter.name!r}: {_SHAPES}"
            )


def _context_parameter(
    parameters: list[inspect.Parameter],
) -> inspect.Parameter | None:
    for parameter in parameters:
        if parameter.name == "context" or _means(parameter.annotation, RequestContext):
            return parameter
    return None


def _means(annotation: Any, cls: type) -> bool:
    if isinstance(annotation, str):  # could not be evaluated, say under TYPE_CHECKING
        return annotation.strip("'\"").rpartition(".")[2] == cls.__name__
    return annotation is cls or cls in get_args(annotation)


def _input_type(annotation: Any) -> type | None:
    if _means(annotation, InvocationRequest):
        return InvocationRequest
    if inspect.isclass(annotation) and attrs.has(annotation):
        return annotation
    return None


def _caller(
    target: Callable[..., Any],
    takes_request: bool,  # noqa: FBT001 - private, named at its one call
    context: inspect.Parameter | None,
    positional: list[inspect.Parameter],
    takes_any_keyword: bool,  # noqa: FBT001 - the same
) -> Callable[[Any, RequestContext], Any]:
    if context in positional[:2]:
        if not takes_request:
            return lambda _, context: target(context)
        if context is positional[0]:
            return lambda request, context: target(context, request)
        return target
    if context is not None or takes_any_keyword:
        name = "context" if context is None else context.name
        if takes_request:
            return lambda request, context: target(request, **{name: context})
        return lambda _, context: target(**{name: context})
    return (lambda request, _: target(request)) if takes_request else _ignoring(target)


def _ignoring(target: Callable[[], Any]) -> Callable[[Any, RequestContext], Any]:
    return lambda _, __: target()
