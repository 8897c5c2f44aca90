"""Telemetry that fails stops nothing that it is told of."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from ppio_agent.actors import ActorOptions, InProcessActorRuntime, OpenTelemetry
from ppio_agent.actors.telemetry import SafeTelemetry
from ppio_agent.exceptions import UnknownActorTypeError
from ppio_agent.wire.actors import ActorId, RequestStatus

from .support import Made, actor


class Failing(SpanProcessor):
    """A processor that fails as each span begins, or ends."""

    def __init__(self, when: str) -> None:
        self._when = when

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._when == "start":
            raise LookupError("no exporter")

    def on_end(self, span: Any) -> None:
        if self._when == "end":
            raise LookupError("no exporter")


@pytest.mark.parametrize("when", ["start", "end"])
def test_an_exporter_that_fails_stops_no_request(
    when: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Failing(when))
    runtime = InProcessActorRuntime(telemetry=OpenTelemetry(provider))
    runtime.register_actor_type(
        "t",
        lambda _: Made(lambda context, message: message.params or 1),
        options=ActorOptions(),
    )
    with runtime, caplog.at_level(logging.ERROR):
        client = runtime.client()
        for _ in range(3):
            assert client.ask(actor(), "go").status is RequestStatus.COMPLETED
            assert client.send_request(actor(), "go").result(10.0) == 1
        with pytest.raises(UnknownActorTypeError):
            client.ask(ActorId("unknown", "1"), "go")
    assert [r.message for r in caplog.records] == [
        "the telemetry of actors failed, and may be incomplete"
    ]


class Refusing:
    """A telemetry whose methods all fail."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


def test_nothing_of_a_telemetry_is_needed() -> None:
    """Whatever of it fails; what fails beside it is told as ever."""
    telemetry = SafeTelemetry(Refusing())  # type: ignore[arg-type] # it is none
    runtime = InProcessActorRuntime(telemetry=telemetry)
    runtime.register_actor_type("t", lambda _: Made(lambda context, message: 1 / 0))
    with runtime:
        assert runtime.client().ask(actor(), "go").status is RequestStatus.FAILED
    with pytest.raises(KeyError), telemetry.below(None):
        raise KeyError("of the block")
