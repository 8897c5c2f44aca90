"""What the memory store keeps of all actors in the order of time, within bounds."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import evolve

from ppio_agent.wire.actors import ActorId

from ._ended import pack, unpack
from ._shelf import Log
from .records import DeadLetter, RequestRecord, Retention

__all__ = ["Archive", "DeadLetters"]

_MANY = 64
_LARGE = 64 * 1024
# An actor, an id, what `pack` made of the request, the bytes of its result and log.
_Row = tuple[ActorId, str, bytes, int]
_Replace = Callable[[ActorId, str, bytes, "bytes | None"], bool]


class _Rows:
    """Rows, the oldest first, without an object for each.

    Thread safety: one thread at a time takes; `append` is one step of the interpreter.
    """

    __slots__ = ("_fields",)

    def __init__(self) -> None:
        self._fields: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._fields) // 4

    def append(self, row: _Row) -> None:
        self._fields.extend(row)

    def oldest(self) -> _Row:
        while len(self._fields) % 4:  # a signal has raised in the midst of `drop`
            self._fields.popleft()
        fields = self._fields
        return fields[0], fields[1], fields[2], fields[3]

    def drop(self) -> None:
        pop = self._fields.popleft
        pop(), pop(), pop(), pop()


class Archive:
    """Ended requests, the oldest first, and the logs of all requests.

    What has ended is added while its actor's lock is held, and so without a lock of
    all actors; it is counted, and others forgotten for it, by `settle`, which must be
    called without a lock as soon as `urgent` says so. So the bounds may be passed by
    the latest 64 requests, of at most 64 KiB each. A request that was deleted meanwhile
    counts until it is the oldest.

    Args:
        replace: Called with an actor, an id, what was packed of the request and what
            is kept in its place from now on; None: nothing. Returns whether it was
            known. Takes the lock of the actor.

    Attributes:
        logs: By actor and id; each for who has the lock of the actor.
        retention: The bounds.
        urgent: Whether it is time for `settle`.

    Thread safety: thread-safe, but for `logs`.
    """

    __slots__ = (
        "_bare",
        "_fresh",
        "_full",
        "_lock",
        "_payload",
        "_replace",
        "logs",
        "retention",
        "urgent",
    )

    def __init__(self, replace: _Replace) -> None:
        self._replace = replace
        self.logs: dict[tuple[ActorId, str], Log] = {}
        self.retention = Retention()
        self.urgent = False
        self._fresh = _Rows()  # Not counted yet.
        self._lock = threading.Lock()  # Guards all below.
        self._full = _Rows()
        self._bare = _Rows()  # Evicted; older than all in _full.
        self._payload = 0

    def add(self, actor_id: ActorId, record: RequestRecord) -> bytes:
        """Keep a request that has just ended; return what is kept of it."""
        size = len(record.data)
        if self.logs:
            log = self.logs.get((actor_id, record.message_id))
            if log is not None:
                record.position = log.position
                size += log.size
        packed = pack(record)
        self._fresh.append((actor_id, record.message_id, packed, size))
        if size > _LARGE or len(self._fresh) >= _MANY:
            self.urgent = True
        return packed

    def settle(self) -> None:
        """Count what was added, and forget others for it."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        self.urgent = False
        while self._fresh:
            row = self._fresh.oldest()
            self._payload += row[3]
            self._full.append(row)
            self._fresh.drop()  # last: should a signal raise, none is lost
        while self._full and self._payload > self.retention.payload_bytes:
            self._evict()
        while len(self._full) + len(self._bare) > self.retention.ids:
            self._forget_oldest()

    def purge(self, now: float, limit: int) -> int:
        """Forget what is too old or too much; return how many requests were known."""
        count = 0
        with self._lock:
            before = len(self._full) + len(self._bare) + len(self._fresh)
            self._settle()
            count += before - len(self._full) - len(self._bare)
            while count < limit:
                rows = self._bare or self._full
                if not rows or not _ended_before(
                    rows.oldest(), now - self.retention.seconds
                ):
                    break
                count += self._forget_oldest()
        return count

    def _evict(self) -> None:
        actor_id, message_id, packed, size = self._full.oldest()
        record = unpack(actor_id, message_id, packed)
        bare = pack(evolve(record, data=b"", evicted=True))
        if self._replace(actor_id, message_id, packed, bare):
            self._bare.append((actor_id, message_id, bare, 0))
        self._payload -= size
        self._full.drop()

    def _forget_oldest(self) -> bool:
        rows = self._bare or self._full
        actor_id, message_id, packed, size = rows.oldest()
        known = self._replace(actor_id, message_id, packed, None)
        self._payload -= size
        rows.drop()
        return known


def _ended_before(row: _Row, instant: float) -> bool:
    ended = unpack(*row[:3]).finished_at
    return ended is not None and ended < instant


class DeadLetters:
    """Dead letters, the oldest first; the oldest make room.

    Thread safety: thread-safe.
    """

    __slots__ = ("_by_id", "_lock", "_number")

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards all below.
        self._by_id: dict[str, DeadLetter] = {}
        self._number = 0

    def add(self, request: RequestRecord, reason: str, at: float, most: int) -> None:
        """Keep one more; at most `most` in all."""
        with self._lock:
            self._number += 1
            id = f"{self._number:016x}"
            self._by_id[id] = DeadLetter(id, request, reason, at, request.attempt)
            if len(self._by_id) > most:
                del self._by_id[next(iter(self._by_id))]

    def listed(self, limit: int, after: str | None) -> list[DeadLetter]:
        """Return some, from behind the one with id `after`."""
        with self._lock:
            letters = self._by_id.values()
            found = (one for one in letters if after is None or one.id > after)
            return list(itertools.islice(found, limit))

    def get(self, id: str) -> DeadLetter | None:
        """Return one."""
        return self._by_id.get(id)

    def discard(self, id: str) -> bool:
        """Remove one; return whether it was there."""
        with self._lock:
            return self._by_id.pop(id, None) is not None

    def discard_of(self, actor_id: ActorId) -> bool:
        """Remove those of an actor; return whether there were any."""
        with self._lock:
            letters = list(self._by_id.values())
            ids = [one.id for one in letters if one.request.actor_id == actor_id]
            for id in ids:
                del self._by_id[id]
        return bool(ids)

    def shorten(self, limit: int, before: float, most: int) -> int:
        """Remove those from `before`, and the oldest beyond `most`; return how many."""
        with self._lock:
            extra = len(self._by_id) - most
            gone: list[str] = []
            for letter in self._by_id.values():
                if len(gone) >= limit or (len(gone) >= extra and letter.at >= before):
                    break
                gone.append(letter.id)
            for id in gone:
                del self._by_id[id]
        return len(gone)
