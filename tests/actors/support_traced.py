"""A telemetry of actors, and what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ppio_agent.actors import (
    ActorOptions,
    InProcessActorRuntime,
    OpenTelemetry,
    RuntimeOptions,
)
from tests.support import SLOW

from .support import Made, Receive

__all__ = ["Traced"]


class Traced:
    """What is told, with the spans that have ended and the metrics."""

    def __init__(self) -> None:
        self._kept = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._kept))
        self._reader = InMemoryMetricReader()
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.telemetry = OpenTelemetry(self.provider, meters)

    @contextmanager
    def running(
        self,
        receive: Receive,
        *,
        storage: Any = None,
        runtime_options: RuntimeOptions | None = None,
        **options: Any,
    ) -> Iterator[InProcessActorRuntime]:
        """Run actors of the type `t`, made of a function."""
        runtime = InProcessActorRuntime(
            storage, options=runtime_options, telemetry=self.telemetry
        )
        runtime.register_actor_type(
            "t", lambda _context: Made(receive), options=ActorOptions(**options)
        )
        runtime.start()
        try:
            yield runtime
        finally:
            runtime.stop(drain=5.0 * SLOW)

    def spans(self, name: str = "") -> list[ReadableSpan]:
        """Return the spans whose name begins so, in the order of their ends."""
        found = self._kept.get_finished_spans()
        return [span for span in found if span.name.startswith(name)]

    def points(self) -> dict[str, list[Any]]:
        """Return the data points of each metric."""
        data = self._reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def told(self) -> str:
        """Return all of it as one text."""
        return "".join(span.to_json() for span in self.spans()) + str(self.points())

    def counted(self, name: str, *by: str) -> dict[Any, int]:
        """Return how much was counted, by values of these attributes."""
        return {
            tuple(point.attributes[key] for key in by): point.value
            for point in self.points().get(name, ())
        }
