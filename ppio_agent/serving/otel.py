"""Traces of an app by OpenTelemetry: a plug-in, for which the extra `otel` is needed.

Names follow the semantic conventions for generative AI (agent spans, in development at
the time of writing); what these do not know has the prefix `ppio`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ppio_agent.agent import Invocation, InvocationState
from ppio_agent.agent.otel import Context, otel_context, parent_of, trace, tracer_of
from ppio_agent.hooks import hookimpl

if TYPE_CHECKING:
    from .app import PPIOAgentRuntimeApp
    from .middleware import AgentRequest, AgentResponse

__all__ = ["OpenTelemetry"]

_ERRORS = (InvocationState.FAILED, InvocationState.TIMED_OUT)


class OpenTelemetry:
    """Traces each invocation with one span, `invoke_agent <name>`.

    The span is the current one for middleware, handler, every step of a stream and
    wrapped threads. It begins when the request arrived and ends when the invocation is
    terminal, even if user code still runs then. An invocation that ends while it waits
    for a slot has none. Its parent is the span that is current when the request is
    served, if the server is instrumented, else that of the request's headers.

    Args:
        tracer_provider: Makes the spans; None takes the global one.

    Thread safety: thread-safe.

    Example:
        >>> from ppio_agent.serving import PPIOAgentRuntimeApp
        >>> app = PPIOAgentRuntimeApp(plugins=[OpenTelemetry()])
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._tracer = tracer_of(tracer_provider)

    # Called last, and so outside the middleware of others.
    @hookimpl(trylast=True)
    def ppio_middleware(self, app: PPIOAgentRuntimeApp) -> Sequence[Callable[..., Any]]:
        """Contribute what begins a span for each invocation."""

        def trace_invocation(
            request: AgentRequest, call_next: Callable[[], AgentResponse]
        ) -> AgentResponse:
            invocation = request.invocation
            parent = _parent(invocation)
            span = self._tracer.start_span(
                f"invoke_agent {_name(app, invocation)}",
                parent,
                attributes=_attributes(app, invocation),
                start_time=_nanoseconds(invocation),
            )
            # Never detached: these variables are the invocation's, and end with it.
            otel_context.attach(trace.set_span_in_context(span, parent))
            invocation.when_over(lambda _: _end(span, invocation))
            return call_next()

        return [trace_invocation]


def _parent(invocation: Invocation) -> Context:
    return parent_of(invocation.context.headers)


def _name(app: PPIOAgentRuntimeApp, invocation: Invocation) -> str:
    return app.name if len(app.entrypoints) == 1 else invocation.handler.name


def _nanoseconds(invocation: Invocation) -> int:
    return int(invocation.context.timestamp.timestamp() * 1e9)


def _attributes(
    app: PPIOAgentRuntimeApp, invocation: Invocation
) -> dict[str, str | int]:
    context = invocation.context
    found: dict[str, str | int] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": "ppio_agent",
        "gen_ai.agent.name": _name(app, invocation),
        "gen_ai.agent.version": app.version,
        "ppio.entrypoint": invocation.handler.name,
        "ppio.invocation.id": invocation.id,
        "ppio.invocation.attempt": context.attempt,
        "ppio.request.id": context.request_id,
    }
    if invocation.handler.doc:
        found["gen_ai.agent.description"] = invocation.handler.doc
    if context.session_id is not None:
        found["gen_ai.conversation.id"] = context.session_id
    return found


def _end(span: trace.Span, invocation: Invocation) -> None:
    try:
        _describe_end(span, invocation)
    finally:  # whatever the text of the agent's exception does
        span.end()


def _describe_end(span: trace.Span, invocation: Invocation) -> None:
    span.set_attribute("ppio.invocation.state", invocation.state.value)
    if invocation.streams:
        span.set_attribute("ppio.invocation.chunks", invocation.chunk_count)
    if invocation.cancel_reason is not None:
        span.set_attribute("ppio.cancel.reason", invocation.cancel_reason)
    error, failure = invocation.error, invocation.failure
    if invocation.state in _ERRORS and error is not None and failure is not None:
        span.set_attribute("error.type", failure.error_type)
        span.set_status(trace.StatusCode.ERROR, str(error))
        span.record_exception(error)
