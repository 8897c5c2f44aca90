"""What the memory store keeps of all actors in the order of time, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from attrs import evolve

from ppio_agent.wire.actors import ActorId

from ._shelf import Log
from .records import DeadLetter, RequestRecord, Retention

__all__ = ["Archive", "DeadLetters"]

_Replace = Callable[[RequestRecord, "RequestRecord | None"], bool]


class Archive:
    """Ended requests, the oldest first, and the logs of all requests.

    A request that was deleted meanwhile counts until it is the oldest, so the bounds
    are never exceeded.

    Args:
        replace: Called with a request and what is known in its place from now on; None:
            nothing. Returns whether it was known.

    Attributes:
        logs: By actor and id.
        retention: The bounds.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_bare", "_full", "_payload", "_replace", "logs", "retention")

    def __init__(self, replace: _Replace) -> None:
        self._replace = replace
        self._full: deque[RequestRecord] = deque()
        self._bare: deque[RequestRecord] = deque()  # Evicted; older than all in _full.
        self._payload = 0
        self.logs: dict[tuple[ActorId, str], Log] = {}
        self.retention = Retention()

    def add(self, record: RequestRecord) -> None:
        """Keep a request that has just ended, and forget others for it."""
        self._full.append(record)
        self._payload += len(record.data)
        if self.logs:
            log = self.logs.get((record.actor_id, record.message_id))
            if log is not None:
                record.position = log.position
                self._payload += log.size
        retention = self.retention
        if self._payload > retention.payload_bytes:
            self._evict()
        if len(self._full) + len(self._bare) > retention.ids:
            self._forget_oldest()

    def purge(self, now: float, limit: int) -> int:
        """Forget what is too old or too much; return how many requests were known."""
        self._evict()
        before, ids = now - self.retention.seconds, self.retention.ids
        count = 0
        while count < limit:
            oldest = (self._bare or self._full or (None,))[0]
            if oldest is None:
                break
            old = (oldest.finished_at or 0.0) < before
            if not old and len(self._full) + len(self._bare) <= ids:
                break
            count += self._forget_oldest()
        return count

    def _evict(self) -> None:
        while self._payload > self.retention.payload_bytes:
            record = self._full.popleft()
            self._payload -= self._size(record)
            bare = evolve(record, data=b"", evicted=True)
            if self._replace(record, bare):
                self._bare.append(bare)

    def _forget_oldest(self) -> bool:
        if self._bare:
            return self._replace(self._bare.popleft(), None)
        record = self._full.popleft()
        self._payload -= self._size(record)
        return self._replace(record, None)

    def _size(self, record: RequestRecord) -> int:
        log = None
        if self.logs:
            log = self.logs.pop((record.actor_id, record.message_id), None)
        return len(record.data) + (log.size if log is not None else 0)


class DeadLetters:
    """Dead letters, the oldest first; the oldest make room.

    Thread safety: one thread at a time.
    """

    __slots__ = ("_by_id", "_number")

    def __init__(self) -> None:
        self._by_id: dict[str, DeadLetter] = {}
        self._number = 0

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(self._by_id.values())

    def add(self, request: RequestRecord, reason: str, at: float, most: int) -> None:
        """Keep one more; at most `most` in all."""
        self._number += 1
        id = f"{self._number:016x}"
        self._by_id[id] = DeadLetter(id, request, reason, at, request.attempt)
        if len(self._by_id) > most:
            self.shorten(1, 0.0, most)

    def get(self, id: str) -> DeadLetter | None:
        """Return one."""
        return self._by_id.get(id)

    def discard(self, id: str) -> bool:
        """Remove one; return whether it was there."""
        return self._by_id.pop(id, None) is not None

    def discard_of(self, actor_id: ActorId) -> bool:
        """Remove those of an actor; return whether there were any."""
        ids = [letter.id for letter in self if letter.request.actor_id == actor_id]
        return sum(self.discard(id) for id in ids) > 0

    def shorten(self, limit: int, before: float, most: int) -> int:
        """Remove those from `before`, and the oldest beyond `most`; return how many."""
        extra = len(self._by_id) - most
        gone: list[str] = []
        for letter in self:
            if len(gone) >= limit or (len(gone) >= extra and letter.at >= before):
                break
            gone.append(letter.id)
        return sum(self.discard(id) for id in gone)
