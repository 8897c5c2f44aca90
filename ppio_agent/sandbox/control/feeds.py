"""An agent's log as the events of a stream."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Final

from ppio_agent._util.clock import Deadline
from ppio_agent.sandbox.logfollow import LogFollower
from ppio_agent.sandbox.logview import LogEntry, LogQuery

from .streams import Note

__all__ = ["LogFeed"]

# The supervisor writes the log, in another process: it has to be looked at, less often
# the longer nothing comes. Seconds.
_SHORTEST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 0.5


class LogFeed:
    """The entries of one log, each an event, until the sandbox is gone.

    Args:
        follower: Reads the log.
        query: Says by level and text which are wanted.
        ended: Set when the sandbox is gone; None: the end is where the log ends now.
        tail: Begin with so many of the entries that are there; None: with all.

    Thread safety: one thread at a time.
    """

    def __init__(
        self,
        follower: LogFollower,
        query: LogQuery,
        *,
        ended: threading.Event | None,
        tail: int | None = None,
    ) -> None:
        self._follower = follower
        self._query = query
        self._ended = ended
        self._tail = tail
        self._pause = _SHORTEST_PAUSE
        self._next_look = Deadline.after(0.0)

    def read(self, after: int, timeout: float | None) -> Sequence[Note]:
        """Return the entries after number `after`; see `Feed.read`."""
        deadline = Deadline.after(timeout)
        while True:
            # Asked first: what was written before the end is then found.
            over = self._ended is None or self._ended.is_set()
            entries = self._next() if over or self._next_look.expired else None
            notes = self._notes(entries or (), after)
            if notes:
                return notes
            if entries is not None:
                continue
            if over or self._ended is None:
                return [Note.end(after, {})]
            if deadline.expired:
                return []
            self._ended.wait(deadline.bound(self._next_look.left()))

    def _next(self) -> Sequence[tuple[int, LogEntry]] | None:
        if self._tail is not None:
            tail, self._tail = self._tail, None
            return self._follower.last(tail)
        entries = self._follower.read()
        if entries is not None:
            self._pause = _SHORTEST_PAUSE
        else:
            self._next_look = Deadline.after(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return entries

    def _notes(self, entries: Sequence[tuple[int, LogEntry]], after: int) -> list[Note]:
        return [
            Note.of(number, "log", entry.to_dict())
            for number, entry in entries
            if number > after and self._query.fits(entry)
        ]

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._follower.close()
