"""How far an invocation has come, for those who wait for it.

Each waiter names the steps that concern it and is woken by no other: a switch of
threads costs more than the whole bookkeeping of an invocation.
"""

from __future__ import annotations

import threading
import time
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


class Progress:
    """The steps that were taken; a step is never taken back.

    Thread safety: thread-safe.
    """

    __slots__ = ("_changed", "_taken", "_waiting")

    def __init__(self) -> None:
        # Guards _taken and _waiting.
        self._changed = threading.Condition(threading.Lock())
        self._taken = 0
        self._waiting: list[int] = []

    def has(self, step: int) -> bool:
        """Whether a step (or one of several) was taken."""
        return bool(self._taken & step)

    def take(self, steps: int) -> None:
        """Take steps and wake those who wait for one of them."""
        with self._changed:
            self._taken |= steps
            for awaited in self._waiting:
                if awaited & steps:
                    self._changed.notify_all()
                    return

    def wait(self, steps: int, timeout: float | None = None) -> bool:
        """Wait until one of `steps` was taken; return whether it was.

        Blocking: up to `timeout` seconds; None waits as long as it takes.
        """
        with self._changed:
            if self._taken & steps:
                return True
            ends = None if timeout is None else time.monotonic() + timeout
            self._waiting.append(steps)
            try:
                while not self._taken & steps:
                    left = None if ends is None else ends - time.monotonic()
                    if left is not None and left <= 0:
                        return False
                    self._changed.wait(left)
                return True
            finally:
                self._waiting.remove(steps)
