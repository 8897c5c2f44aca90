"""What runs around the handler, in both forms."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest

from ppio_agent.agent import RequestContext
from ppio_agent.exceptions import ValidationError
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import AgentRequest, AgentResponse, PPIOAgentRuntimeApp
from ppio_agent.wire.models import InvocationRequest
from tests.serving.conftest import Serve
from tests.serving.support import SSE, make_app


def app_with(*middleware: Any, agent: Any = None, **options: Any) -> Any:
    app = make_app(**options)
    for function in middleware:
        assert app.middleware(function) is function
    app.entrypoint(agent or (lambda request: request))
    return app


def call(app: PPIOAgentRuntimeApp, payload: Any = None, **headers: str) -> Any:
    payload = {"n": 1} if payload is None else payload
    return app.test_client().invoke(payload, headers=headers)


async def auth_middleware(context: RequestContext, request: InvocationRequest) -> None:
    """As the documents of the field write it."""
    if not request.metadata.get("user_id"):
        raise ValidationError("User ID required")


def test_a_middleware_refuses_before_the_handler(through_flask: bool) -> None:
    """400, and no call."""
    called = []

    def agent(request: Any) -> str:
        called.append(request)
        return "ok"

    app = app_with(auth_middleware, agent=agent, through_flask=through_flask)
    refused = call(app)
    assert (refused.status_code, refused.error) == (400, "User ID required")
    assert refused.json["metadata"]["code"] == "validation_error"
    assert called == []
    assert call(app, {"metadata": {"user_id": "u"}}).result == "ok"


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
def test_a_refusal_of_a_stream_is_an_http_status(accept: str) -> None:
    """It comes before the handler was reached, so nothing is opened yet."""

    def agent(request: Any) -> Any:
        yield 1

    answer = call(app_with(auth_middleware, agent=agent), Accept=accept)
    assert (answer.status_code, answer.json["status"]) == (400, "error")


def sync_before(context: Any, request: Any) -> Any:
    return {**request.extra, "by": "sync"}


async def async_before(context: Any, request: Any) -> Any:
    return InvocationRequest(prompt="changed", extra={"by": "async"})


def sync_around(request: Any, call_next: Any) -> Any:
    request.payload = {**request.payload, "around": request.path}
    response = call_next()
    response.headers["X-Seen"] = request.headers.get("x-a", "")
    return response


async def async_around(request: Any, call_next: Any) -> Any:
    response = await call_next()
    response.result = [response.result, threading.current_thread().name]
    return response


@pytest.mark.parametrize(
    ("middleware", "expected"),
    [
        (sync_before, {"n": 1, "by": "sync"}),
        (async_before, {"prompt": "changed", "by": "async"}),
        (sync_around, {"n": 1, "around": "/invocations"}),
        (async_around, [{"n": 1}, "ppio-loop"]),
    ],
)
def test_each_form_changes_what_it_may(middleware: Any, expected: Any) -> None:
    """What it returns is what the handler gets."""
    assert call(app_with(middleware)).result == expected


def test_a_middleware_adds_a_header_and_a_status(serve: Serve) -> None:
    """To the answer of a plain invocation, over a socket."""

    def teapot(request: Any, call_next: Any) -> Any:
        response = call_next()
        response.status_code = 418
        response.headers["X-Pot"] = "tea"
        response.headers["Connection"] = "keep-alive"
        return response

    answer = serve(app_with(teapot)).invoke({"n": 1})
    assert (answer.status, answer.headers["x-pot"]) == (418, "tea")
    assert "connection" not in answer.headers


def test_a_middleware_answers_itself() -> None:
    """Without the handler; from 400 on it is an error."""

    def closed(request: Any, call_next: Any) -> Any:
        return AgentResponse.json({"reason": "closed"}, status=403)

    app = app_with(closed, agent=lambda request: 1 / 0)
    answer = call(app)
    assert answer.status_code == 403
    assert (answer.result, answer.json["status"]) == ({"reason": "closed"}, "error")
    assert call(app, Accept="text/event-stream").status_code == 403


@pytest.mark.parametrize("is_async", [False, True])
def test_a_middleware_filters_a_stream(is_async: bool) -> None:
    """Each chunk passes through its hands."""

    def agent(request: Any) -> Any:
        yield from "abc"

    def shout(request: Any, call_next: Any) -> Any:
        response = call_next()
        response.chunks = (chunk.upper() for chunk in response.chunks)
        return response

    async def async_shout(request: Any, call_next: Any) -> Any:
        response = await call_next()
        response.chunks = (chunk.upper() for chunk in response.chunks)
        return response

    app = app_with(async_shout if is_async else shout, agent=agent)
    events = [e.data for e in app.test_client().stream({})]
    assert events[:3] == ['"A"', '"B"', '"C"']


def test_the_first_registered_is_outermost_and_plug_ins_are_outside() -> None:
    """Each sees what those outside of it did, by `context.state`."""

    class Plugin:
        @hookimpl
        def ppio_middleware(self, app: Any) -> list[Callable[..., Any]]:
            return [mark("plug-in")]

    def mark(name: str) -> Callable[..., Any]:
        def middleware(context: RequestContext, request: Any) -> None:
            context.state.setdefault("order", []).append(name)

        return middleware

    def agent(request: Any, context: RequestContext) -> Any:
        return context.state["order"]

    app = app_with(mark("first"), mark("second"), agent=agent, plugins=[Plugin()])
    assert call(app).result == ["plug-in", "first", "second"]


variable: contextvars.ContextVar[str] = contextvars.ContextVar("m", default="unset")


@pytest.mark.parametrize("is_async", [False, True])
def test_chain_and_handler_share_thread_and_variables(is_async: bool) -> None:
    """An async middleware, too: what it calls stays on the invocation's thread."""

    def outer(request: Any, call_next: Any) -> Any:
        variable.set("outer")
        response = call_next()
        response.result = [*response.result, threading.get_ident(), variable.get()]
        return response

    async def between(request: Any, call_next: Any) -> Any:
        assert variable.get() == "outer"
        return await call_next()

    def agent(request: Any) -> Any:
        variable.set("inner")
        return [threading.get_ident()]

    middleware = [outer, between] if is_async else [outer]
    inside, outside, seen = call(app_with(*middleware, agent=agent)).result
    assert inside == outside
    assert seen == "inner"


def test_what_a_middleware_does_wrong_is_500(caplog: pytest.LogCaptureFixture) -> None:
    """With its name in the log."""

    def forgets(request: Any, call_next: Any) -> None:
        call_next()

    def twice(request: Any, call_next: Any) -> Any:
        call_next()
        return call_next()

    def wrong(context: Any, request: Any) -> int:
        return 5

    with caplog.at_level(logging.ERROR, "ppio_agent"):
        for middleware in (forgets, twice, wrong):
            assert call(app_with(middleware)).status_code == 500
            assert f"middleware {middleware.__name__}" in caplog.text


@pytest.mark.parametrize("status", [9999, 199, 600, "200", True, None, 200.0])
def test_a_status_that_is_none_is_500(
    status: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Rather than a broken status line; the log says what is wrong."""

    def wrong(request: Any, call_next: Any) -> Any:
        response = call_next()
        response.status_code = status
        return response

    with caplog.at_level(logging.ERROR, "ppio_agent"):
        answer = call(app_with(wrong))
    assert answer.status_code == 500
    assert f"set the status code {status!r}: it has to be" in caplog.text


def test_a_status_may_be_of_the_standard_library(serve: Serve) -> None:
    """It is a whole number."""

    def created(request: Any, call_next: Any) -> Any:
        response = call_next()
        response.status_code = HTTPStatus.CREATED
        return response

    assert serve(app_with(created)).invoke({"n": 1}).status == 201


def annotated(one: AgentRequest, two: Callable[..., Any]) -> Any:
    return two()


def annotated_before(one: RequestContext, two: InvocationRequest) -> None: ...


class Object:
    async def __call__(self, request: Any, call_next: Any) -> Any:
        return await call_next()


@pytest.mark.parametrize("middleware", [annotated, annotated_before, Object()])
def test_the_form_is_known_by_annotations_too(middleware: Any) -> None:
    """If the names do not say it."""
    assert call(app_with(middleware)).result == {"n": 1}


def three(a: Any, b: Any, c: Any) -> None: ...


def unknown(a: Any, b: Any) -> None: ...


@pytest.mark.parametrize("middleware", [three, unknown, lambda: 1, 5])
def test_another_form_is_refused_at_once(middleware: Any) -> None:
    """When it is registered."""
    with pytest.raises(TypeError, match="call_next"):
        app_with(middleware)


def test_headers_that_come_too_late_are_dropped_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A known stream is opened when its handler is reached."""
    opened = threading.Event()

    def late(request: Any, call_next: Any) -> Any:
        response = call_next()
        opened.wait(5)
        response.headers["X-Late"] = "1"
        return response

    def agent(request: Any) -> Any:
        yield 1

    app = app_with(late, agent=agent)
    with caplog.at_level(logging.WARNING, "ppio_agent"):
        stream = app.test_client().stream({}, accept=SSE["Accept"])
        opened.set()
        events = list(stream)
    assert "x-late" not in stream.headers
    assert len(events) == 2
    assert "opened before" in caplog.text


def test_debug_logs_each_invocation(caplog: pytest.LogCaptureFixture) -> None:
    """By a middleware of the built-in plug-in."""

    def agent(request: Any) -> Any:
        if request.get("bad"):
            raise LookupError
        return 1

    app = app_with(agent=agent, debug=True)
    with caplog.at_level(logging.INFO, "ppio_agent.serving.plugin"):
        call(app)
        call(app, {"bad": 1})
    texts = [r.getMessage() for r in caplog.records if r.name.endswith("plugin")]
    assert texts[0].startswith("/invocations agent: a result after")
    assert texts[1].startswith("/invocations agent: LookupError after")
