"""The replay ring: the last entries of a stream, numbered, for readers of any pace.

One thread appends; any number read. Without a reader the oldest entries make room.
With readers the producer waits while the slowest is too far behind, so that none
misses an entry, and a reader that takes nothing at all for long is let go.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ppio_agent.exceptions import InvocationError, ReplayGoneError

from .chunk import Entry

__all__ = ["ReplayRing", "RingReader"]

_BEHIND_EVENTS = 256


class RingReader:
    """One attached reader; the producer keeps its pace.

    `read` has the form that event-stream writers ask of a source. Asking for what
    comes after entry n says that everything up to n has been taken.

    Thread safety: one thread at a time; `close` from any.
    """

    __slots__ = ("_ring", "moved_at", "offset", "on_stalled", "position", "stalled")

    def __init__(
        self, ring: ReplayRing, position: int, on_stalled: Callable[[], object] | None
    ) -> None:
        self._ring = ring
        self.on_stalled = on_stalled
        self.position = position
        self.offset = 0
        self.moved_at = 0.0
        self.stalled = False

    @property
    def closed(self) -> bool:
        """Whether the terminal entry is in."""
        return self._ring.closed

    def read(self, after: int, timeout: float | None = None) -> list[Entry]:
        """Return the entries after number `after`; see `ReplayRing.read`."""
        return self._ring.read(after, timeout, reader=self)

    def close(self) -> None:
        """Stop holding the producer back. Idempotent."""
        self._ring.detach(self)

    def __enter__(self) -> RingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ReplayRing:
    """Numbered entries 1, 2, 3 … without gaps, the oldest of them forgotten.

    Args:
        max_events: Most entries kept.
        max_bytes: Most bytes kept, and the largest entry a handler may append.
        stall_timeout: Seconds after which a reader that takes nothing, while the
            producer waits for it, is detached and told so.
        clock: A monotonic clock.

    Thread safety: thread-safe. Readers' `on_stalled` runs on the producer's thread,
    under no lock.
    """

    def __init__(
        self,
        max_events: int = 1024,
        max_bytes: int = 1_048_576,
        *,
        stall_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Guards everything below. Taken directly: a Condition's own methods for that
        # are Python code, and every chunk comes by.
        self._lock = threading.Lock()
        # Signals new entries and moved readers alike.
        self._changed = threading.Condition(self._lock)
        self._entries: dict[int, Entry] = {}
        self._readers: list[RingReader] = []
        self._sleepers = 0
        self._first = 1
        self._last = 0
        self._offset = 0  # bytes ever appended
        self._gone = 0  # bytes ever forgotten
        self._terminal = 0
        self._closed = False
        self._interrupted = False
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._behind_events = min(_BEHIND_EVENTS, max_events)
        self._stall_timeout = stall_timeout
        self._clock = clock

    @property
    def first(self) -> int:
        """Number of the oldest entry kept; `last` + 1 if there is none."""
        return self._first

    @property
    def last(self) -> int:
        """Number of the newest entry; 0 if there never was one."""
        return self._last

    @property
    def closed(self) -> bool:
        """Whether the terminal entry is in."""
        return self._closed

    @property
    def chunks(self) -> int:
        """How many pieces were ever appended, terminal entries not counted."""
        with self._lock:
            return self._last - self._terminal

    @property
    def readers(self) -> int:
        """How many readers are attached."""
        return len(self._readers)

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._offset - self._gone

    def append(
        self,
        data: bytes,
        *,
        event: str | None = None,
        retry_ms: int | None = None,
        handler_id: str | None = None,
    ) -> int:
        """Append one piece and return its number; 0 if nothing is taken any more.

        Blocking: waits for the slowest reader, until it moves, is detached as stalled,
        or the ring is closed or interrupted.

        Raises:
            InvocationError: The piece is larger than the ring (`chunk_too_large`).
        """
        if len(data) > self._max_bytes:
            raise InvocationError(
                f"chunk {self._last + 1} has {len(data)} bytes of JSON, more than the"
                f" {self._max_bytes} a stream may carry at once",
                code="chunk_too_large",
            )
        while True:
            with self._lock:
                stalled = self._wait_for_room_locked(len(data))
                if not stalled:
                    if self._closed or self._interrupted:
                        return 0
                    return self._put_locked(data, event, retry_ms, handler_id)
            for reader in stalled:
                if reader.on_stalled is not None:
                    reader.on_stalled()

    def append_value(self, data: bytes) -> None:
        """Append the one value of an invocation that does not stream, of any size."""
        with self._lock:
            if not self._closed:
                self._put_locked(data)

    def finish(self, end: bytes, error: bytes | None = None) -> None:
        """Append the terminal entries and close; never waits. Idempotent."""
        with self._lock:
            if self._closed:
                return
            if error is not None:
                self._add_locked(Entry(self._last + 1, error, "error"))
            self._add_locked(Entry(self._last + 1, end, "end"))
            self._terminal = 1 if error is None else 2
            self._closed = True
            self._changed.notify_all()

    def interrupt(self) -> None:
        """Take no more pieces, and let a waiting producer go."""
        with self._lock:
            self._interrupted = True
            self._changed.notify_all()

    def read(
        self,
        after: int = 0,
        timeout: float | None = None,
        *,
        reader: RingReader | None = None,
    ) -> list[Entry]:
        """Return the entries after number `after`, in order.

        Blocking: waits for at least one, up to `timeout` seconds (None: until the ring
        is closed); the list is empty after that, and at the end of a closed ring.

        Raises:
            ReplayGoneError: Entries after `after` were already forgotten.
        """
        with self._lock:
            if reader is not None and after > reader.position:
                self._move_locked(reader, after)
            if after >= self._last and not self._closed:
                ready = lambda: after < self._last or self._closed  # noqa: E731
                self._wait_locked(ready, timeout)
            if after + 1 < self._first:
                raise _gone(after, self._first)
            return [self._entries[n] for n in range(after + 1, self._last + 1)]

    def attach(
        self, after: int = 0, *, on_stalled: Callable[[], object] | None = None
    ) -> RingReader:
        """Attach a reader of the entries after number `after`.

        Args:
            after: Last number the reader has already; 0 for none.
            on_stalled: Called when it is let go for taking nothing.

        Raises:
            ReplayGoneError: Entries after `after` were already forgotten.
        """
        reader = RingReader(self, after, on_stalled)
        with self._lock:
            if after + 1 < self._first:
                raise _gone(after, self._first)
            self._move_locked(reader, after)
            self._readers.append(reader)
        return reader

    def detach(self, reader: RingReader) -> None:
        """Detach a reader. Idempotent."""
        with self._lock:
            if reader in self._readers:
                self._readers.remove(reader)
                self._wake_locked()

    def _move_locked(self, reader: RingReader, after: int) -> None:
        entry = self._entries.get(after)
        reader.position = after
        if entry is not None:
            reader.offset = entry.offset
        else:  # at, or before, the oldest kept
            reader.offset = self._gone
        reader.moved_at = self._clock()
        self._wake_locked()

    def _wait_for_room_locked(self, size: int) -> list[RingReader]:
        """Wait until an entry may go in; return the readers let go instead, if any."""
        waiting_since: float | None = None
        while not self._closed and not self._interrupted:
            behind = self._too_far_behind_locked(size)
            if not behind:
                break
            now = self._clock()
            waiting_since = now if waiting_since is None else waiting_since
            stalled = self._drop_stalled_locked(behind, waiting_since, now)
            if stalled:
                return stalled
            oldest = min(reader.moved_at for reader in behind)
            limit = max(oldest, waiting_since) + self._stall_timeout
            self._sleep_locked(limit - now)
        return []

    def _too_far_behind_locked(self, size: int) -> list[RingReader]:
        """Return the readers that do not let another entry of `size` bytes in."""
        if not self._readers:
            return []
        newest = self._last - self._behind_events
        bytes_read = self._offset + size - self._max_bytes
        return [
            reader
            for reader in self._readers
            if reader.position <= newest or reader.offset < bytes_read
        ]

    def _drop_stalled_locked(
        self, behind: list[RingReader], waiting_since: float, now: float
    ) -> list[RingReader]:
        # A reader that had nothing to take has an old `moved_at`: its time counts
        # from when the producer began to wait for it.
        limit = now - self._stall_timeout
        stalled = [r for r in behind if max(r.moved_at, waiting_since) <= limit]
        for reader in stalled:
            reader.stalled = True
            self._readers.remove(reader)
        return stalled

    def _put_locked(
        self,
        data: bytes,
        event: str | None = None,
        retry_ms: int | None = None,
        handler_id: str | None = None,
    ) -> int:
        self._add_locked(
            Entry(
                self._last + 1,
                data,
                "chunk",
                event,
                retry_ms,
                handler_id,
                self._offset + len(data),
            )
        )
        self._wake_locked()
        return self._last

    def _add_locked(self, entry: Entry) -> None:
        self._last = entry.seq
        self._entries[entry.seq] = entry
        if entry.kind != "chunk":
            return  # terminal: counts nothing and pushes nothing out
        self._offset = entry.offset
        held = self._last - self._first + 1
        if held <= self._max_events and self.size <= self._max_bytes:
            return
        needed = min((r.position for r in self._readers), default=self._last)
        while self._first < entry.seq and self._first <= needed:
            if held <= self._max_events and self.size <= self._max_bytes:
                return
            self._gone = self._entries.pop(self._first).offset
            self._first += 1
            held -= 1

    def _wake_locked(self) -> None:
        if self._sleepers:
            self._changed.notify_all()

    def _sleep_locked(self, timeout: float | None) -> None:
        self._sleepers += 1
        try:
            self._changed.wait(timeout)
        finally:
            self._sleepers -= 1

    def _wait_locked(self, ready: Callable[[], bool], timeout: float | None) -> None:
        end = None if timeout is None else self._clock() + timeout
        while not ready():
            left = None if end is None else end - self._clock()
            if left is not None and left <= 0:
                return
            self._sleep_locked(left)


def _gone(after: int, first: int) -> ReplayGoneError:
    return ReplayGoneError(
        f"the events after {after} are no longer kept; the oldest is {first}"
    )
