"""An agent's event stream: which events are content, and how it ended. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from ppio_agent.exceptions import (
    EventTooLargeError,
    InvocationError,
    PPIOAgentError,
    ProtocolError,
    StreamInterruptedError,
    WireError,
)
from ppio_agent.wire.json import Json, decode_json_text
from ppio_agent.wire.sse import Heartbeat, SSEEvent, SSEFramer

from .invocation import record_error

__all__ = ["EventReader", "decode_chunk", "join_chunks"]

_Block = SSEEvent | Heartbeat

_MOST_DIGITS = 18
_ERROR_KEYS = frozenset({"error", "error_type", "message"})
_FIRST = 1  # the number of a run's first event
# What the end of a run that did not succeed is called as an error.
_CODES = {"cancelled": "cancelled", "timed_out": "invocation_timeout"}


def decode_chunk(data: str) -> Json:
    """Return the value of an event's data: JSON, or the text as it is."""
    try:
        return decode_json_text(data)
    except WireError:
        return data


def join_chunks(chunks: Sequence[Json]) -> Json:
    """Return what a stream amounts to: one text if all its chunks are, else a list."""
    if chunks and all(isinstance(chunk, str) for chunk in chunks):
        return "".join(chunks)
    return list(chunks)


class EventReader:
    """Reads an agent's event stream, over one connection or several.

    In the full dialect a stream is whole only with its ``end`` event, and an ``error``
    event says what went wrong. In the bare one the end of the body is the end, and a
    last event that is nothing but an error message is the failure.

    Args:
        full: Whether the agent speaks the full dialect.
        max_event_bytes: Largest event.
        last_event_id: Id of the event after which to begin; None is the first.
        invocation_id: The run, which its ``end`` event may name.
        resumed: Whether the first connection goes on with a run, too.
        redact: Takes secrets out of what the agent says of a failure.
        watch: Is told of each event, once, however often connections bring it.

    Attributes:
        last_event_id: Id of the last event that came whole.
        final: The record of the ``end`` event, once it has come.
        failure: What an ``error`` event told, once it has come.
        done: Whether nothing of interest can follow.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        *,
        full: bool,
        max_event_bytes: int,
        last_event_id: str | None = None,
        invocation_id: str | None = None,
        resumed: bool = False,
        redact: Callable[[str], str] = str,
        watch: Callable[[SSEEvent], None] | None = None,
    ) -> None:
        self._full = full
        self._redact = redact
        self._watch = watch
        self._limit = max_event_bytes
        self._framer = SSEFramer(max_event_bytes)
        self._invocation_id = invocation_id
        self._broken: EventTooLargeError | ProtocolError | None = None
        self._held: SSEEvent | None = None
        self._unnamed = False  # an event without an id was content
        self._joining = resumed  # until an event comes that was not there
        self.last_event_id = last_event_id
        self.failure: InvocationError | None = None
        self.final: Mapping[str, Json] | None = None
        self.done = False

    @property
    def knows_place(self) -> bool:
        """Whether an agent can be told after which event to go on."""
        return self._full and not self._unnamed

    @property
    def over(self) -> bool:
        """Whether the run has ended, and not just what can be read of it."""
        return self.done and self._framer.error is None

    def restart(self) -> None:
        """Say that a new connection goes on after `last_event_id`.

        Half an event of the one before is dropped: it comes again.
        """
        self._framer = SSEFramer(self._limit)
        self._joining = True

    def feed(self, data: bytes) -> deque[SSEEvent]:
        """Take the next bytes; return the content events that they completed.

        Raises:
            EventTooLargeError: An event outgrew the limit. If there are others before
                it `finish` gives it, as the end of all.
            StreamInterruptedError: The new connection leaves events out, or they cannot
                be told from those that were there.
        """
        found: deque[SSEEvent] = deque()
        take = self._take_full if self._full else self._take_bare
        take(self._framer.feed(data), found)
        if self._framer.error is not None and not self.done:
            self._broken = self._framer.error
            self.done = True
        # Not while the events that come are those from before.
        if not self._joining and self._framer.last_event_id is not None:
            self.last_event_id = self._framer.last_event_id
        if found and found[0].id is None:
            self._unnamed = True
        return found

    def _take_full(self, events: Iterable[_Block], found: deque[SSEEvent]) -> None:
        for event in events:
            if isinstance(event, Heartbeat) or self.done:
                continue
            if self._joining and self._came_before(event):
                continue
            if self._watch is not None:
                self._watch(event)
            if event.event == "end" or event.event == "error":  # noqa: PLR1714 - fast
                self._take_last(event)
            else:
                found.append(event)

    def _came_before(self, event: SSEEvent) -> bool:
        """Whether the first events of a new connection are ones that were there."""
        last = self.last_event_id
        after = _FIRST - 1 if last is None else _number(last)
        number = _number(event.id)
        if after is None or number is None:
            is_content = event.event not in {"end", "error"}
            if last is not None and event.id is None and is_content:
                raise StreamInterruptedError(
                    f"the agent went on after event {last} with one without an id,"
                    " which may be one that was there"
                )
        elif last is not None and number <= after:
            return True
        elif number > after + 1:
            raise StreamInterruptedError(
                f"the agent went on with event {number} after event {after}"
                if last is not None
                else f"the agent began again with event {number}, not {_FIRST}"
            )
        self._joining = False
        return False

    def _take_last(self, event: SSEEvent) -> None:
        record = decode_chunk(event.data)
        if event.event == "error":
            self.failure = record_error(record, self._redact)
            return
        self.done = True
        if not isinstance(record, dict):
            self._broken = ProtocolError("the stream's end event has no record")
            return
        self.final = record
        run = record.get("invocation_id")
        ours = self._invocation_id
        if ours is not None and run is not None and run != ours:
            self._broken = ProtocolError(
                f"the stream of invocation {ours} ended with the record of another one"
            )
        elif self.failure is None:
            self.failure = self._failed(record)

    def _failed(self, record: Mapping[str, Json]) -> InvocationError | None:
        """Return the failure that a closing record tells of, if any."""
        status = record.get("status")
        if status is None or status == "succeeded":
            return None
        told = {"message": f"the agent's run ended with the status {status}", **record}
        if isinstance(status, str) and status in _CODES:
            told.setdefault("code", _CODES[status])
        return record_error(told, self._redact)

    def _take_bare(self, events: Iterable[_Block], found: deque[SSEEvent]) -> None:
        for event in events:
            if isinstance(event, Heartbeat):
                continue
            if self._watch is not None:
                self._watch(event)
            if self._held is not None:
                found.append(self._held)
                self._held = None
            if _looks_failed(event.data):
                self._held = event
            else:
                found.append(event)

    def last_words(self) -> InvocationError | None:
        """Return the failure that the last event of a bare stream tells of, if any."""
        if self._held is None:
            return None
        return record_error(decode_chunk(self._held.data), self._redact)

    def finish(self) -> PPIOAgentError | None:
        """Say that no more bytes come; return what is wrong with that, if anything."""
        failure = self.failure or self._broken or self.last_words()
        if failure is not None:
            return failure
        if self.done:
            return None
        lost = self._framer.finish()
        if lost is not None:
            return StreamInterruptedError(
                f"the stream ended inside an event, of which {lost.bytes_dropped}"
                " bytes had come"
            )
        if self._full:
            return StreamInterruptedError("the stream ended without its end event")
        return None


def _number(event_id: str | None) -> int | None:
    """Return an event's number; None if its id is none, which is not ours then."""
    if event_id is None or not (event_id.isascii() and event_id.isdigit()):
        return None
    # What is longer counts no events, it is a time or the like.
    return int(event_id) if len(event_id) <= _MOST_DIGITS else None


def _looks_failed(data: str) -> bool:
    if '"error"' not in data:
        return False
    value = decode_chunk(data)
    return (
        isinstance(value, dict)
        and isinstance(value.get("error"), str)
        and value.keys() <= _ERROR_KEYS
    )
