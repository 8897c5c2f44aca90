"""What is due when, for stores that keep it in memory."""

from __future__ import annotations

import heapq
import itertools
import threading
from typing import Generic, TypeVar

__all__ = ["Agenda"]

_T = TypeVar("_T")


class Agenda(Generic[_T]):
    """Instants of things; each thing has one, the latest that was set.

    Changing or dropping one leaves its entry in the heap. The heap is made anew when
    more than half of it are such entries, so its size is bounded by what is due.

    Thread safety: thread-safe.
    """

    __slots__ = ("_entries", "_heap", "_lock", "_order")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards all below.
        self._heap: list[tuple[float, int, _T]] = []
        self._entries: dict[_T, tuple[float, int, _T]] = {}  # Those in force.
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self._entries)

    def set(self, thing: _T, when: float) -> None:
        """Make it due then, and at no other time."""
        with self._lock:
            entry = (when, next(self._order), thing)
            self._entries[thing] = entry
            heapq.heappush(self._heap, entry)
            self._shrink()

    def drop(self, thing: _T) -> None:
        """Forget it; what is not known is no error."""
        with self._lock:
            if self._entries.pop(thing, None) is not None:
                self._shrink()

    def pop(self, now: float) -> _T | None:
        """Take out what is due first, if its time has come."""
        with self._lock:
            thing = self._first(now)
            if thing is not None:
                heapq.heappop(self._heap)
                del self._entries[thing]
        return thing

    def first(self, now: float) -> _T | None:
        """Return what is due first, if its time has come; see `take`."""
        with self._lock:
            return self._first(now)

    def take(self, thing: _T, now: float) -> bool:
        """Take one out, if its time has come; return whether it has."""
        with self._lock:
            entry = self._entries.get(thing)
            if entry is None or entry[0] > now:
                return False
            del self._entries[thing]
            self._shrink()
            return True

    def _first(self, now: float) -> _T | None:
        while self._heap and self._heap[0][0] <= now:
            entry = self._heap[0]
            if self._entries.get(entry[2]) is entry:
                return entry[2]
            heapq.heappop(self._heap)
        return None

    def _shrink(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
