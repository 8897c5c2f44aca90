"""Every shape an agent may have, decided when it is registered."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from ppio_agent.agent import RequestContext, as_handler
from ppio_agent.agent.handler import as_payload, is_async_result, stream_of
from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.models import InvocationRequest
from tests.agent.support import make_context, make_invocation

if TYPE_CHECKING:
    from decimal import Decimal


@frozen
class Item:
    n: int


@frozen
class Order:
    items: tuple[Item, ...]


def call(agent: Any, payload: Any = None) -> Any:
    invocation = make_invocation(agent, payload)
    invocation.run()
    return invocation.result()


def nothing() -> Any:
    return "nothing"


def request_only(request: Any) -> Any:
    return request


def both(request: Any, context: Any) -> Any:
    return request, context.invocation_id[:4]


def second_is_context(payload: Any, ctx: Any) -> Any:
    return payload, ctx.invocation_id[:4]


def keyword_only(request: Any, *, context: Any) -> Any:
    return request, context.invocation_id[:4]


def any_keyword(request: Any, **more: Any) -> Any:
    return request, more["context"].invocation_id[:4]


def only_keywords(**more: Any) -> Any:
    return {"n": 1}, more["context"].invocation_id[:4]


def annotated(ctx: RequestContext, request: Any) -> Any:
    return request, ctx.invocation_id[:4]


def optional_context(request: Any, temperature: float = 0.5, ctx: RequestContext | None = None) -> Any:  # fmt: skip
    assert ctx is not None
    return request, ctx.invocation_id[:4]


def anything(*args: Any) -> Any:
    return args[0]


def with_default(request: Any, temperature: float = 0.5) -> Any:
    return request


def only_context(context: Any) -> Any:
    return {"n": 1}, context.invocation_id[:4]


class Bot:
    def run(self, request: Any, context: Any) -> Any:
        return both(request, context)


class CallableBot:
    async def __call__(self, request: Any, context: Any) -> Any:
        return both(request, context)


class Team:
    def ask(self, request: Any) -> Any:
        return request


BOTH = [{"n": 1}, "inv_"]


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (nothing, "nothing"),
        (request_only, {"n": 1}),
        (with_default, {"n": 1}),
        (anything, {"n": 1}),
        (Team().ask, {"n": 1}),
        (functools.partial(lambda extra, request: [extra, request], 7), [7, {"n": 1}]),
        (both, BOTH),
        (second_is_context, BOTH),
        (keyword_only, BOTH),
        (any_keyword, BOTH),
        (only_keywords, BOTH),
        (annotated, BOTH),
        (optional_context, BOTH),
        (only_context, BOTH),
        (Bot(), BOTH),
        (CallableBot(), BOTH),
        (functools.partial(both, context=None), None),
    ],
)
def test_each_signature_gets_what_it_asks_for(agent: Any, expected: Any) -> None:
    """Request and context go where the shape wants them."""
    if expected is None:  # a partial's own keyword is replaced by the real context
        expected = BOTH
    found = call(agent)
    assert expected == (list(found) if isinstance(found, tuple) else found)


def takes_three(a: Any, b: Any, c: Any) -> None: ...


def takes_keyword(request: Any, *, model: str) -> None: ...


@pytest.mark.parametrize("agent", [takes_three, takes_keyword, Bot, 3, "text", None])
def test_other_shapes_are_refused_at_once(agent: Any) -> None:
    """With the list of the accepted ones."""
    with pytest.raises(TypeError, match=r"takes \(\), \(request\)"):
        as_handler(agent)


def test_what_a_handler_knows_of_itself() -> None:
    """Name, kind, types and docstring."""

    async def chat(request: Order) -> str:
        """Answer."""
        return ""

    def pieces(request: Any) -> Iterator[str]:
        yield ""

    async def async_pieces(request: Any) -> AsyncIterator[str]:
        yield ""

    found = as_handler(chat)
    assert (found.name, found.doc) == ("chat", "Answer.")
    assert (found.is_async, found.is_stream) == (True, None)
    assert (found.input_type, found.output_type) == (Order, str)
    assert found.input_hint is Order
    assert (as_handler(pieces).input_type, as_handler(pieces).input_hint) == (None, Any)
    assert as_handler(nothing).input_hint is None
    assert as_handler(pieces).is_stream
    assert not as_handler(pieces).is_async
    assert as_handler(async_pieces).is_stream
    assert as_handler(async_pieces).is_async
    assert as_handler(functools.partial(pieces)).is_stream
    assert as_handler(CallableBot()).is_async
    assert as_handler(Bot()).name == "Bot"
    assert as_handler(functools.partial(both)).name == "both"
    assert as_handler(nothing, name="main").name == "main"


def test_one_unreadable_annotation_hides_no_other() -> None:
    """`Decimal` exists for type checkers only."""

    def pay(request: Order) -> Decimal: ...

    found = as_handler(pay)
    assert (found.input_type, found.output_type) == (Order, "Decimal")


def test_an_attrs_class_is_structured() -> None:
    """The handler gets the object, not the dict."""

    def count(request: Order) -> int:
        return sum(item.n for item in request.items)

    assert call(count, {"items": [{"n": 2}, {"n": 3}]}) == 5


def test_a_mismatch_names_the_place() -> None:
    """And no user code runs."""

    def count(request: Order) -> int:
        raise AssertionError

    with pytest.raises(ValidationError, match=r"^\$\.items\[0\]\.n: expected int"):
        call(count, {"items": [{"n": "3"}]})


def test_an_invocation_request_keeps_custom_fields() -> None:
    """They are its extra."""

    def read(request: InvocationRequest) -> list[Any]:
        return [request.prompt, request.extra["tone"], request.metadata.get("user")]

    assert call(read, {"prompt": "hi", "tone": "dry"}) == ["hi", "dry", None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, {"a": 1}),
        ("hi", {"prompt": "hi"}),
        ([1], {"input": [1]}),
        (3, {"input": 3}),
        (False, {"input": False}),
    ],
)
def test_a_payload_is_always_an_object(value: Any, expected: Any) -> None:
    """Texts are prompts, the rest is input."""
    assert as_payload(value) == expected


def test_null_is_no_payload() -> None:
    """400, and no call."""
    with pytest.raises(ValidationError, match="null"):
        as_payload(None)


class AsyncItems:
    def __aiter__(self) -> Any:
        return self


@frozen
class Page:
    text: str

    def __iter__(self) -> Iterator[str]:
        return iter(self.text)

    def __next__(self) -> str:
        raise StopIteration


@pytest.mark.parametrize(
    "value",
    [
        "abc",
        b"abc",
        {"a": 1},
        [1],
        (1,),
        {1},
        frozenset({1}),
        Page("x"),
        range(3),
        None,
    ],
    ids=repr,
)
def test_a_value_is_no_stream(value: Any) -> None:
    """Only iterators are, so that no list is taken apart."""
    assert stream_of(value) is None
    assert not is_async_result(value)


def test_iterators_and_async_iterators_are_streams() -> None:
    """Whoever made them."""
    assert stream_of(iter([1])) is not None
    assert is_async_result(AsyncItems())


def test_a_wrapper_that_returns_an_awaitable_is_awaited() -> None:
    """A decorator without `wraps` hides that the agent is async."""

    def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
        def hidden(request: Any) -> Any:
            return fn(request)

        return hidden

    @plain
    async def agent(request: Any) -> Any:
        return request

    assert not as_handler(agent).is_async
    assert call(agent) == {"n": 1}


def test_a_decorated_agent_keeps_its_shape() -> None:
    """`functools.wraps` shows the signature behind."""

    def logged(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return fn(*args, **kwargs)

        return inner

    assert call(logged(both)) == ({"n": 1}, "inv_")
    assert as_handler(logged(both)).call({}, make_context())[1] == "inv_"
