"""The events of one run, over as many connections as that takes."""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from typing import NoReturn, Protocol

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    PPIOAgentError,
    RequestTimeoutError,
    StreamClosedError,
    StreamInterruptedError,
)
from ppio_agent.transport import CallHandle, RetryPolicy
from ppio_agent.wire.sse import SSEEvent

from .events import EventReader
from .resume import is_cut, next_resume

__all__ = ["ByteSource", "EventFeed", "WayBack"]


class ByteSource(Protocol):
    """One connection to a run: the transport's raw stream, or what a test puts there."""

    def read(self) -> bytes:
        """Return the next bytes, or none at a clean end."""

    def close(self) -> None:
        """Give the connection up, from any thread; wakes a reader."""


@frozen(eq=False, kw_only=True)
class WayBack:
    """How a stream that was cut reaches its run again.

    Attributes:
        connect: Opens a connection to the events after the one with this id; makes one
            attempt.
        policy: How often and how patiently.
    """

    connect: Callable[[str | None], ByteSource]
    policy: RetryPolicy


class EventFeed:
    """Reads the events of a run; goes on with it by itself when a connection is cut.

    Args:
        source: The first connection.
        reader: What is made of its bytes.
        call: By which other threads end it, whatever it does.
        deadline: Bounds all of it.
        way_back: None where the agent cannot be asked for its events again.
        random: Gives a float in [0, 1), for the jitter of pauses.

    Thread safety: one reader; `close` from any thread, and from a signal handler.
    """

    def __init__(
        self,
        source: ByteSource,
        reader: EventReader,
        *,
        call: CallHandle,
        deadline: Deadline,
        way_back: WayBack | None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.reader = reader
        self._call = call
        self._deadline = deadline
        self._way_back = way_back
        self._random = random
        self._resumes = 0  # in a row, without an event
        # Guards the two below. Re-entrant, since a signal handler that closes runs on
        # top of whatever the reader was doing.
        self._lock = threading.RLock()
        self._source: ByteSource | None = source
        self._closed = False

    @property
    def can_resume(self) -> bool:
        """Whether the agent can be asked for the events that are missing."""
        return self._way_back is not None and self.reader.knows_place

    def read(self) -> deque[SSEEvent]:
        """Return the next events; none at the end of the run.

        Raises:
            InvocationError: The agent failed.
            StreamInterruptedError: The connection is cut, and cannot be gone on with.
            RequestTimeoutError: The deadline has passed.
            PPIOAgentError: What the call was aborted with.
        """
        while True:
            try:
                events = self._read_some()
            except PPIOAgentError as error:
                self._recover(error)
                continue
            if events is None:
                return deque()
            if events:
                self._resumes = 0
                return events

    def _read_some(self) -> deque[SSEEvent] | None:
        """Return the events that the next bytes complete; None at the end."""
        reader = self.reader
        if not reader.done:
            source = self._source
            data = (self._reconnect() if source is None else source).read()
            if data:
                return reader.feed(data)
        failure = reader.finish()
        if failure is not None:
            raise failure
        reader.done = True
        return None

    def _reconnect(self) -> ByteSource:
        assert self._way_back is not None  # noqa: S101 - or there is still a source
        source = self._way_back.connect(self.reader.last_event_id)
        self.reader.restart()
        with self._lock:
            closed = self._closed
            if not closed:
                self._source = source
        if closed:
            source.close()
            raise StreamClosedError("the stream was closed")
        return source

    def _recover(self, error: PPIOAgentError) -> None:
        """Wait until the run can be asked for again; raise if it cannot."""
        self._call.check()
        failure = self.reader.failure
        if failure is not None and is_cut(error) and error is not failure:
            # What went wrong has been told; only the end of the body is missing.
            raise failure from error
        connecting = self._source is None
        if failure is not None or not (connecting or is_cut(error)):
            raise error
        if isinstance(error, RequestTimeoutError):
            late = self._deadline.expired if connecting else error.phase != "idle"
            if late:
                raise error
        delay = self._delay(error)
        if delay is None:
            self._give_up(error)
        self._resumes += 1
        self._drop()
        self._call.pause(Deadline.after(delay))

    def _delay(self, error: PPIOAgentError) -> float | None:
        if self._way_back is None or not self.reader.knows_place:
            return None
        return next_resume(
            self._way_back.policy,
            error,
            resumes=self._resumes,
            left=self._deadline.left(),
            random=self._random,
        )

    def _give_up(self, error: PPIOAgentError) -> NoReturn:
        if isinstance(error, StreamInterruptedError) and not self._resumes:
            lost = error
        else:
            tried = f", and {self._resumes} attempts to go on with it failed"
            how = tried if self._resumes else ""
            lost = StreamInterruptedError(f"the stream was cut{how}: {error.message}")
            lost.__cause__ = error
        told = self.reader.last_words()
        if told is not None:
            # It may well be why: an agent that fails for good ends its connection.
            told.__cause__, lost.__cause__ = lost.__cause__, told
        raise lost

    def _drop(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()

    def begin_again(self) -> None:
        """Go on after an interruption, with as many attempts as at first."""
        self._resumes = 0
        self._drop()

    def release(self) -> None:
        """Give the connection back at the end of the run."""
        source = self._source
        if source is not None:
            source.close()

    def close(self) -> None:
        """End it before its end; a reader wakes at once, whatever it waits for."""
        with self._lock:
            self._closed = True
        self._call.abort(StreamClosedError("the stream was closed"))
        self.release()
