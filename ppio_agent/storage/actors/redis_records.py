"""How requests, reminders and dead letters are written down in Redis. Pure.

A request is a *head*, JSON that scripts look into, and beside it its parameters and its
result, which nobody looks into. Times in a head are texts, since scripts round numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from typing import Any

from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_json, encode_json

from .ends import failure
from .records import (
    Cancellation,
    DeadLetter,
    Outgoing,
    ProgressItem,
    RemoveKey,
    RequestRecord,
    SetReminder,
    SetValue,
    TurnCommit,
)
from .redis_scripts import ACTOR_KEYS
from .redis_sweep_scripts import INDEX_KEYS

__all__ = [
    "EVERY_ACTOR",
    "INDEXES",
    "Blobs",
    "Head",
    "actor_of",
    "dead_mark",
    "format_letter",
    "format_outgoing",
    "format_reminder",
    "head_of",
    "key_of",
    "keys_of",
    "letter_id",
    "parse_letter",
    "parse_outgoing",
    "parse_record",
    "parse_reminder",
    "turn_facts",
]

Head = dict[str, Any]

# Whatever an instance is named: all keys of an actor have the same tag, the text
# between the first brace and the next closing one.
_KEY = "ppio:{%s}:%s"
INDEXES = {name: _KEY % ("actors", name) for name in INDEX_KEYS}
"""The key of each index; no actor has their tag, for its id has a slash."""

EVERY_ACTOR = _KEY % ("*", ACTOR_KEYS[0])
"""The pattern of a key that every actor has."""

_STATUSES = {status.value: status for status in RequestStatus}


def keys_of(actor: str) -> list[str]:
    """Return the keys of an actor, in the order of `ACTOR_KEYS`."""
    return [_KEY % (actor, name) for name in ACTOR_KEYS]


def key_of(actor: str, name: str) -> str:
    """Return one key of an actor, a name of `ACTOR_KEYS`."""
    return _KEY % (actor, name)


def actor_of(key: bytes) -> str:
    """Return whose key it is that `EVERY_ACTOR` found."""
    before, _, after = EVERY_ACTOR.partition("*")
    return key.decode()[len(before) : -len(after)]


def _time(instant: float | None) -> str:
    return "" if instant is None else repr(float(instant))


def head_of(record: RequestRecord) -> Head:
    """Return the head of a request."""
    return {
        "id": record.message_id,
        "method": record.method,
        "digest": record.digest.hex(),
        "sender": record.sender,
        "chain": "\n".join(record.chain),
        "trace": record.traceparent,
        "created": _time(record.created_at),
        "deadline": _time(record.deadline),
        "status": record.status.value,
        "attempt": record.attempt,
        "started": _time(record.started_at),
        "finished": _time(record.finished_at),
        "evicted": int(record.evicted),
        "cancel": "",
        # Of its log: the last step, the first that is kept, and their bytes.
        "position": record.position,
        "first": record.position + 1,
        "bytes": 0,
    }


def parse_record(
    actor_id: ActorId, head: Head | bytes, params: bytes, data: bytes
) -> RequestRecord:
    """Return the request of a head, as JSON or decoded."""
    head = decode_json(head) if isinstance(head, bytes) else head
    return RequestRecord(
        actor_id,
        head["id"],
        head["method"],
        params,
        bytes.fromhex(head["digest"]),
        head["sender"],
        tuple(head["chain"].split("\n")) if head["chain"] else (),
        head["trace"],
        float(head["created"]),
        _instant(head["deadline"]),
        _STATUSES[head["status"]],
        head["attempt"],
        _instant(head["started"]),
        _instant(head["finished"]),
        data,
        head["evicted"] == 1,
        head["position"],
        Cancellation(head["cancel"]) if head["cancel"] else None,
    )


def _instant(text: str) -> float | None:
    return float(text) if text else None


# What else is kept is one line of JSON, and parameters as they are.


def _format(facts: object, params: bytes) -> bytes:
    return encode_json(facts) + b"\n" + params


def _parse(text: bytes) -> tuple[Any, bytes]:
    facts, _, params = text.partition(b"\n")
    return decode_json(facts), params


def format_reminder(reminder: SetReminder, before: str = "") -> bytes:
    """Return a reminder as text; `before` is the id of the request that it made last."""
    facts = {
        "name": reminder.name,
        "due": _time(reminder.due),
        "method": reminder.method,
        "period": _time(reminder.period),
        "count": reminder.count,
        "before": before,
    }
    return _format(facts, reminder.params)


def parse_reminder(text: bytes) -> tuple[SetReminder, str]:
    """Return what `format_reminder` was given."""
    facts, params = _parse(text)
    reminder = SetReminder(
        facts["name"],
        float(facts["due"]),
        facts["method"],
        params,
        _instant(facts["period"]),
        facts["count"],
    )
    return reminder, facts["before"]


def _due(out: Outgoing, now: float) -> str:
    return _time(max(out.not_before, now))


def format_outgoing(out: Outgoing, now: float) -> bytes:
    """Return what leaves an actor as text."""
    facts = {
        "to": str(out.request.actor_id),
        "due": _due(out, now),
        "mailbox": out.mailbox,
        "request": head_of(out.request),
    }
    return _format(facts, out.request.params)


def parse_outgoing(text: bytes) -> Outgoing:
    """Return what leaves, and when it was to."""
    facts, params = _parse(text)
    to = ActorId.parse(facts["to"])
    request = parse_record(to, facts["request"], params, b"")
    return Outgoing(request, float(facts["due"]), facts["mailbox"])


def dead_mark(actor: str) -> str:
    """Return what the ids of all dead letters of an actor end with."""
    return sha1(key_of(actor, "actor").encode(), usedforsecurity=False).hexdigest()[:12]


def letter_id(actor: str, at: float, number: int = 0) -> str:
    """Return an id for a dead letter; of a later one it is greater."""
    return f"{at * 1e6:016.0f}-{number:09d}-{dead_mark(actor)}"


def format_letter(request: RequestRecord, id: str, reason: str, at: float) -> bytes:
    """Return a dead letter as scripts write it, for a request that never arrived."""
    facts = {
        "id": id,
        "reason": reason,
        "at": _time(at),
        "request": {
            **head_of(request),
            "status": RequestStatus.REJECTED.value,
            "finished": _time(at),
        },
        "data": failure(reason).decode(),
    }
    return _format(facts, request.params)


def parse_letter(text: bytes) -> DeadLetter:
    """Return a dead letter, whose text has its actor in front."""
    actor, _, text = text.partition(b"\n")
    facts, params = _parse(text)
    actor_id = ActorId.parse(actor.decode())
    request = parse_record(actor_id, facts["request"], params, facts["data"].encode())
    return DeadLetter(
        facts["id"], request, facts["reason"], float(facts["at"]), request.attempt
    )


class Blobs:
    """What goes to a script beside its facts, from ARGV[2] on.

    Args:
        texts: The first of it.

    Attributes:
        texts: All of it.
    """

    def __init__(self, *texts: bytes) -> None:
        self.texts = list(texts)

    def add(self, text: bytes, *facts: str | int) -> list[str | int]:
        """Add one; return the facts about it, and its place in ARGV last."""
        self.texts.append(text)
        return [*facts, len(self.texts) + 1]

    def state(self, ops: Sequence[SetValue | RemoveKey]) -> list[list[str | int]]:
        """Add the values of writes."""
        return [
            self.add(op.value, op.key) if isinstance(op, SetValue) else [op.key]
            for op in ops
        ]

    def progress(self, items: Sequence[ProgressItem]) -> list[list[str | int]]:
        """Add steps."""
        return [self.add(item.data, item.position) for item in items]


def turn_facts(turn: TurnCommit, blobs: Blobs, now: float) -> dict[str, Any]:
    """Return what a commit is told; what goes beside it is added to `blobs`."""
    params = None
    if turn.request is not None and turn.dead is not None:
        (params,) = blobs.add(turn.request.params)
    return {
        "id": turn.message_id,
        "params": params,  # for the dead letter
        "status": turn.status.value,
        "request": None if turn.request is None else _begun(turn.request, now),
        "etag": turn.etag,
        "state": blobs.state(turn.state),
        "keep": turn.keep,
        "outbox": [
            blobs.add(format_outgoing(out, now), _due(out, now)) for out in turn.outbox
        ],
        "reminders": [
            blobs.add(format_reminder(change), change.name, repr(change.due))
            if isinstance(change, SetReminder)
            else [change.name]
            for change in turn.reminders
        ],
        "progress": blobs.progress(turn.progress),
        "dead": turn.dead,
        "state_ttl": turn.state_ttl,
        "take": turn.take,
        "crash_attempts": turn.crash_attempts,
    }


def _begun(request: RequestRecord, now: float) -> dict[str, Any]:
    """Return the head of a request that was not accepted before its turn."""
    head = head_of(request)
    head["created"] = repr(request.created_at or now)
    head["attempt"] = request.attempt or 1
    head["started"] = repr(request.started_at or now)
    return head
