"""Answers piece by piece, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from ppio_agent import client as blocking
from ppio_agent.client.events import decode_chunk
from ppio_agent.exceptions import StreamClosedError
from ppio_agent.wire.json import Json
from ppio_agent.wire.sse import SSEEvent

from .ahead import ReadingMirror
from .mirror import opening

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from ppio_agent.client.stream import Run
    from ppio_agent.transport import CallScope

    from .bridge import Bridge
    from .mirror import Async

__all__ = ["RuntimeStream", "StreamingResponse", "streaming"]

_B = TypeVar("_B")
_P = ParamSpec("_P")


class StreamingResponse(ReadingMirror[blocking.StreamingResponse, SSEEvent]):
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
        super().__init__(bridge, stream, stream.events(), scope)
        self._last_event_id = stream.last_event_id

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
        return _decoded(await self._next_piece())

    def events(self) -> AsyncIterator[SSEEvent]:
        """Yield the chunks as the events that carried them, not decoded."""
        return self._iterate(lambda event: event)

    async def text(self) -> str:
        """Return the whole text: the chunks that are str or ``{"chunk": str}``."""
        parts = []
        async for chunk in self:
            piece = chunk.get("chunk") if isinstance(chunk, dict) else chunk
            if isinstance(piece, str):
                parts.append(piece)
        return "".join(parts)

    async def _next_piece(self) -> SSEEvent:
        event = await super()._next_piece()
        self._last_event_id = event.id
        return event

    def _closed_error(self) -> StreamClosedError:
        error = super()._closed_error()
        error.invocation_id = self.run.invocation_id
        error.request_id = self.run.request_id
        return error

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
        self._read_on(self._blocking.events())
        return self

    async def cancel(self) -> blocking.CancelResult:
        """Ask the agent to stop the run, then close the stream.

        Returns:
            What the agent said; `confirmed` is False where it cannot be asked.
        """
        self._note_closer()
        return await self._bridge.finish(partial(self._stop, self._blocking.cancel))


class RuntimeStream(ReadingMirror[blocking.RuntimeStream, dict[str, str]]):
    """The answer of a streaming agent, piece by piece.

    Each piece is ``{"chunk": str, "runtimeSessionId": str, "agentId": str}``; the chunk
    is the text of the agent's event as it came. The ids are known at once, by
    subscript, as in an answer that is no stream: ``stream["runtimeSessionId"]``.

    Leaving ``async for`` early closes it, as it does a `StreamingResponse`.
    """

    def __init__(
        self, bridge: Bridge, stream: blocking.RuntimeStream, scope: CallScope
    ) -> None:
        super().__init__(bridge, stream, stream, scope)

    def __aiter__(self) -> AsyncIterator[dict[str, str]]:
        return self._iterate(lambda piece: piece)

    async def __anext__(self) -> dict[str, str]:
        return await self._next_piece()

    def __getitem__(self, key: str) -> Self | str:
        found = self._blocking[key]
        return found if isinstance(found, str) else self


def streaming(
    method: Callable[Concatenate[_B, _P], blocking.StreamingResponse],
) -> Async[_B, _P, StreamingResponse]:
    """Return the method that awaits `method` and gives the stream that it opened."""
    return opening(method, StreamingResponse, discard=blocking.StreamingResponse.close)


def _decoded(event: SSEEvent) -> Json:
    return decode_chunk(event.data)
