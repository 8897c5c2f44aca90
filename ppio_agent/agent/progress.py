"""How far an invocation has come, for those who wait for it.

Each waiter names the steps that concern it and is woken by no other: a switch of
threads costs more than the whole bookkeeping of an invocation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

__all__ = ["Progress", "Step"]


class Step:
    """What may be waited for; plain numbers, to be combined with ``|``."""

    STARTED: Final = 1
    """Its thread has begun."""
    REACHED: Final = 2
    """The handler was called, or its stream begun."""
    STREAMS: Final = 4
    """It is known to give chunks."""
    OVER: Final = 8
    """It is terminal, and its owner knows."""
    SETTLED: Final = 16
    """That, and user code has ended."""


class _Waiter:
    """One waiting thread; its lock is released when a step was taken."""

    __slots__ = ("latch", "steps")

    def __init__(self, steps: int) -> None:
        self.steps = steps
        # A bare lock wakes a thread in half the time of a Condition.
        self.latch = threading.Lock()
        self.latch.acquire()


class Progress:
    """The steps that were taken; a step is never taken back.

    Thread safety: thread-safe.
    """

    __slots__ = ("_lock", "_taken", "_waiting")

    def __init__(self) -> None:
        # Guards _taken and _waiting.
        self._lock = threading.Lock()
        self._taken = 0
        self._waiting: list[_Waiter] = []

    def has(self, step: int) -> bool:
        """Whether a step (or one of several) was taken."""
        return bool(self._taken & step)

    def take(self, steps: int) -> None:
        """Take steps and wake those who wait for one of them."""
        with self._lock:
            self._taken |= steps
            if not self._waiting:
                return
            woken = [w for w in self._waiting if w.steps & steps]
            for waiter in woken:
                self._waiting.remove(waiter)
                waiter.latch.release()

    def wait(
        self,
        steps: int,
        timeout: float | None = None,
        *,
        first: Callable[[], object] | None = None,
    ) -> bool:
        """Wait until one of `steps` was taken; return whether it was.

        Args:
            steps: Those that count.
            timeout: Seconds; None waits as long as it takes.
            first: Called when all is ready for waiting. What starts the other thread
                goes here: that finds this one asleep, and need not fight it for the
                interpreter.
        """
        waiter = _Waiter(steps)
        with self._lock:
            if self._taken & steps:
                waiter.latch.release()
            else:
                self._waiting.append(waiter)
        limit = -1.0 if timeout is None else max(0.0, timeout)
        try:
            if first is not None:
                first()
            return waiter.latch.acquire(timeout=min(limit, threading.TIMEOUT_MAX))
        finally:
            if waiter in self._waiting:
                self._forget(waiter)

    def _forget(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
