"""Calls of the scripts of an actor, each followed by what the indexes have to say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import define, field

from ppio_agent.wire.json import encode_json

from .redis_link import Clock, Command, RedisLink
from .redis_records import INDEXES, key_of, keys_of
from .redis_scripts import TURN_SCRIPTS
from .redis_sweep_scripts import INDEX_SCRIPTS, SWEEP_SCRIPTS

__all__ = ["SCRIPTS", "ActorCall", "RedisCalls"]

_INDEX_KEYS = list(INDEXES.values())


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_ACTOR_SCRIPTS = {**TURN_SCRIPTS, **SWEEP_SCRIPTS}
_ACTOR_DIGESTS = {name: _digest(text) for name, text in _ACTOR_SCRIPTS.items()}
_INDEX_DIGESTS = {name: _digest(text) for name, text in INDEX_SCRIPTS.items()}

SCRIPTS = {
    _digest(text): text for text in (*_ACTOR_SCRIPTS.values(), *INDEX_SCRIPTS.values())
}
"""All scripts by their digests."""


@define(eq=False)
class ActorCall:
    """One script of an actor that is to be called.

    Args:
        script: Its name.
        actor: Whose, as text.
        facts: What it is told, as JSON; what is None is left out.
        blobs: What travels as it is, from ARGV[2] on.
    """

    script: str
    actor: str
    facts: dict[str, Any] = field(factory=dict)
    blobs: Sequence[bytes | str] = ()

    def command(self) -> Command:
        """Return the command that does it."""
        keys = keys_of(self.actor)
        facts = {key: fact for key, fact in self.facts.items() if fact is not None}
        digest = _ACTOR_DIGESTS[self.script]
        return ("EVALSHA", digest, len(keys), *keys, encode_json(facts), *self.blobs)


class RedisCalls:
    """Calls scripts; of actors, and of the indexes.

    Attributes:
        clock: The server's.
        pending: How many requests wait or run, as of the latest change made here.

    Thread safety: thread-safe.
    """

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self.clock = Clock()
        self.pending = 0

    def begin(self) -> None:
        """Look at clock and size."""
        time, pending = self._link.all([
            ("TIME",),
            ("ZCARD", INDEXES["pending"]),
        ])  # fmt: skip
        self.clock.set(*time)
        self.pending = pending

    def actor(self, call: ActorCall) -> list[Any]:
        """Call a script of an actor and return what it says."""
        answer: list[Any] = self._link.one(*call.command())
        self._follow_up([call], [answer])
        return answer[1:]

    def actors(self, calls: Sequence[ActorCall]) -> list[list[Any]]:
        """Call scripts of several actors in one round trip, in this order."""
        answers = self._link.all([call.command() for call in calls])
        self._follow_up(calls, answers)
        return [answer[1:] for answer in answers]

    def _follow_up(self, calls: Iterable[ActorCall], answers: Iterable[Any]) -> None:
        triples: list[bytes] = []
        dying: list[tuple[str, bytes]] = []
        for call, (hints, *_) in zip(calls, answers, strict=True):
            owner = call.actor.encode() + b"\n"
            for place in range(0, len(hints), 3):
                index, item, score = hints[place : place + 3]
                triples += (index, owner + item, score)
                if index == b"dying" and score:
                    dying.append((call.actor, item))
        if triples:
            self.pending = self.index("apply", *triples)
        if dying:
            self.bury(dying)

    def bury(self, letters: Sequence[tuple[str, bytes]]) -> None:
        """Bring dead letters from their actors to the others.

        They are put there, then taken away here: doing it again does no harm.
        """
        dead = [key_of(actor, "dead") for actor, _ in letters]
        commands = [
            ("HGET", key, id) for key, (_, id) in zip(dead, letters, strict=True)
        ]
        pairs: list[bytes] = []
        for (actor, id), text in zip(letters, self._link.all(commands), strict=True):
            if text is not None:
                pairs += (id, actor.encode() + b"\n" + text)
        if pairs:
            self.index("bury", *pairs)
        self._link.all([
            ("HDEL", key, id) for key, (_, id) in zip(dead, letters, strict=True)
        ])  # fmt: skip
        members = [f"{actor}\n".encode() + id for actor, id in letters]
        self._link.one("ZREM", INDEXES["dying"], *members)

    def room(self, most: int) -> int:
        """Return how many requests wait or run, exactly if they may be `most`."""
        if self.pending >= most:
            self.pending = self._link.one("ZCARD", INDEXES["pending"])
        return self.pending

    def index(self, script: str, *arguments: Any) -> Any:
        """Call a script of the indexes and return what it says."""
        digest = _INDEX_DIGESTS[script]
        return self._link.one(
            "EVALSHA", digest, len(_INDEX_KEYS), *_INDEX_KEYS, *arguments
        )
