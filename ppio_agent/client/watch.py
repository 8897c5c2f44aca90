"""What plug-ins are told of the events of an agent's stream."""

from __future__ import annotations

import time
from collections.abc import Callable

from ppio_agent.hooks import StreamEvent
from ppio_agent.transport import Transport
from ppio_agent.wire.sse import SSEEvent

from .stream import Run

__all__ = ["watch_events"]


def watch_events(transport: Transport, run: Run) -> Callable[[SSEEvent], None] | None:
    """Return what tells the plug-ins of each event of a run; None if none listens.

    An agent may put whatever it was sent into the names and ids of its events, so
    these are redacted.
    """
    tell = transport.hooks.stream_event
    if tell is None:
        return None
    text = transport.redactor.text
    began = time.monotonic()

    def watch(event: SSEEvent) -> None:
        tell(
            StreamEvent(
                event_id=event.id and text(event.id),
                name=text(event.event),
                size=len(event.data),
                seconds=time.monotonic() - began,
                request_id=run.request_id and text(run.request_id),
                invocation_id=run.invocation_id and text(run.invocation_id),
                sandbox_id=run.sandbox_id and text(run.sandbox_id),
                session_id=run.session_id and text(run.session_id),
            )
        )

    return watch
