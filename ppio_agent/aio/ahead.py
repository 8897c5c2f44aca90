"""Reading what a thread has read ahead: what all streams of the client have in common."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ppio_agent.exceptions import StreamClosedError
from ppio_agent.transport import CallScope

from .mirror import ClosingMirror

if TYPE_CHECKING:
    from .bridge import Bridge

__all__ = ["ReadingMirror"]

_T = TypeVar("_T")
_E = TypeVar("_E")

_AHEAD = 16


class _Closable(Protocol):
    def close(self) -> object:
        """Wake whoever reads, and give everything back."""


_S_co = TypeVar("_S_co", bound=_Closable, covariant=True)


class ReadingMirror(ClosingMirror[_S_co], Generic[_S_co, _E]):
    """The mirror of a stream: a thread reads it, a task takes the pieces.

    Args:
        bridge: Has the threads.
        blocking: The original.
        source: Gives the pieces, and blocks.
        scope: In which the stream was opened; ends it.
    """

    def __init__(
        self, bridge: Bridge, blocking: _S_co, source: Iterator[_E], scope: CallScope
    ) -> None:
        super().__init__(bridge, blocking)
        self._read_on(source)
        self._closer: weakref.ref[asyncio.Task[Any]] | None = None
        # A thread that reads keeps the stream, not this. It may run anywhere, and so
        # only wakes that thread, which closes what it reads.
        error = StreamClosedError("the stream was let go of")
        weakref.finalize(self, scope.abort, error).atexit = False

    def _read_on(self, source: Iterator[_E]) -> None:
        self._ahead = _ReadAhead(self._bridge, source)

    async def _next_piece(self) -> _E:
        try:
            return await self._ahead.take()
        except StopAsyncIteration:
            if self._closer is None or self._closer() is asyncio.current_task():
                raise
            raise self._closed_error() from None
        except asyncio.CancelledError:
            self._note_closer()
            await self._bridge.leave(partial(self._stop, self._blocking.close))
            raise

    def _closed_error(self) -> StreamClosedError:
        return StreamClosedError("the stream was closed by another task")

    async def _iterate(self, show: Callable[[_E], _T]) -> AsyncIterator[_T]:
        try:
            while True:
                try:
                    piece = await self._next_piece()
                except StopAsyncIteration:
                    return
                yield show(piece)
        finally:
            await self.close()

    def _note_closer(self) -> None:
        task = asyncio.current_task()
        if self._closer is None and task is not None:
            self._closer = weakref.ref(task)

    async def close(self) -> None:
        """Stop reading and give the connection up; a waiting reader wakes at once.

        Idempotent, and without effect on a stream that has ended.
        """
        if self._ahead.exhausted or self._closer is not None:
            return
        self._note_closer()
        await self._bridge.finish(partial(self._stop, self._blocking.close))

    aclose = close

    def _stop(self, stop: Callable[[], _T]) -> _T:
        """Drop what was read ahead and end the stream by `stop`. Blocks."""
        self._ahead.drop()
        return stop()


class _ReadAhead(Generic[_E]):
    """Reads pieces in a thread, until enough of them wait to be taken.

    The thread is given back while they wait, so that streams whose readers are slow
    or wait for something else keep no other call from its turn.
    """

    def __init__(self, bridge: Bridge, source: Iterator[_E]) -> None:
        self._bridge = bridge
        self._source = source
        # Guards all below.
        self._lock = threading.Lock()
        self._pieces: deque[_E] = deque()
        self._job: Callable[[], object] | None = None
        self._is_over = False
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def exhausted(self) -> bool:
        """Whether the stream has ended and all of it was taken."""
        return self._is_over and not self._pieces

    async def take(self) -> _E:
        """Return the next piece; raise what the stream ended with, once.

        Raises:
            StopAsyncIteration: There is no more.
        """
        while True:
            with self._lock:
                if self._pieces:
                    return self._pieces.popleft()
                if self._is_over:
                    break
                ready = asyncio.get_running_loop().create_future()
                self._waiting.append(ready)
                job = None
                if self._job is None:
                    job = self._job = partial(copy_context().run, self._read)
            if job is not None:
                self._start(job)
            await ready
        error, self._error = self._error, None
        try:
            raise error or StopAsyncIteration
        finally:
            del error  # its traceback holds this frame: no circle, no garbage

    def _start(self, job: Callable[[], object]) -> None:
        try:
            self._bridge.start(job)
        except BaseException:  # no thread: the next `take` tries again
            with self._lock:
                self._job = None
                waiting, self._waiting = self._waiting, []
            _wake(waiting)
            raise

    def _read(self) -> None:
        while True:
            piece: _E | None = None
            error: BaseException | None = None
            try:
                piece = next(self._source, None)
            except BaseException as failure:  # noqa: BLE001 - raised by `take`
                error = failure
            with self._lock:
                if self._is_over:
                    return
                if piece is None:
                    self._is_over, self._error = True, error
                else:
                    self._pieces.append(piece)
                full = len(self._pieces) >= _AHEAD
                if full:
                    self._job = None
                waiting, self._waiting = self._waiting, []
            _wake(waiting)
            if full or piece is None:
                return

    def drop(self) -> None:
        """Give no more pieces, and start no reading any more."""
        with self._lock:
            self._is_over, self._error = True, None
            self._pieces.clear()
            job = self._job
            waiting, self._waiting = self._waiting, []
        _wake(waiting)
        if job is not None:
            self._bridge.withdraw(job)


def _wake(waiting: list[asyncio.Future[None]]) -> None:
    for ready in waiting:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            ready.get_loop().call_soon_threadsafe(_set, ready)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
