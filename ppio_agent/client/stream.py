"""An agent's answer, piece by piece, while it is being made."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ppio_agent._util.closing import Closing, Unshared
from ppio_agent.exceptions import (
    ConflictError,
    InvocationError,
    NetworkError,
    StreamClosedError,
    StreamInterruptedError,
)
from ppio_agent.transport import shielded
from ppio_agent.wire.json import Json
from ppio_agent.wire.sse import SSEEvent

from .call import name_call
from .events import decode_chunk
from .feed import EventFeed

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CancelResult", "Run", "StreamHost", "StreamingResponse"]


@frozen(kw_only=True)
class Run:
    """What is known of the run that a stream shows.

    Attributes:
        request_id: Id of the HTTP request.
        invocation_id: Id of the run; None with an agent that does not give any.
        session_id: The conversation.
        sandbox_id: The sandbox.
        idempotency_key: Key that the run was asked for with, if it was asked for here.
    """

    request_id: str | None = None
    invocation_id: str | None = None
    session_id: str | None = None
    sandbox_id: str | None = None
    idempotency_key: str | None = None


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


@frozen(eq=False, kw_only=True)
class StreamHost:
    """Who has to know of a stream: the session that it is in.

    Attributes:
        begin: The stream goes on after an end; may refuse it.
        end: The stream is over, and so is its run.
        leave: The stream is over, and its run may go on.
        abandon: Nobody holds the stream any more. Takes no lock: it may run anywhere.
    """

    begin: Callable[[], None]
    end: Callable[[], None]
    leave: Callable[[], None]
    abandon: Callable[[], None]


class StreamingResponse(Unshared, Closing):
    """The chunks of one invocation, in order, as the agent gives them.

    Iterate it once, or use it as a context manager to leave early:

        with session.invoke_stream("Write a story") as stream:
            for chunk in stream:
                print(chunk, end="", flush=True)

    Each chunk is the decoded JSON of an event, or its text if it is no JSON. When the
    connection is cut or silent, the stream goes on over a new one by itself if the
    agent can be asked for its events again, as those made with this package can: at
    most `ClientConfig.max_retries` times in a row without a new chunk.

    Attributes:
        run: Ids of what is being read.
        final: The agent's closing record, such as ``{"status": "succeeded", "duration":
            1.2, "events": 10, …}``; None before the end, and with agents that send
            none.
        last_event_id: Id of the last chunk that was handed out.

    Raises:
        InvocationError: While iterating: the agent failed, after the chunks that it
            gave before.
        StreamInterruptedError: While iterating: the connection was cut, and the stream
            could not go on by itself; see `resume`.
        StreamClosedError: While iterating: another thread closed the stream.

    Thread safety: one thread reads; `close` and `cancel` may come from any other.

    Blocking: the next chunk is waited for as long as the stream is not silent for
    `ClientConfig.idle_timeout`, and at most until the deadline if one was given.
    """

    _instead = (
        "keep its `invocation_id` and `last_event_id`, for"
        " `SandboxSession.resume_stream`"
    )

    def __init__(
        self,
        feed: EventFeed,
        *,
        run: Run,
        host: StreamHost | None = None,
        cancel: Callable[[], CancelResult] | None = None,
        ready: Iterable[SSEEvent] = (),
    ) -> None:
        self.run = run
        self._feed = feed
        # What was read and not handed out; without a lock, for its one reader.
        self._ready = deque(ready)
        self._last = SSEEvent("", id=feed.reader.last_event_id)
        self._count = 0
        self._host = host
        self._cancel = cancel
        # Guards _ended, _closer and _interrupted. Re-entrant, as in EventFeed.
        self._lock = threading.RLock()
        self._ended = False
        self._interrupted = False
        self._closer: int | None = None
        self._watch()

    def _watch(self) -> None:
        """Have the host told if nobody ends the stream."""
        self._abandoned: weakref.finalize[..., Any] | None = None
        if self._host is not None:
            self._abandoned = weakref.finalize(self, self._host.abandon)
            self._abandoned.atexit = False

    @property
    def final(self) -> Mapping[str, Json] | None:
        """The agent's closing record, once it has come."""
        return self._feed.reader.final

    @property
    def last_event_id(self) -> str | None:
        """Id of the last chunk that was handed out."""
        return self._last.id

    @property
    def invocation_id(self) -> str | None:
        """Id of the run, if the agent gave it one."""
        return self.run.invocation_id

    def __iter__(self) -> Iterator[Json]:
        return self

    def __next__(self) -> Json:
        if self._ready and self._closer is None:
            self._last = event = self._ready.popleft()
            self._count += 1
            return decode_chunk(event.data)
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
                self._last = event = self._ready.popleft()
                self._count += 1
                return event
            if self._ended:
                raise StopIteration
            self._fill()

    def _fill(self) -> None:
        """Read until there are events to hand out, or the end of the stream."""
        try:
            self._ready = self._feed.read()
            if self._ready:
                return
        except StreamClosedError:
            if self._closer is None:
                self._end()
                raise
            self._stop_closed()
        except InvocationError as failure:
            self._locate(failure)
            can_go_on = self._feed.can_resume
            self._end(
                interrupted=can_go_on and isinstance(failure, StreamInterruptedError)
            )
            raise
        except BaseException as error:
            if isinstance(error, NetworkError):
                run = self.run
                name_call(error, key=run.idempotency_key, sandbox_id=run.sandbox_id)
            self._end()
            raise
        self._end()

    def _locate(self, failure: InvocationError) -> None:
        """Write into a failure what this stream knows of the run."""
        if isinstance(failure, StreamInterruptedError):
            failure.chunk_count = self._count
            failure.last_event_id = self.last_event_id
            failure.message += f" after {self._count} chunks"
            failure.args = (failure.message,)
        run = self.run
        failure.invocation_id = failure.invocation_id or run.invocation_id
        failure.request_id = failure.request_id or run.request_id
        failure.idempotency_key = failure.idempotency_key or run.idempotency_key

    def _stop_closed(self) -> None:
        """End the iteration: quietly in the thread that closed the stream."""
        if self._closer == threading.get_ident():
            raise StopIteration
        raise StreamClosedError(
            f"the stream was closed by another thread after {self._count} chunks",
            invocation_id=self.run.invocation_id,
            request_id=self.run.request_id,
        )

    def _end(self, *, interrupted: bool = False) -> None:
        """Give everything back, once."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._interrupted = interrupted
        if self._abandoned is not None:
            self._abandoned.detach()
        try:
            self._feed.release()
        finally:
            host = self._host
            if host is not None:
                (host.end if self._feed.reader.over else host.leave)()

    def resume(self) -> Self:
        """Go on after a `StreamInterruptedError`: iterate the stream again.

        It gives what followed the last chunk, each chunk once. Other processes do the
        same with `SandboxSession.resume_stream`.

        Returns:
            The stream itself.

        Raises:
            ConflictError: It was not interrupted, or the agent keeps no events.
            SessionClosedError: Its sandbox is gone, as that of a stream that had one
                for itself.
        """
        with self._lock:
            interrupted = self._interrupted
        if not interrupted:
            raise ConflictError(
                "only a stream that was interrupted can be resumed, if its agent gives"
                " its runs ids",
                request_id=self.run.request_id,
            )
        if self._host is not None:
            self._host.begin()
        self._feed.begin_again()
        with self._lock:
            self._ended = self._interrupted = False
        self._watch()
        return self

    def close(self) -> None:
        """Stop reading and give the connection up; a waiting reader wakes at once.

        What becomes of the run is the agent's decision: one made with this package
        goes on for its `detach_grace`, and is cancelled if nobody resumes it by then.
        Idempotent, and without effect on a stream that has ended.
        """
        with self._lock:
            if self._ended or self._closer is not None:
                return
            self._closer = threading.get_ident()
        self._feed.close()
        self._end()

    def cancel(self) -> CancelResult:
        """Ask the agent to stop the run, then close the stream.

        Asks also inside a `CallScope` that was aborted.

        Returns:
            What the agent said; `confirmed` is False where it cannot be asked.

        Raises:
            NetworkError, SessionNotFoundError: It could not be reached.
        """
        try:
            if self._cancel is None or self.run.invocation_id is None:
                return CancelResult(confirmed=False, state="unknown")
            with shielded():
                return self._cancel()
        finally:
            self.close()

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"StreamingResponse({state}, {self._count} chunks, {self.run!r})"
