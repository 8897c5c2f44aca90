"""Traces and metrics of actors by OpenTelemetry (extra `otel`)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ppio_agent.agent.otel import (
    TRACE_CONTEXT,
    Context,
    meter_of,
    metrics,
    otel_context,
    parent_of,
    trace,
    tracer_of,
)
from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.storage.actors.records import RequestRecord, TurnCommit
from ppio_agent.wire.actors import ActorId

from .telemetry import Count, Ending

if TYPE_CHECKING:
    from .runtime import InProcessActorRuntime

__all__ = ["OpenTelemetry"]

_SECONDS = tuple(
    base * step
    for base in (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)
    for step in (1.0, 2.0, 5.0)
)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# Callers choose methods: what is no name, or one too many, is another one.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,63}")
_MOST_NAMES, _OTHER = 200, "_OTHER"
_CODE = re.compile(r"[A-Za-z_][A-Za-z0-9_.<>]{0,99}")
_BY = {
    Count.REQUESTS: "request.status",
    Count.REFUSED: "reason",
    Count.DEAD_LETTERS: "reason",
}
"""What the attribute is called that says why something is counted."""
_GAUGES = (
    ("actor.live", "live", "{actor}", "Actors that live."),
    ("actor.mailbox.depth", "pending", "{request}", "Requests that wait or run."),
    ("actor.mailbox.oldest", "oldest", "s", "Longest time a request waits."),
    ("actor.workers.busy", "busy", "{thread}", "Threads that run turns."),
    ("actor.turns.stuck", "stuck", "{turn}", "Turns without progress for too long."),
)


class OpenTelemetry:
    """Traces requests and turns of actors, and measures them.

    A request is one span, `actor.request {method}`, and each of its turns another one
    below it, `actor.message {method}`, whichever process runs it; that is the current
    span of the actor's code. No metric has an id or content, and no span content.

    Args:
        tracer_provider: Makes the spans; None takes the global one.
        meter_provider: Makes the metrics; None takes the global one.

    Thread safety: thread-safe; several runtimes may have the same one.

    Example:
        >>> from ppio_agent.actors import InProcessActorRuntime
        >>> runtime = InProcessActorRuntime(telemetry=OpenTelemetry())
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = tracer_of(tracer_provider)
        self._runtimes: WeakSet[InProcessActorRuntime] = WeakSet()
        self._names: set[str] = set()
        meter = meter_of(meter_provider)
        self._turns = _seconds(meter, "actor.turn.duration", "A turn, to its commit.")
        self._waits = _seconds(meter, "actor.mailbox.wait", "From sent to begun.")
        self._commits = _seconds(meter, "actor.commit.duration", "A commit.")
        self._batches = meter.create_histogram(
            "actor.commit.batch",
            "{write}",
            "Writes in one transaction.",
            explicit_bucket_boundaries_advisory=_SIZES,
        )
        self._counters = {what: meter.create_counter(what.value) for what in Count}
        for name, key, unit, text in _GAUGES:
            observe = partial(self._observe, key)
            meter.create_observable_gauge(name, [observe], unit, text)

    # Metrics.

    def watch(self, runtime: InProcessActorRuntime) -> None:
        """Measure a runtime while it runs; see `ActorTelemetry.watch`."""
        self._runtimes.add(runtime)

    def _observe(
        self, key: str, options: metrics.CallbackOptions
    ) -> Iterable[metrics.Observation]:
        del options
        values = []
        for runtime in list(self._runtimes):
            try:
                values.append(runtime.stats()[key])
            except (PPIOAgentError, OSError):
                continue  # it does not run, or its store cannot be reached
        if values:
            total = max(values) if key == "oldest" else sum(values)
            yield metrics.Observation(total)

    def count(
        self, what: Count, actor_id: ActorId, method: str = "", why: str = ""
    ) -> None:
        """Count one of something; see `ActorTelemetry.count`."""
        attributes = self._attributes(actor_id, method)
        if why:
            attributes[_BY[what]] = why
        self._counters[what].add(1, attributes)

    def batch(self, size: int) -> None:
        """Measure a transaction; see `ActorTelemetry.batch`."""
        self._batches.record(size)

    def _attributes(self, actor_id: ActorId, method: str = "") -> dict[str, str]:
        attributes = {"actor.type": actor_id.type_name}
        if method:
            attributes["method"] = self._named(method)
        return attributes

    def _named(self, method: str) -> str:
        """Return a method as spans and metrics call it."""
        if method not in self._names:
            if len(self._names) >= _MOST_NAMES or not _NAME.fullmatch(method):
                return _OTHER
            self._names.add(method)
        return method

    # Spans.

    @contextmanager
    def below(self, traceparent: str | None) -> Iterator[None]:
        """Make what is sent part of a trace; see `ActorTelemetry.below`."""
        with _current(parent_of(_carrier(traceparent), TRACE_CONTEXT)):
            yield

    @contextmanager
    def sending(self, request: RequestRecord) -> Iterator[Ending]:
        """Trace a request; see `ActorTelemetry.sending`."""
        parent = parent_of(_carrier(request.traceparent), TRACE_CONTEXT)
        span = self._tracer.start_span(
            f"actor.request {self._named(request.method)}",
            parent,
            trace.SpanKind.PRODUCER,
            _described(request),
        )
        context = trace.set_span_in_context(span, parent)
        carrier: dict[str, str] = {}
        TRACE_CONTEXT.inject(carrier, context)
        request.traceparent = carrier.get("traceparent", request.traceparent)
        try:
            with _ended(span) as ending, _current(context):
                yield ending
        except PPIOAgentError as error:
            self.count(Count.REFUSED, request.actor_id, request.method, error.code)
            raise

    @contextmanager
    def turn(self, request: RequestRecord, *, caller_runs: bool) -> Iterator[Ending]:
        """Trace and measure a turn; see `ActorTelemetry.turn`."""
        begun = request.started_at
        waited = 0.0 if begun is None else max(0.0, begun - request.created_at)
        parent = TRACE_CONTEXT.extract(_carrier(request.traceparent))
        span = self._tracer.start_span(
            f"actor.message {self._named(request.method)}",
            parent,
            trace.SpanKind.CONSUMER,
            {
                **_described(request),
                "actor.attempt": request.attempt or 1,
                "actor.queue_seconds": waited,
                "actor.caller_runs": caller_runs,
            },
        )
        attributes = self._attributes(request.actor_id, request.method)
        self._waits.record(waited, attributes)
        start = time.perf_counter()
        try:
            context = trace.set_span_in_context(span, parent)
            with _ended(span) as ending, _current(context):
                yield ending
        finally:
            self._turns.record(time.perf_counter() - start, attributes)

    @contextmanager
    def commit(self, actor_id: ActorId, turn: TurnCommit) -> Iterator[Ending]:
        """Trace and measure a commit; see `ActorTelemetry.commit`."""
        span = self._tracer.start_span(
            "actor.state commit",
            attributes={
                "state.ops": len(turn.state),
                "outbox.count": len(turn.outbox),
            },
        )
        start = time.perf_counter()
        try:
            with _ended(span) as ending:
                yield ending
                span.set_attribute("state.conflict", ending.conflict)
        finally:
            taken = time.perf_counter() - start
            self._commits.record(taken, self._attributes(actor_id))


def _seconds(meter: metrics.Meter, name: str, text: str) -> metrics.Histogram:
    return meter.create_histogram(
        name, "s", text, explicit_bucket_boundaries_advisory=_SECONDS
    )


def _carrier(traceparent: str | None) -> Mapping[str, str]:
    return {"traceparent": traceparent} if traceparent else {}


def _described(request: RequestRecord) -> dict[str, Any]:
    return {
        "actor.type": request.actor_id.type_name,
        "actor.id": str(request.actor_id),
        "message.id": request.message_id,
    }


@contextmanager
def _current(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


@contextmanager
def _ended(span: trace.Span) -> Iterator[Ending]:
    """End a span with what is said of its end.

    The text of an exception is not: an actor's may quote what it was told, or a key.
    """
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        ending.error = type(error).__qualname__
        raise
    finally:
        if ending.status is not None:
            span.set_attribute("request.status", ending.status.value)
        if ending.error is not None:
            known = _CODE.fullmatch(ending.error)
            span.set_attribute("error.type", ending.error if known else _OTHER)
            span.set_status(trace.StatusCode.ERROR)
        span.end()
