"""An agent's answer piece by piece, read ahead by a thread and awaited."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from ppio_agent import client as blocking
from ppio_agent.client.events import decode_chunk
from ppio_agent.exceptions import StreamClosedError
from ppio_agent.transport import CallScope
from ppio_agent.wire.json import Json
from ppio_agent.wire.sse import SSEEvent

from .mirror import ClosingMirror, Mirror, like

if TYPE_CHECKING:
    from typing_extensions import Self

    from ppio_agent.client.stream import Run

    from .bridge import Bridge

__all__ = ["StreamingResponse", "streaming"]

_B = TypeVar("_B")
_P = ParamSpec("_P")
_T = TypeVar("_T")

_AHEAD = 16


class StreamingResponse(ClosingMirror[blocking.StreamingResponse]):
    """The chunks of one invocation, in order, as the agent gives them.

    Iterate it once, or use it as a context manager to leave early:

        async with await session.invoke_stream("Write a story") as stream:
            async for chunk in stream:
                print(chunk, end="", flush=True)

    A thread reads at most 16 chunks ahead; while they wait to be taken it serves
    others. Leaving ``async for`` early, by ``break``, an error or the cancellation of
    the task, closes the stream, and so does letting go of it. To read a few chunks and
    more later use ``await anext(stream)``; cancelling that closes it, too.

    Raises:
        InvocationError: While iterating: the agent failed, after the chunks that it
            gave before.
        StreamInterruptedError: While iterating: the connection was cut, and the stream
            could not go on by itself; see `resume`.
        StreamClosedError: While iterating: another task closed the stream.

    Thread safety: one task reads; `close` and `cancel` may come from any other, of any
    event loop.
    """

    def __init__(
        self,
        bridge: Bridge,
        stream: blocking.StreamingResponse,
        scope: CallScope,
    ) -> None:
        super().__init__(bridge, stream)
        self._last_event_id = stream.last_event_id
        self._ahead = _ReadAhead(bridge, stream)
        self._closer: weakref.ref[asyncio.Task[Any]] | None = None
        # A thread that reads keeps the stream, not this. It may run anywhere, and so
        # only wakes that thread, which closes what it reads.
        error = StreamClosedError("the stream was let go of")
        weakref.finalize(self, scope.abort, error).atexit = False

    @property
    def run(self) -> Run:
        """Ids of what is being read."""
        return self._blocking.run

    @property
    def final(self) -> Mapping[str, Json] | None:
        """The agent's closing record, once all chunks have been handed out."""
        return self._blocking.final if self._ahead.exhausted else None

    @property
    def last_event_id(self) -> str | None:
        """Id of the last chunk that was handed out."""
        return self._last_event_id

    @property
    def invocation_id(self) -> str | None:
        """Id of the run, if the agent gave it one."""
        return self._blocking.invocation_id

    def __aiter__(self) -> AsyncIterator[Json]:
        return self._iterate(_decoded)

    async def __anext__(self) -> Json:
        return _decoded(await self._next_event())

    def events(self) -> AsyncIterator[SSEEvent]:
        """Yield the chunks as the events that carried them, not decoded."""
        return self._iterate(lambda event: event)

    async def _iterate(self, show: Callable[[SSEEvent], _T]) -> AsyncIterator[_T]:
        try:
            while True:
                try:
                    event = await self._next_event()
                except StopAsyncIteration:
                    return
                yield show(event)
        finally:
            await self.close()

    async def text(self) -> str:
        """Return the whole text: the chunks that are str or ``{"chunk": str}``."""
        parts = []
        async for chunk in self:
            piece = chunk.get("chunk") if isinstance(chunk, dict) else chunk
            if isinstance(piece, str):
                parts.append(piece)
        return "".join(parts)

    async def _next_event(self) -> SSEEvent:
        try:
            event = await self._ahead.take()
        except StopAsyncIteration:
            if self._closer is None or self._closer() is asyncio.current_task():
                raise
            raise StreamClosedError(
                "the stream was closed by another task",
                invocation_id=self.run.invocation_id,
                request_id=self.run.request_id,
            ) from None
        except asyncio.CancelledError:
            self._note_closer()
            await self._bridge.leave(self._ahead.close)
            raise
        self._last_event_id = event.id
        return event

    def _note_closer(self) -> None:
        task = asyncio.current_task()
        if self._closer is None and task is not None:
            self._closer = weakref.ref(task)

    async def resume(self) -> Self:
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
        await self._bridge.call(
            self._blocking.resume, discard=blocking.StreamingResponse.close
        )
        self._ahead = _ReadAhead(self._bridge, self._blocking)
        return self

    async def close(self) -> None:
        """Stop reading and give the connection up; a waiting reader wakes at once.

        Idempotent, and without effect on a stream that has ended.
        """
        if self._ahead.exhausted or self._closer is not None:
            return
        self._note_closer()
        await self._bridge.finish(self._ahead.close)

    aclose = close

    async def cancel(self) -> blocking.CancelResult:
        """Ask the agent to stop the run, then close the stream.

        Returns:
            What the agent said; `confirmed` is False where it cannot be asked.
        """
        self._note_closer()
        return await self._bridge.finish(self._ahead.cancel)


class _ReadAhead:
    """Reads a stream in a thread, until enough chunks wait to be taken.

    The thread is given back while they wait, so that streams whose readers are slow
    or wait for something else keep no other call from its turn.
    """

    def __init__(self, bridge: Bridge, stream: blocking.StreamingResponse) -> None:
        self._bridge = bridge
        self._stream = stream
        self._source = stream.events()
        # Guards all below.
        self._lock = threading.Lock()
        self._events: deque[SSEEvent] = deque()
        self._job: Callable[[], object] | None = None
        self._is_over = False
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def exhausted(self) -> bool:
        """Whether the stream has ended and all of it was taken."""
        return self._is_over and not self._events

    async def take(self) -> SSEEvent:
        """Return the next event; raise what the stream ended with, once.

        Raises:
            StopAsyncIteration: There is no more.
        """
        while True:
            with self._lock:
                if self._events:
                    return self._events.popleft()
                if self._is_over:
                    break
                ready = asyncio.get_running_loop().create_future()
                self._waiting.append(ready)
                job = None
                if self._job is None:
                    job = self._job = partial(copy_context().run, self._read)
            if job is not None:
                self._bridge.start(job)
            await ready
        error, self._error = self._error, None
        try:
            raise error or StopAsyncIteration
        finally:
            del error  # its traceback holds this frame: no circle, no garbage

    def _read(self) -> None:
        while True:
            event: SSEEvent | None = None
            error: BaseException | None = None
            try:
                event = next(self._source, None)
            except BaseException as failure:  # noqa: BLE001 - raised by `take`
                error = failure
            with self._lock:
                if self._is_over:
                    return
                if event is None:
                    self._is_over, self._error = True, error
                else:
                    self._events.append(event)
                full = len(self._events) >= _AHEAD
                if full:
                    self._job = None
                waiting, self._waiting = self._waiting, []
            _wake(waiting)
            if full or event is None:
                return

    def close(self) -> None:
        """Close the stream and drop what was read ahead. Blocks."""
        self._drop()
        self._stream.close()

    def cancel(self) -> blocking.CancelResult:
        """Ask the agent to stop, and close the stream. Blocks."""
        self._drop()
        return self._stream.cancel()

    def _drop(self) -> None:
        with self._lock:
            self._is_over = True
            self._events.clear()
            job = self._job
            waiting, self._waiting = self._waiting, []
        _wake(waiting)
        if job is not None:
            self._bridge.withdraw(job)


def streaming(
    method: Callable[Concatenate[_B, _P], blocking.StreamingResponse],
) -> Callable[Concatenate[Mirror[_B], _P], Coroutine[Any, Any, StreamingResponse]]:
    """Return the method that awaits `method` and gives the stream that it opened."""

    @like(method)
    async def call(
        self: Mirror[_B], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> StreamingResponse:
        scope = CallScope()
        stream = await self._bridge.call(
            partial(method, self._blocking, *args, **kwargs),
            discard=blocking.StreamingResponse.close,
            scope=scope,
        )
        return StreamingResponse(self._bridge, stream, scope)

    return call


def _decoded(event: SSEEvent) -> Json:
    return decode_chunk(event.data)


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for ready in waiting:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            ready.get_loop().call_soon_threadsafe(_set, ready)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
