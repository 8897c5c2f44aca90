"""An agent's answer, piece by piece, while it is being made."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from ppio_agent._util.closing import Closing
from ppio_agent.exceptions import (
    InvocationError,
    NetworkError,
    RequestTimeoutError,
    StreamClosedError,
    StreamInterruptedError,
)
from ppio_agent.wire.json import Json
from ppio_agent.wire.sse import SSEEvent

from .invocation import EventReader, decode_chunk

if TYPE_CHECKING:
    pass

__all__ = ["ByteSource", "CancelResult", "Run", "StreamingResponse"]


class ByteSource(Protocol):
    """What a stream reads: the transport's raw stream, or what a test puts there."""

    def read(self) -> bytes:
        """Return the next bytes, or none at a clean end."""

    def close(self) -> None:
        """Give the connection up, from any thread; wakes a reader."""


@frozen(kw_only=True)
class Run:
    """What is known of the run that a stream shows.

    Attributes:
        request_id: Id of the HTTP request.
        invocation_id: Id of the run; None with an agent that does not give any.
        session_id: The conversation.
        sandbox_id: The sandbox.
    """

    request_id: str | None = None
    invocation_id: str | None = None
    session_id: str | None = None
    sandbox_id: str | None = None


@frozen(kw_only=True)
class CancelResult:
    """What an agent said to being cancelled.

    Attributes:
        confirmed: Whether its code is known to have ended.
        state: State of the invocation, such as `cancelling`; `unknown` with an agent
            that cannot be asked.
    """

    confirmed: bool
    state: str


class StreamingResponse(Closing):
    """The chunks of one invocation, in order, as the agent gives them.

    Iterate it once, or use it as a context manager to leave early:

        with session.invoke_stream("Write a story") as stream:
            for chunk in stream:
                print(chunk, end="", flush=True)

    Each chunk is the decoded JSON of an event, or its text if it is no JSON.

    Attributes:
        run: Ids of what is being read.
        final: The agent's closing record, such as ``{"status": "succeeded", "duration":
            1.2, "events": 10, …}``; None before the end, and with agents that send
            none.
        last_event_id: Id of the last chunk that was handed out.

    Raises:
        InvocationError: While iterating: the agent failed, after the chunks that it
            gave before.
        StreamInterruptedError: While iterating: the connection was cut.
        StreamClosedError: While iterating: another thread closed the stream.

    Thread safety: one thread reads; `close` and `cancel` may come from any other.

    Blocking: the next chunk is waited for as long as the stream is not silent for
    `ClientConfig.idle_timeout`, and at most until the deadline if one was given.
    """

    def __init__(
        self,
        source: ByteSource,
        reader: EventReader,
        *,
        run: Run,
        on_end: Callable[[], None] = lambda: None,
        on_abandon: Callable[[], None] | None = None,
        cancel: Callable[[], CancelResult] | None = None,
        ready: Iterable[SSEEvent] = (),
    ) -> None:
        self.run = run
        self.last_event_id: str | None = None
        self._source = source
        self._reader = reader
        self._ready = deque(ready)
        self._count = 0
        self._on_end = on_end
        self._cancel = cancel
        # Guards _ended and _closer.
        self._lock = threading.Lock()
        self._ended = False
        self._closer: int | None = None
        # Runs if nobody ends the stream. It must take no lock: it may run anywhere.
        self._abandoned: weakref.finalize[..., Any] | None = None
        if on_abandon is not None:
            self._abandoned = weakref.finalize(self, on_abandon)
            self._abandoned.atexit = False

    @property
    def final(self) -> Mapping[str, Json] | None:
        """The agent's closing record, once it has come."""
        return self._reader.final

    @property
    def invocation_id(self) -> str | None:
        """Id of the run, if the agent gave it one."""
        return self.run.invocation_id

    def __iter__(self) -> Iterator[Json]:
        return self

    def __next__(self) -> Json:
        return decode_chunk(self._next_event().data)

    def events(self) -> Iterator[SSEEvent]:
        """Yield the chunks as the events that carried them, not decoded."""
        while True:
            try:
                event = self._next_event()
            except StopIteration:
                return
            yield event

    def text(self) -> str:
        """Return the whole text: the chunks that are str or ``{"chunk": str}``."""
        parts = []
        for chunk in self:
            piece = chunk.get("chunk") if isinstance(chunk, dict) else chunk
            if isinstance(piece, str):
                parts.append(piece)
        return "".join(parts)

    def _next_event(self) -> SSEEvent:
        while True:
            if self._closer is not None:
                self._stop_closed()
            if self._ready:
                event = self._ready.popleft()
                self.last_event_id = event.id
                self._count += 1
                return event
            if self._ended:
                raise StopIteration
            self._fill()

    def _fill(self) -> None:
        """Read until there are events to hand out, or the end of the stream."""
        try:
            data = b"" if self._reader.done else self._source.read()
            if data:
                self._ready = self._reader.feed(data)
                return
            failure = self._reader.finish()
            if failure is not None:
                raise self._located(failure)
        except StreamClosedError:
            if self._closer is None:
                self._end()
                raise
            self._stop_closed()
        except NetworkError as error:
            self._end()
            raise self._cut(error) from error
        except BaseException:
            self._end()
            raise
        self._end()

    def _cut(self, error: NetworkError) -> Exception:
        if self._reader.failure is not None:
            return self._located(self._reader.failure)
        if isinstance(error, RequestTimeoutError) and error.phase != "idle":
            return error
        return self._located(
            StreamInterruptedError(f"the stream was cut: {error.message}")
        )

    def _located(self, failure: InvocationError) -> InvocationError:
        """Return the failure with what this stream knows of the run."""
        if isinstance(failure, StreamInterruptedError):
            failure.chunk_count = self._count
            failure.last_event_id = self.last_event_id
            failure.message += f" after {self._count} chunks"
            failure.args = (failure.message,)
        failure.invocation_id = failure.invocation_id or self.run.invocation_id
        failure.request_id = failure.request_id or self.run.request_id
        return failure

    def _stop_closed(self) -> None:
        """End the iteration: quietly in the thread that closed the stream."""
        if self._closer == threading.get_ident():
            raise StopIteration
        raise StreamClosedError(
            f"the stream was closed by another thread after {self._count} chunks",
            invocation_id=self.run.invocation_id,
            request_id=self.run.request_id,
        )

    def _end(self) -> bool:
        """Give everything back, once; tell whether this call did it."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        if self._abandoned is not None:
            self._abandoned.detach()
        try:
            self._source.close()
        finally:
            self._on_end()
        return True

    def close(self) -> None:
        """Stop reading and give the connection up; a waiting reader wakes at once.

        Idempotent, and without effect on a stream that has ended.
        """
        with self._lock:
            if self._ended or self._closer is not None:
                return
            self._closer = threading.get_ident()
        self._end()

    def cancel(self) -> CancelResult:
        """Ask the agent to stop the run, then close the stream.

        Returns:
            What the agent said; `confirmed` is False where it cannot be asked.
        """
        try:
            if self._cancel is None or self.run.invocation_id is None:
                return CancelResult(confirmed=False, state="unknown")
            return self._cancel()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"StreamingResponse({state}, {self._count} chunks, {self.run!r})"
