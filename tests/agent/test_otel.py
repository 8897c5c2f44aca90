"""What all that is traced by OpenTelemetry has in common."""

from __future__ import annotations

from opentelemetry import propagate

from ppio_agent.agent.otel import TRACE_CONTEXT, otel_context, parent_of, trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"


def test_a_span_belongs_below_the_current_one() -> None:
    """Not below the headers', which is that one's parent."""
    token = otel_context.attach(propagate.extract({"traceparent": OTHER}))
    try:
        found = parent_of({"traceparent": PARENT})
    finally:
        otel_context.detach(token)
    span = trace.get_current_span(found).get_span_context()
    assert span.span_id == 0x2222222222222222


def test_without_a_current_one_it_belongs_below_the_headers() -> None:
    """By the propagator that is given, or the global one; and below none else."""
    for propagator in (None, TRACE_CONTEXT):
        found = parent_of({"traceparent": PARENT}, propagator)
        span = trace.get_current_span(found).get_span_context()
        assert span.span_id == 0xB7AD6B7169203331
    for header in ("", "nonsense"):
        found = parent_of({"traceparent": header}, TRACE_CONTEXT)
        assert not trace.get_current_span(found).get_span_context().is_valid
