"""Things kept ready, since they take longer to make than anybody likes to wait."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ppio_agent._util.threads import start_thread

__all__ = ["WarmPool"]

_log = logging.getLogger(__name__)

_PAUSE_AFTER_FAILURE = 10.0
_WARN_EVERY = 3600.0
_END_LIMIT = 5.0

_T = TypeVar("_T")


class WarmPool(Generic[_T]):
    """Keeps a number of things ready; one thread makes those that are missing.

    It begins when nobody has taken one for a moment: those who all come at once are not
    slowed down, and those who come one after another find them made anew.

    Args:
        name: Of the thread.
        size: How many are kept; 0 for none.
        make: Makes one.
        discard: Ends one that nobody took.
        usable: Whether one is still good.
        quiet: Seconds for which nobody must have taken one.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        make: Callable[[], _T],
        discard: Callable[[_T], object],
        usable: Callable[[_T], bool],
        quiet: float = 0.05,
    ) -> None:
        self._name = name
        self._size = size
        self._make = make
        self._discard = discard
        self._usable = usable
        self._quiet = quiet
        # Guards what follows; notified when something is missing, and at the end.
        self._changed = threading.Condition()
        self._ready: deque[_T] = deque()
        self._closed = False
        self._begin_at = 0.0
        self._thread: threading.Thread | None = None
        # When each kind of failure was last warned of; of the thread alone.
        self._warned_at: dict[type[Exception], float] = {}

    @property
    def ready(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def begin(self) -> None:
        """Begin to make them."""
        with self._changed:
            if self._size and not self._closed and self._thread is None:
                self._begin_at = time.monotonic() + self._quiet
                self._thread = start_thread(self._name, self._run)

    def take(self) -> _T | None:
        """Return the oldest that is still good; None if there is none. No wait."""
        found: _T | None = None
        spoilt: list[_T] = []
        with self._changed:
            while self._ready and found is None:
                oldest = self._ready.popleft()
                if self._usable(oldest):
                    found = oldest
                else:
                    spoilt.append(oldest)
            self._begin_at = max(self._begin_at, time.monotonic() + self._quiet)
            self._changed.notify_all()
        for thing in spoilt:
            self._discard(thing)
        return found

    def close(self) -> None:
        """End all that nobody took. Idempotent.

        Blocking: until one that is just being made is made, or its maker gives up; 5 s
        at most.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_END_LIMIT)
        while self._ready:
            self._discard(self._ready.popleft())

    def _run(self) -> None:
        while self._wait_until_wanted():
            try:
                thing = self._make()
            except Exception as exc:  # noqa: BLE001 - the outermost frame of a thread
                with self._changed:
                    if self._closed:
                        return
                    self._begin_at = time.monotonic() + _PAUSE_AFTER_FAILURE
                self._tell(exc)
                continue
            with self._changed:
                closed = self._closed
                if not closed:
                    self._ready.append(thing)
            if closed:
                self._discard(thing)

    def _tell(self, exc: Exception) -> None:
        """Log why there is none; what fails for days does so in few lines."""
        now, kind = time.monotonic(), type(exc)
        rare = now >= self._warned_at.get(kind, -math.inf) + _WARN_EVERY
        if rare:
            self._warned_at[kind] = now
        reason = " ".join(str(exc).split())
        level = logging.WARNING if rare else logging.DEBUG
        _log.log(level, "nothing could be kept ready: %s: %s", kind.__name__, reason)

    def _wait_until_wanted(self) -> bool:
        """Return True when one is to be made, False at the end."""
        with self._changed:
            while not self._closed:
                left = self._begin_at - time.monotonic()
                if len(self._ready) >= self._size:
                    self._changed.wait()
                elif left > 0:
                    self._changed.wait(left)
                else:
                    return True
            return False
