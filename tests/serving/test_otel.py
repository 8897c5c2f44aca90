"""Traces of an app by OpenTelemetry."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ppio_agent import PPIOAgentRuntimeApp, RequestContext
from ppio_agent._util.threads import start_thread
from ppio_agent.serving import OpenTelemetry
from tests.serving.conftest import Serve
from tests.serving.support import SSE, Gate
from tests.support import wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


class Traced:
    """An app with a tracer of its own, and the spans that have ended."""

    def __init__(self, **settings: Any) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        plugin = OpenTelemetry(self.provider)
        self.app = PPIOAgentRuntimeApp(plugins=[plugin], **settings)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self._kept.get_finished_spans()

    def only_span(self) -> ReadableSpan:
        wait_until(lambda: self.spans)
        (span,) = self.spans
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id() -> int:
    return trace.get_current_span().get_span_context().span_id


def test_an_invocation_is_one_span(serve: Serve) -> None:
    """With the names of the conventions, below the caller's span."""
    traced = Traced(name="weather", version="1.2.3")

    @traced.app.entrypoint
    def forecast(request: Any) -> str:
        """Say how the weather will be."""
        return "fine"

    answer = serve(traced.app).invoke(
        {"n": 1}, traceparent=PARENT, X_PPIO_Session_Id="s1"
    )
    assert answer.status == 200
    span = traced.only_span()
    assert span.name == "invoke_agent weather"
    assert span.kind is SpanKind.INTERNAL
    assert span.parent is not None
    assert f"{span.parent.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "ppio_agent",
        "gen_ai.agent.name": "weather",
        "gen_ai.agent.version": "1.2.3",
        "gen_ai.agent.description": "Say how the weather will be.",
        "gen_ai.conversation.id": "s1",
        "ppio.entrypoint": "forecast",
        "ppio.invocation.id": answer.headers["x-invocation-id"],
        "ppio.invocation.attempt": 1,
        "ppio.invocation.state": "succeeded",
        "ppio.request.id": answer.headers["x-request-id"],
    }


def test_without_a_caller_who_traces_a_trace_begins() -> None:
    """And each of several entrypoints is an agent of its own name."""
    traced = Traced(name="weather")
    traced.app.entrypoint(name="now")(lambda _: 1)
    traced.app.entrypoint(name="soon")(lambda _: 1)
    with traced.app.test_client() as client:
        client.post("/invocations?entrypoint=soon", json={})
    span = traced.only_span()
    assert span.parent is None
    assert span.name == "invoke_agent soon"


def sync_agent(request: Any, context: RequestContext) -> None:
    context.state["note"]()


async def async_agent(request: Any, context: RequestContext) -> None:
    context.state["note"]()


def threaded_agent(request: Any, context: RequestContext) -> None:
    start_thread("helper", context.wrap(context.state["note"])).join()


def stream_agent(request: Any, context: RequestContext) -> Iterator[str]:
    context.state["note"]()
    yield "a"
    context.state["note"]()


async def async_stream_agent(
    request: Any, context: RequestContext
) -> AsyncIterator[str]:
    context.state["note"]()
    yield "a"
    context.state["note"]()


@pytest.mark.parametrize(
    "agent",
    [sync_agent, async_agent, threaded_agent, stream_agent, async_stream_agent],
)
def test_the_span_is_current_wherever_user_code_runs(agent: Any) -> None:
    """In middleware and in each step of a stream, too; and not outside."""
    traced = Traced()
    traced.app.entrypoint(agent)
    seen: list[int] = []

    @traced.app.middleware
    def note(context: RequestContext, request: Any) -> None:
        context.state["note"] = lambda: seen.append(span_id())
        seen.append(span_id())

    with traced.app.test_client() as client:
        client.post("/invocations", json={})
    context = traced.only_span().context
    assert context is not None
    assert len(seen) > 1
    assert set(seen) == {context.span_id}
    assert span_id() == 0


def test_a_span_of_the_agent_is_below_it() -> None:
    """As with any instrumented library that it calls."""
    traced = Traced()
    tracer = trace.get_tracer("agent", tracer_provider=traced.provider)

    @traced.app.entrypoint
    def agent(request: Any) -> None:
        with tracer.start_as_current_span("think"):
            pass

    with traced.app.test_client() as client:
        client.invoke({"n": 1})
    inner, outer = traced.spans
    assert inner.name == "think"
    assert inner.parent is not None
    assert outer.context is not None
    assert inner.parent.span_id == outer.context.span_id


def test_the_span_of_an_instrumented_server_is_the_parent() -> None:
    """Not the header's, which is that one's parent."""
    traced = Traced()
    traced.app.entrypoint(lambda _: 1)
    tracer = trace.get_tracer("server", tracer_provider=traced.provider)
    with (
        traced.app.test_client() as client,
        tracer.start_as_current_span("POST") as server,
    ):
        client.post("/invocations", json={}, headers={"traceparent": PARENT})
    span = traced.spans[0]
    assert span.parent is not None
    assert span.parent.span_id == server.get_span_context().span_id


@pytest.mark.parametrize("streams", [False, True])
def test_a_failure_is_told(streams: bool) -> None:
    """With its exception, before the first chunk and after it."""
    traced = Traced()

    @traced.app.entrypoint
    def agent(request: Any) -> Any:
        def fail() -> Iterator[str]:
            yield "a"
            raise OSError("full")

        if streams:
            return fail()
        raise OSError("full")

    with traced.app.test_client() as client:
        client.invoke({"n": 1})
    span = traced.only_span()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "full"
    found = attributes(span)
    assert found["error.type"] == "OSError"
    assert found["ppio.invocation.state"] == "failed"
    assert found.get("ppio.invocation.chunks") == (1 if streams else None)
    assert [event.name for event in span.events] == ["exception"]


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.filterwarnings("ignore")
def test_an_exception_without_a_text_ends_the_span() -> None:
    """Whatever asking it for one does."""
    traced = Traced()

    @traced.app.entrypoint
    def agent(request: Any) -> None:
        raise Mute

    with traced.app.test_client() as client:
        assert client.post("/invocations", json={}).status_code == 500
    assert attributes(traced.only_span())["ppio.invocation.state"] == "failed"


def test_the_span_ends_at_the_deadline(gate: Gate) -> None:
    """Although user code goes on."""
    traced = Traced()
    traced.app.entrypoint(lambda _: gate.stand())
    with traced.app.test_client() as client:
        headers = {"X-PPIO-Timeout": "0.05"}
        assert client.post("/invocations", json={}, headers=headers).status_code == 504
        span = traced.only_span()
        gate.open()
    assert attributes(span)["ppio.invocation.state"] == "timed_out"
    assert attributes(span)["error.type"] == "InvocationTimeoutError"
    assert span.status.status_code is StatusCode.ERROR


def test_a_cancelled_invocation_is_no_error() -> None:
    """Its caller wanted that; the span says why it ended."""
    traced = Traced()
    reached = threading.Event()

    @traced.app.entrypoint
    def agent(request: Any, context: RequestContext) -> None:
        reached.set()
        context.sleep(10)

    with traced.app.test_client() as client:
        headers = {"Prefer": "respond-async"}
        record = client.post("/invocations", json={}, headers=headers).json
        assert reached.wait(5)
        client.cancel(record["id"])
        span = traced.only_span()
    assert attributes(span)["ppio.invocation.state"] == "cancelled"
    assert attributes(span)["ppio.cancel.reason"] == "client"
    assert span.status.status_code is StatusCode.UNSET


def test_a_repetition_has_no_span(serve: Serve) -> None:
    """There is one span an invocation, however often it is asked for."""
    traced = Traced()
    traced.app.entrypoint(lambda _: iter("ab"))
    http = serve(traced.app)
    for _ in range(3):
        http.invoke({"n": 1}, Idempotency_Key="k", **SSE)
    assert attributes(traced.only_span())["ppio.invocation.chunks"] == 2


def test_without_the_extra_it_is_said_how_to_get_it() -> None:
    """And an app that is not traced does not load it."""
    code = """
import sys
import ppio_agent.serving
assert not any(name.startswith("opentelemetry") for name in sys.modules)
sys.modules["opentelemetry"] = None
try:
    ppio_agent.serving.OpenTelemetry
except ppio_agent.ConfigurationError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'ppio-agent[otel]'" in done.stdout
