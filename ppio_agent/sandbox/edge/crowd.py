"""How many clients may be connected, and which of them has to go for another."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

from .upstreams import EdgeRefusal

__all__ = ["Crowd"]

# Seconds in which a client's request is normally there, for all that it is crowded.
_SPARED = 0.1

_Task = asyncio.Task[None]


class Crowd:
    """The tasks that serve clients, and which of these have no request under way.

    Those are what one client can have many of at no cost, with heads, handshakes and
    bodies that never end. So they are no reason to refuse another: the one that has
    been idle longest is closed for it.

    Sandboxes have `most` requests under way, and no more. The rest is a reserve: it is
    for requests to the control plane, and for finding out that a request is one.

    Args:
        most: Requests to sandboxes that are under way at once.
        loop: Runs them, and all that is called here.
        reserve: How many more clients are served at once.
    """

    def __init__(
        self, most: int, loop: asyncio.AbstractEventLoop, *, reserve: int
    ) -> None:
        self._most = most
        self._reserve = reserve
        self._loop = loop
        # Requests to sandboxes that are under way.
        self._sandboxed = 0
        self._tasks: set[_Task] = set()
        self._leaving: set[_Task] = set()
        # Since when; in this order.
        self._idle: OrderedDict[_Task, float] = OrderedDict()

    def __len__(self) -> int:
        """How many there are, without those that were just told to go."""
        return len(self._tasks) - len(self._leaving)

    @property
    def has_room(self) -> bool:
        """Whether one more can be served, now or once the longest idle is gone."""
        if len(self) < self._most + self._reserve:
            return True
        since = next(iter(self._idle.values()), math.inf)
        return self._loop.time() - since >= _SPARED

    def add(self, task: _Task, leave: Callable[[], object]) -> None:
        """Count a task until it ends, and end another one if there are too many.

        Args:
            task: Serves a client, idle as yet.
            leave: Called when it has ended, in whatever way.
        """
        if len(self) >= self._most + self._reserve and self._idle:
            longest, _ = self._idle.popitem(last=False)
            self._leaving.add(longest)
            longest.cancel()
        self._tasks.add(task)
        self._idle[task] = self._loop.time()

        def done(task: _Task) -> None:
            self._tasks.discard(task)
            self._leaving.discard(task)
            self._idle.pop(task, None)
            # Here and not in the task: one cancelled before its start runs nothing.
            leave()

        task.add_done_callback(done)

    @contextlib.contextmanager
    def busy(self, *, sandboxed: bool) -> Iterator[Callable[[], object]]:
        """Keep the current task while a request is under way; give what cancels it.

        Args:
            sandboxed: Whether the request is to a sandbox.

        Raises:
            EdgeRefusal: There are too many of these. The task is the next to go.
        """
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served by a task")
        if sandboxed and self._sandboxed >= self._most:
            self._idle[task] = -math.inf
            self._idle.move_to_end(task, last=False)
            message = "too many requests to sandboxes are under way"
            raise EdgeRefusal.of(503, message, retry_after=1)
        self._idle.pop(task, None)
        self._sandboxed += sandboxed
        try:
            yield task.cancel
        finally:
            self._sandboxed -= sandboxed
            self._idle[task] = self._loop.time()

    async def dismiss(self) -> None:
        """Cancel all and wait for them."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
