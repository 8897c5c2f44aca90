"""What is done once, by whoever asks first; all others wait for its outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from .fork import renew_in_child

__all__ = ["Once"]

_T = TypeVar("_T")


class Once(Generic[_T]):
    """Runs a function for the first caller, and keeps its outcome for the others.

    Thread safety: thread-safe. In a forked child that inherits it half done, it is to
    be done again.

    Example:
        >>> once = Once()
        >>> once.run(lambda: 1), once.run(lambda: 2)
        (1, 1)
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._runner: int | None = None
        self._value: _T | None = None
        self._failure: BaseException | None = None
        self._trace: TracebackType | None = None
        self._renew()
        renew_in_child(self, Once._renew)

    def _renew(self) -> None:
        # Guards _runner.
        self._lock = threading.Lock()
        if not self._over.is_set() and self._runner != threading.get_ident():
            self._over = threading.Event()
            self._runner = None

    @property
    def begun(self) -> bool:
        """Whether anybody has called `run`."""
        return self._runner is not None

    def run(self, function: Callable[[], _T]) -> _T | None:
        """Call `function()`, or wait for the outcome of the call that was first.

        No lock is held meanwhile: what it calls may come here again, on its thread,
        and is not kept waiting.

        Returns:
            What it returned; None to its own thread while it runs.

        Raises:
            BaseException: What it raised, to every caller.
        """
        with self._lock:
            first = self._runner is None
            if first:
                self._runner = threading.get_ident()
        if first:
            self._run(function)
        else:
            self.wait()
        if self._failure is not None:
            # With the first trace: each raise would make it longer.
            raise self._failure.with_traceback(self._trace)
        return self._value

    def wait(self) -> None:
        """Wait until what was begun is over; its own thread does not."""
        if self._runner not in (None, threading.get_ident()):
            self._over.wait()

    def _run(self, function: Callable[[], _T]) -> None:
        try:
            self._value = function()
        except BaseException as error:  # noqa: BLE001 - `run` raises it
            self._failure, self._trace = error, error.__traceback__
        finally:
            self._over.set()
