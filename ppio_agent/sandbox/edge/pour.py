"""A body of known length that goes from line to line as it comes, unseen by h11."""

from __future__ import annotations

import asyncio

from attrs import define, field

from .duct import Duct, Halt, open_duct
from .line import Line, PeerError
from .waits import settle

__all__ = ["pour"]


async def pour(source: Line, sink: Line, count: int) -> None:
    """Send the next `count` bytes that come from `source` to `sink`.

    Raises:
        PeerError: Either side is gone, or the sink takes nothing.
    """
    with source.reading_paused():
        read = source.take(count)
        await sink.send_raw(read)
        if len(read) == count:
            return
        if source.closed:  # meanwhile
            raise PeerError(source, "the connection was lost")
        with open_duct(source.sock, sink.sock, count - len(read)) as duct:
            await _Pour(source, sink, duct).run()


@define(eq=False)
class _Pour:
    """Moves by a duct whenever the side that was in the way is ready.

    That side stays registered with the loop until the other one is in the way: which
    of the two it is changes rarely, and so a wait costs one call of the system.
    """

    _source: Line
    _sink: Line
    _duct: Duct
    _loop: asyncio.AbstractEventLoop = field(factory=asyncio.get_running_loop)
    _done: asyncio.Future[None] = field(init=False)
    _watched: Halt | None = field(init=False, default=None)
    # When the sink last took something, or was not what all waits for.
    _taken_at: float = field(init=False, default=0.0)
    _timer: asyncio.TimerHandle = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._done = self._loop.create_future()

    async def run(self) -> None:
        """Move until all is with the sink.

        Raises:
            PeerError: Either side is gone, or the sink takes nothing.
        """
        lines = (self._source, self._sink)
        for line in lines:
            line.waiters.add(self._done)
        self._watch(Halt.SOURCE)
        self._look()
        try:
            await self._done
        except OSError as exc:
            side = self._sink if self._duct.held else self._source
            gone = next((line for line in lines if line.closed), side)
            raise PeerError(gone, "the connection was lost") from exc
        finally:
            self._timer.cancel()
            self._watch(None)
            for line in lines:
                line.waiters.discard(self._done)

    def _turn(self) -> None:
        held, left = self._duct.held, self._duct.left
        try:
            halt = self._duct.move()
        except OSError as exc:
            settle(self._done, exc)
            return
        if not held or self._duct.left < left:
            self._taken_at = self._loop.time()
        if not self._duct.left:
            settle(self._done)
        elif halt is Halt.END:
            settle(self._done, ConnectionResetError("it ended in a body"))
        elif halt is not Halt.TURN:
            self._watch(halt)

    def _watch(self, halt: Halt | None) -> None:
        """Take another turn whenever the side that is in the way is ready."""
        if halt is self._watched:
            return
        if self._watched is Halt.SOURCE and not self._source.closed:
            self._loop.remove_reader(self._source.sock)
        elif self._watched is Halt.SINK and not self._sink.closed:
            self._loop.remove_writer(self._sink.sock)
        self._watched = halt
        if halt is Halt.SOURCE:
            self._loop.add_reader(self._source.sock, self._turn)
        elif halt is Halt.SINK:
            self._loop.add_writer(self._sink.sock, self._turn)

    def _look(self) -> None:
        """Give a sink up that has taken nothing for too long."""
        now = self._loop.time()
        since = self._taken_at if self._duct.held else now
        if now - since >= self._sink.stalled:
            settle(self._done, TimeoutError("nothing was taken for too long"))
        self._timer = self._loop.call_at(since + self._sink.stalled, self._look)
