"""How many clients may be connected, and which of them has to go for another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

__all__ = ["Crowd"]

# Seconds in which a client's request is normally there, for all that it is crowded.
_SPARED = 0.1

_Task = asyncio.Task[None]


class Crowd:
    """The tasks that serve clients, and which of these have no request under way.

    Those are what one client can have many of at no cost, with heads, handshakes and
    bodies that never end. So they are no reason to refuse another: the one that has
    been idle longest is closed for it.

    Args:
        most: Clients that are served at once.
        loop: Runs them, and all that is called here.
    """

    def __init__(self, most: int, loop: asyncio.AbstractEventLoop) -> None:
        self._most = most
        self._loop = loop
        self._tasks: set[_Task] = set()
        self._leaving: set[_Task] = set()
        # Since when; in this order.
        self._idle: dict[_Task, float] = {}

    def __len__(self) -> int:
        """How many there are, without those that were just told to go."""
        return len(self._tasks) - len(self._leaving)

    def make_room(self) -> bool:
        """Whether one more can be served, now or once the longest idle is gone."""
        if len(self) < self._most:
            return True
        task, since = next(iter(self._idle.items()), (None, 0.0))
        if task is None or self._loop.time() - since < _SPARED:
            return False
        del self._idle[task]
        self._leaving.add(task)
        task.cancel()
        return True

    def add(self, task: _Task, leave: Callable[[], object], *, refused: bool) -> None:
        """Count a task until it ends.

        Args:
            task: Serves a client, idle as yet.
            leave: Called when it has ended, in whatever way.
            refused: Whether it only says that there is no room.
        """
        self._tasks.add(task)
        if not refused:
            self._idle[task] = self._loop.time()

        def done(task: _Task) -> None:
            self._tasks.discard(task)
            self._leaving.discard(task)
            self._idle.pop(task, None)
            # Here and not in the task: one cancelled before its start runs nothing.
            leave()

        task.add_done_callback(done)

    @contextlib.contextmanager
    def busy(self) -> Iterator[Callable[[], object]]:
        """Keep the current task while a request is under way; give what cancels it."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        self._idle.pop(task, None)
        try:
            yield task.cancel
        finally:
            self._idle[task] = self._loop.time()

    async def dismiss(self) -> None:
        """Cancel all and wait for them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
