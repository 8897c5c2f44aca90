"""What is common to all that is traced or measured by OpenTelemetry (extra `otel`).

The one home of that library: others take its parts from here, and so get an error that
says what to install where it is absent.
"""

from __future__ import annotations

from collections.abc import Mapping

from ppio_agent._version import __version__
from ppio_agent.exceptions import ConfigurationError

try:
    from opentelemetry import context as otel_context
    from opentelemetry import metrics, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace.propagation.tracecontext import (
        TraceContextTextMapPropagator,
    )
except ImportError as error:
    raise ConfigurationError(
        "traces need OpenTelemetry: pip install 'ppio-agent[otel]'"
    ) from error

__all__ = [
    "TRACE_CONTEXT",
    "Context",
    "meter_of",
    "metrics",
    "otel_context",
    "parent_of",
    "trace",
    "tracer_of",
]

_NAME = "ppio_agent"

TRACE_CONTEXT = TraceContextTextMapPropagator()
"""Reads and writes `traceparent`, whatever else the program has set up."""


def tracer_of(provider: trace.TracerProvider | None) -> trace.Tracer:
    """Return the package's tracer; None takes the global provider."""
    return trace.get_tracer(_NAME, __version__, tracer_provider=provider)


def meter_of(provider: metrics.MeterProvider | None) -> metrics.Meter:
    """Return the package's meter; None takes the global provider."""
    return metrics.get_meter(_NAME, __version__, meter_provider=provider)


def parent_of(
    headers: Mapping[str, str], propagator: TextMapPropagator | None = None
) -> Context:
    """Return where a span belongs: below the current one, else below the headers'.

    Args:
        headers: What a caller sent.
        propagator: Reads them; None takes the global one.
    """
    current = otel_context.get_current()
    if trace.get_current_span(current).get_span_context().is_valid:
        return current
    extract = propagate.extract if propagator is None else propagator.extract
    return extract(headers, current)
