"""Async user code, driven from blocking threads: one event loop for the process.

The thread that started an async call waits for it and serves it: it takes the items
of an async iterator, and runs what async code wants done on the thread (the rest of a
chain of middleware). Context variables travel with each hand-over, since one
`contextvars.Context` cannot be entered by two threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.threads import NoThreadError, start_thread

from .context import CancelToken

__all__ = ["AsyncCall", "shared_loop"]

# How far an async generator may run ahead of the thread that takes its items: a
# switch of threads for each item would cost more than the items.
_AHEAD = 64


class _SharedLoop:
    """The event loop of this process; made at first use."""

    def __init__(self) -> None:
        self._forget()
        renew_in_child(self, _SharedLoop._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()  # Guards _loop.
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                try:
                    start_thread("ppio-loop", loop.run_forever)
                except NoThreadError:
                    loop.close()
                    raise
                self._loop = loop
            return self._loop


_shared = _SharedLoop()


def shared_loop() -> asyncio.AbstractEventLoop:
    """Return the running event loop of this process; made at first use.

    Its thread is `ppio-loop`. A forked child makes its own.
    """
    return _shared.get()


class AsyncCall:
    """One task on the shared loop, and the thread that waits for it.

    Args:
        cancelled: Cancels the task when it fires.

    Thread safety: `result` and its iterator belong to one thread, `on_thread` to the
    code of the task.
    """

    def __init__(self, cancelled: CancelToken) -> None:
        self._cancelled = cancelled
        self._loop = shared_loop()
        # Bounded by the protocol: _AHEAD items, one call, one end.
        self._inbox: queue.SimpleQueue[tuple[str, Any, contextvars.Context]] = (
            queue.SimpleQueue()
        )
        self._task: asyncio.Task[None] | None = None
        self._begun = False
        self._calling = 0  # the task waits for its thread: the end is that one's
        self._credit = _AHEAD
        self._room: asyncio.Event | None = None

    def result(self, work: Any) -> Any:
        """Drive an awaitable, or an async iterator, to its end.

        Blocking: until user code ends.

        Returns:
            What it gave; of an async iterator, an ordinary iterator of its items.
        """
        variables = contextvars.copy_context()
        self._loop.call_soon_threadsafe(self._start, work, context=variables)
        unsubscribe = self._cancelled.subscribe(self._cancel, quick=True)
        kind, value = self._receive()
        if kind == "items":
            return self._items(unsubscribe)
        unsubscribe()
        if kind == "failed":
            raise value
        return value

    async def on_thread(self, fn: Callable[[], Any]) -> Any:
        """Run `fn()` on the thread that waits for this task; return what it gives."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._calling += 1
        try:
            self._send("call", (fn, answer))
            value, error, variables = await answer
        finally:
            self._calling -= 1
        _adopt(variables)
        if error is not None:
            raise error
        return value

    # On the loop.

    def _start(self, work: Any) -> None:
        self._task = self._loop.create_task(self._drive(work))

    async def _drive(self, work: Any) -> None:
        self._begun = True
        try:
            value = await work if inspect.isawaitable(work) else work
            if hasattr(value, "__aiter__"):
                self._send("items", None)
                await self._send_items(value.__aiter__())
                value = None
        # What user code raises belongs to its thread, and SystemExit must not end
        # the loop of everybody.
        except BaseException as error:  # noqa: BLE001
            self._send("failed", error)
        else:
            self._send("done", value)

    async def _send_items(self, items: AsyncIterator[Any]) -> None:
        self._room = asyncio.Event()
        try:
            async for item in items:
                self._send("item", item)
                self._credit -= 1
                while self._credit <= 0:
                    self._room.clear()
                    await self._room.wait()
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()

    def _give_room(self) -> None:
        self._credit += _AHEAD // 2
        if self._room is not None:
            self._room.set()

    def _cancel_task(self) -> None:
        if self._task is None or self._calling:
            return
        if not self._begun:
            # A task cancelled before its first step would never say that it ended.
            self._loop.call_soon(self._cancel_task)
            return
        self._task.cancel()

    def _send(self, kind: str, value: Any) -> None:
        self._inbox.put((kind, value, contextvars.copy_context()))

    # On the thread.

    def _cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel_task)

    def _receive(self) -> tuple[str, Any]:
        """Return the next message that is no call."""
        while True:
            kind, value, variables = self._inbox.get()
            if kind == "item":
                return kind, value
            _adopt(variables)
            if kind != "call":
                return kind, value
            self._serve(*value)

    def _serve(self, fn: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = fn()
        except BaseException as exc:  # noqa: BLE001 - raised again where it was asked for
            error = exc
        outcome = (value, error, contextvars.copy_context())
        self._loop.call_soon_threadsafe(_resolve, answer, outcome)

    def _items(self, unsubscribe: Callable[[], None]) -> Iterator[Any]:
        taken = 0
        kind = "item"
        try:
            while True:
                kind, value = self._receive()
                if kind == "failed":
                    raise value
                if kind == "done":
                    return
                taken += 1
                if taken % (_AHEAD // 2) == 0:
                    self._loop.call_soon_threadsafe(self._give_room)
                yield value
        finally:
            unsubscribe()
            if kind == "item":
                self._end_task()

    def _end_task(self) -> None:
        """Stop a task whose items nobody takes any more, and wait for its end."""
        self._cancel()
        kind = "item"
        while kind == "item":
            kind, value = self._receive()
        if kind == "failed" and not isinstance(value, asyncio.CancelledError):
            raise value


def _resolve(answer: asyncio.Future[Any], outcome: Any) -> None:
    if not answer.done():
        answer.set_result(outcome)


def _adopt(variables: contextvars.Context) -> None:
    """Take over the values that context variables have elsewhere."""
    for variable, value in variables.items():
        if variable.get(_MISSING) is not value:
            variable.set(value)


_MISSING = object()
