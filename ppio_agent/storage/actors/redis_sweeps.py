"""What is done again and again for all actors in Redis: what is due, lost or too old.

An index only says where to look; the actor's own script decides. Each step may be done
twice, by two workers or after one has died in the middle.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import evolve

from ppio_agent.wire.actors import ActorId

from .records import (
    Acceptance,
    Cancellation,
    Moved,
    Outgoing,
    RequestRecord,
    Retention,
)
from .redis_calls import ActorCall, RedisCalls
from .redis_link import RedisLink
from .redis_records import (
    EVERY_ACTOR,
    INDEXES,
    actor_of,
    format_letter,
    format_reminder,
    head_of,
    key_of,
    letter_id,
    parse_outgoing,
    parse_record,
    parse_reminder,
)
from .schedule import GIVE_UP_AFTER, retry_delay, tick_of, tick_request

__all__ = ["RedisSweeps"]

_PAGE = 1000  # entries of an index that are looked at in one go
_MEND_EVERY = 300.0  # seconds
_MEND_KEYS, _MEND_STEPS = 1000, 10  # keys a step, steps a sweep
_FORGET_WORKER = 86_400.0
_WITHOUT_LIMIT = 2**50

_Items = dict[str, list[str]]


class RedisSweeps:
    """Sweeps over the actors of one server.

    Thread safety: thread-safe; what `ready` remembers from call to call is but a hint.
    """

    def __init__(self, link: RedisLink, calls: RedisCalls) -> None:
        self._link = link
        self._calls = calls
        self._ready_from = 0
        self._mend_at = 0.0  # at once: who wrote last may have died
        self._cursor = 0
        self._gone: set[str] = set()

    def lives(self, worker: str) -> bool:
        """Return whether a worker still has its leases."""
        until = self._link.one("ZSCORE", INDEXES["workers"], worker)
        return until is not None and float(until) > self._calls.clock.now()

    def retire(self, worker: str, *, dead: bool = False) -> None:
        """Give back all leases of a worker, and forget it.

        Args:
            worker: It.
            dead: Whether it has not ended by itself: its turns count as begun.
        """
        suffix = f"\n{worker}".encode()
        leased: list[bytes] = []
        first = 0
        while page := self._link.one(
            "ZRANGE", INDEXES["leases"], first, first + _PAGE - 1
        ):
            leased += (member for member in page if member.endswith(suffix))
            first += _PAGE
        for start in range(0, len(leased), _PAGE):
            self._calls.actors([
                ActorCall("release", actor, {"worker": worker, "dead": dead})
                for actor, _ in map(_parts, leased[start : start + _PAGE])
            ])  # fmt: skip
        # What an index missed is free, too: of a worker that is not known.
        self._link.one("ZREM", INDEXES["workers"], worker)

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns a worker may run; mend a part of the indexes."""
        first = self._ready_from
        page, workers = self._link.all([
            ("ZRANGE", INDEXES["pending"], first, first + _PAGE - 1),
            ("ZRANGE", INDEXES["workers"], 0, -1, "WITHSCORES"),
        ])  # fmt: skip
        now = self._calls.clock.now()
        live = {
            name.decode() for name, until in _scored(workers) if until > now
        }  # fmt: skip
        gone = {name.decode() for name, _ in _scored(workers)} - live
        if gone - self._gone:
            # They may have died before they told the indexes.
            self._cursor, self._mend_at = 0, 0.0
        self._gone = gone
        self._mend(gone)
        # The next page next time, so that none is passed over for good.
        self._ready_from = first + _PAGE if len(page) == _PAGE else 0
        found: list[ActorId] = []
        for actor, (holder, pending) in self._peek(_by_actor(page)):
            other = holder.decode()
            if pending and (other == worker or other not in live):
                found.append(ActorId.parse(actor))
        return found[:limit]

    def _peek(self, items: _Items) -> Iterable[tuple[str, list[Any]]]:
        calls = [ActorCall("peek", actor, {"ids": ids}) for actor, ids in items.items()]
        return zip(items, self._calls.actors(calls), strict=True)

    def _mend(self, gone: set[str]) -> None:
        """Let actors tell the indexes what they should say, some at a time."""
        if not self._cursor and time.monotonic() < self._mend_at:
            return
        for _ in range(_MEND_STEPS):
            cursor, keys = self._link.one(
                "SCAN", self._cursor, "MATCH", EVERY_ACTOR, "COUNT", _MEND_KEYS
            )
            facts = {"gone": sorted(gone)}
            self._calls.actors([
                ActorCall("survey", actor_of(key), facts) for key in keys
            ])  # fmt: skip
            self._cursor = int(cursor)
            if not self._cursor:
                self._mend_at = time.monotonic() + _MEND_EVERY
                break

    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted for turns of a worker."""
        page = self._link.one("ZRANGE", INDEXES["cancels"], 0, _PAGE - 1)
        return [
            (ActorId.parse(actor), id.decode(), Cancellation(how.decode()))
            for actor, (holder, pending) in self._peek(_by_actor(page))
            for id, how in pending
            if how and holder.decode() == worker
        ]

    def _due(self, index: str, now: float, limit: int) -> list[bytes]:
        page: list[bytes] = self._link.one(
            *("ZRANGE", INDEXES[index], "-inf", repr(now), "BYSCORE"),
            *("LIMIT", 0, limit),
        )
        return page

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End pending requests whose deadline has passed."""
        items = _by_actor(self._due("deadlines", now, limit))
        answers = self._calls.actors([
            ActorCall("expire", actor, {"ids": ids, "now": repr(now)})
            for actor, ids in items.items()
        ])  # fmt: skip
        return [
            parse_record(ActorId.parse(actor), *record)
            for actor, (ended,) in zip(items, answers, strict=True)
            for record in ended
        ]

    def fire_reminders(self, now: float, limit: int) -> Moved:
        """Make requests of reminders that are due."""
        page = [_parts(member) for member in self._due("reminders", now, limit)]
        texts = self._link.all([
            ("HGET", key_of(actor, "reminders"), name) for actor, name in page
        ])  # fmt: skip
        for (actor, name), text in zip(page, texts, strict=True):
            if text is None:
                self._link.one("ZREM", INDEXES["reminders"], f"{actor}\n{name}")
        calls = [
            _firing(ActorId.parse(actor), text, now)
            for (actor, _), text in zip(page, texts, strict=True)
            if text is not None
        ]
        answers = self._calls.actors(calls)
        made = zip(calls, answers, strict=True)
        actors = _actors(call.actor for call, (count,) in made if count)
        return Moved(actors, len(page) == limit)

    # What goes to others.

    def relay(self, now: float, limit: int) -> Moved:
        """Move outgoing requests that are due into mailboxes."""
        dying = [_parts(member) for member in self._due("dying", now, limit)]
        if dying:
            self._calls.bury([(actor, id.encode()) for actor, id in dying])
        page = [_parts(member) for member in self._due("outbox", now, limit)]
        texts = self._link.all([
            ("HGET", key_of(actor, "outbox"), number) for actor, number in page
        ])  # fmt: skip
        parcels = [
            (actor, number, parse_outgoing(text))
            for (actor, number), text in zip(page, texts, strict=True)
            if text is not None
        ]
        calls = [_delivery(out, now) for _, _, out in parcels]
        answers = self._calls.actors(calls)
        outcomes = [Acceptance(outcome.decode()) for outcome, *_ in answers]
        done: _Items = {}
        for (actor, number), text in zip(page, texts, strict=True):
            if text is None:
                done.setdefault(actor, []).append(number)
        for (actor, number, out), outcome in zip(parcels, outcomes, strict=True):
            full = outcome is Acceptance.FULL
            if not full or self._return(actor, number, out, now):
                done.setdefault(actor, []).append(number)
        self._calls.actors([
            ActorCall("sent", actor, {"numbers": numbers})
            for actor, numbers in done.items()
        ])  # fmt: skip
        new = zip(calls, outcomes, strict=True)
        actors = _actors(call.actor for call, how in new if how is Acceptance.NEW)
        left = self._link.one("ZCARD", INDEXES["outbox"])
        return Moved(actors, len(page) == limit, left)

    def _return(self, actor: str, number: str, out: Outgoing, now: float) -> bool:
        """Try a request again later that found no room; True if that was the last."""
        end = out.not_before + GIVE_UP_AFTER
        if now < min(end, out.request.deadline or end):
            tries = self._link.one(
                "HINCRBY", key_of(actor, "outbox"), f"{number} tries", 1
            )  # fmt: skip
            again = repr(now + retry_delay(tries))
            self._calls.index("apply", "outbox", f"{actor}\n{number}", again)
            return False
        to = str(out.request.actor_id)
        # Of the same request always the same, should this be done again.
        id = letter_id(to, out.request.deadline or end, int(number))
        letter = format_letter(out.request, id, "mailbox_full", now)
        self._calls.index("bury", id, to.encode() + b"\n" + letter)
        return True

    # What is too old, or too much.

    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept; return how much was looked at for that."""
        workers = self._due("workers", now - _FORGET_WORKER, limit)
        for worker in workers:
            self.retire(worker.decode(), dead=True)
        while heavy := self._heavy(limit, retention.payload_bytes):
            self._forget("evict", heavy)
            self._calls.index("evicted", *heavy)
        return (
            len(workers)
            + self._drop(now, limit, retention)
            + self._discard(now, limit, retention)
            + self._look("wither", self._due("expiries", now, limit), now)
            + self._look(
                "disown", self._due("owners", now - retention.seconds, limit), now
            )
        )

    def _drop(self, now: float, limit: int, retention: Retention) -> int:
        count = self._link.one("ZCARD", INDEXES["ended"])
        old = self._due("ended", now - retention.seconds, limit)
        extra = min(limit, count - retention.ids)
        if extra > len(old):
            old = self._link.one("ZRANGE", INDEXES["ended"], 0, extra - 1)
        self._forget("drop", old)
        if old:
            self._calls.index("dropped", *old)
        return len(old)

    def _heavy(self, limit: int, most: int) -> list[bytes]:
        """Return a page of those that ended first, as far as they are too much."""
        over = int(self._link.one("GET", INDEXES["bytes"]) or 0) - most
        if over <= 0:
            return []
        heavy: list[bytes] = []
        for member in self._link.one("ZRANGE", INDEXES["payloads"], 0, limit - 1):
            if over <= 0:
                break
            heavy.append(member)
            over -= int(member.rpartition(b" ")[2])
        return heavy

    def _forget(self, script: str, members: Sequence[bytes]) -> None:
        """Let actors forget requests first; the indexes say so as long as they do not."""
        items = _by_actor(member.rpartition(b" ")[0] for member in members)
        self._calls.actors([
            ActorCall(script, actor, {"ids": ids}) for actor, ids in items.items()
        ])  # fmt: skip

    def _discard(self, now: float, limit: int, retention: Retention) -> int:
        key = INDEXES["dead"]
        before = letter_id("", now - retention.dead_seconds)[:16]
        count, old = self._link.all([
            ("ZCARD", key),
            ("ZRANGE", key, "-", f"({before}", "BYLEX", "LIMIT", 0, limit),
        ])  # fmt: skip
        extra = min(limit, count - retention.dead_letters)
        if extra > len(old):
            old = self._link.one("ZRANGE", key, 0, extra - 1)
        return self._calls.index("discard", *old) if old else 0

    def _look(self, script: str, members: Sequence[bytes], now: float) -> int:
        """Let actors look whether something of theirs is too old."""
        facts = {"now": repr(now)}
        self._calls.actors([
            ActorCall(script, actor, facts) for actor in _by_actor(members)
        ])  # fmt: skip
        return len(members)


def _scored(page: Sequence[bytes]) -> Iterable[tuple[bytes, float]]:
    """Return the members of a page with their scores, which follow each."""
    return zip(page[::2], map(float, page[1::2]), strict=True)


def _parts(member: bytes) -> tuple[str, str]:
    """Return whose entry of an index it is, and about what."""
    actor, _, item = member.decode().partition("\n")
    return actor, item


def _by_actor(members: Iterable[bytes]) -> _Items:
    items: _Items = {}
    for actor, item in map(_parts, members):
        items.setdefault(actor, []).append(item)
    return items


def _actors(actors: Iterable[str]) -> list[ActorId]:
    return [ActorId.parse(actor) for actor in dict.fromkeys(actors)]


def _firing(actor_id: ActorId, text: bytes, now: float) -> ActorCall:
    """Return the call that makes a request of a reminder, if it is as it was read."""
    reminder, before = parse_reminder(text)
    tick = tick_of(reminder.due, reminder.period, reminder.count, now)
    request = tick_request(actor_id, reminder, tick, now)
    facts = {
        "name": reminder.name,
        "before": before or None,
        "request": head_of(request),
        "now": repr(now),
    }
    blobs = [text, request.params]
    if tick.next_due is not None:
        later = evolve(reminder, due=tick.next_due, count=tick.left)
        blobs.append(format_reminder(later, request.message_id))
        facts["due"] = repr(tick.next_due)
    return ActorCall("fire", str(actor_id), facts, blobs)


def _delivery(out: Outgoing, now: float) -> ActorCall:
    """Return the call that puts a request into the mailbox where it goes."""
    request = out.request
    request.created_at = now
    facts = {
        "request": head_of(request),
        "on_busy": "enqueue",
        "drop_oldest": False,
        "mailbox": out.mailbox,
        "pending": 0,
        "most": _WITHOUT_LIMIT,
    }
    return ActorCall("accept", str(request.actor_id), facts, [request.params])
