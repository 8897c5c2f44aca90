"""Actors in a Redis server, shared by any number of machines. Needs the extra `redis`.

Whatever an actor has is kept under one hash tag and changed by one script at a time; see
`redis_scripts`. What was accepted lasts as long as the server's memory does, or its
append-only file. The client speaks to one server, not to the several of a cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ppio_agent.exceptions import ConfigurationError, LeaseLostError
from ppio_agent.wire.actors import ActorId

from .port import IActorStore
from .records import (
    Acceptance,
    Accepted,
    ActorSummary,
    Cancellation,
    Cancelled,
    CommitOutcome,
    Committed,
    DeadLetter,
    Hint,
    Lease,
    Limits,
    Moved,
    ProgressItem,
    RemoveKey,
    RequestRecord,
    Retention,
    SetValue,
    StateRead,
    Subscription,
    Taken,
    TurnCommit,
    WriteResult,
)
from .redis_calls import SCRIPTS, ActorCall, RedisCalls
from .redis_link import RedisHints, RedisLink
from .redis_records import (
    INDEXES,
    Blobs,
    dead_mark,
    head_of,
    key_of,
    parse_letter,
    parse_record,
    turn_facts,
)
from .redis_sweeps import RedisSweeps

__all__ = ["RedisActorStore"]

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_SCHEMA_KEY = "ppio:{actors}:schema"
_AFTER_ALL = b"\xff"  # a byte that no text in UTF-8 has


class RedisActorStore(IActorStore):
    """Keeps actors in the server at `url`, from Redis 6.2 on.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` with TLS, or
            ``unix://<path>``.

    Raises:
        ConfigurationError: The extra `redis` is missing, the URL cannot be used, or a
            newer version of this package wrote there.
        ServiceUnavailableError: The server does not answer.

    Thread safety: thread-safe. A forked child must not use its parent's.

    Blocking: each method waits for 1 to 3 answers of the server, 5 s each at most.
    """

    durable = True
    shared = True

    def __init__(self, url: str) -> None:
        self._link = RedisLink(url, SCRIPTS)
        self._calls = RedisCalls(self._link)
        self._sweeps = RedisSweeps(self._link, self._calls)
        self._hints = RedisHints(self._link, INDEXES["pending"])
        try:
            self._check()
            self._calls.begin()
        except BaseException:
            self._link.close()
            raise

    def _check(self) -> None:
        self._link.one("SETNX", _SCHEMA_KEY, _SCHEMA_VERSION)
        found = int(self._link.one("GET", _SCHEMA_KEY))
        if found > _SCHEMA_VERSION:
            raise ConfigurationError(
                f"the Redis store has schema {found} of actors, this version knows"
                f" {_SCHEMA_VERSION}: upgrade ppio-agent, or use another database"
            )
        facts = self._link.one("INFO")
        losses = []
        if not facts.get("aof_enabled"):
            losses.append("when it ends (set appendonly yes)")
        if facts.get("maxmemory_policy") != "noeviction" and facts.get("maxmemory"):
            losses.append("when its memory is full (set maxmemory-policy noeviction)")
        if losses:
            _log.warning(
                "the Redis server loses actors and requests %s", " and ".join(losses)
            )

    def now(self) -> float:
        """Return the time by the server's clock; quick, no round trip."""
        return self._calls.clock.now()

    def _call(
        self,
        script: str,
        actor_id: ActorId,
        *blobs: bytes | str,
        **facts: Any,
    ) -> list[Any]:
        return self._calls.actor(ActorCall(script, str(actor_id), facts, blobs))

    # State.

    def read(
        self,
        actor_id: ActorId,
        keys: Sequence[str] | None = None,
        *,
        prefix: str = "",
        after: str | None = None,
        limit: int = 1000,
    ) -> StateRead:
        """Read a part of the state; see `IActorStore.read`."""
        if keys is not None:
            keys = sorted({
                key
                for key in keys
                if key.startswith(prefix) and (after is None or key > after)
            })  # fmt: skip
        # Redis orders bytes, which in UTF-8 is the order of code points.
        first = b"[" + prefix.encode() if prefix else b"-"
        if after is not None and after >= prefix:
            first = b"(" + after.encode()
        last = b"(" + prefix.encode() + _AFTER_ALL if prefix else b"+"
        etag, rows = self._call(
            "read",
            actor_id,
            *(first, last),
            keys=keys,
            limit=limit + 1,
        )
        found = [(key.decode(), value) for key, value in rows if value is not None]
        more = found[limit - 1][0] if len(found) > limit else None
        return StateRead(etag.decode(), dict(found[:limit]), more)

    def write(
        self,
        actor_id: ActorId,
        ops: Sequence[SetValue | RemoveKey],
        etag: str | None = None,
    ) -> WriteResult:
        """Write a batch, from outside a turn; see `IActorStore.write`."""
        blobs = Blobs()
        state = blobs.state(ops)
        outcome, now = self._call(
            "write", actor_id, *blobs.texts, state=state, etag=etag
        )
        return WriteResult(now.decode(), outcome == b"written")

    # Requests.

    def accept(self, request: RequestRecord, limits: Limits) -> Accepted:
        """Put a request behind the others of its actor; see `IActorStore.accept`."""
        outcome, known, ended, running = self._call(
            "accept",
            request.actor_id,
            request.params,
            request=head_of(request),
            on_busy=limits.on_busy,
            drop_oldest=limits.drop_oldest,
            mailbox=limits.mailbox,
            pending=self._calls.room(limits.pending),
            most=limits.pending,
        )
        actor_id = request.actor_id
        return Accepted(
            Acceptance(outcome.decode()),
            parse_record(actor_id, *known) if known else None,
            [parse_record(actor_id, *record) for record in ended],
            running.decode() or None,
        )

    def get_request(self, actor_id: ActorId, message_id: str) -> RequestRecord | None:
        """Return a request, or None; see `IActorStore.get_request`."""
        (record,) = self._call("get", actor_id, id=message_id)
        return parse_record(actor_id, *record) if record else None

    def cancel(
        self,
        actor_id: ActorId,
        message_id: str,
        how: Cancellation = Cancellation.CANCEL,
    ) -> Cancelled:
        """End a request that waits, or note how; see `IActorStore.cancel`."""
        (outcome,) = self._call("cancel", actor_id, id=message_id, how=how.value)
        return Cancelled(outcome.decode())

    def read_progress(
        self, actor_id: ActorId, message_id: str, after: int, limit: int
    ) -> list[ProgressItem]:
        """Return steps of a log; see `IActorStore.read_progress`."""
        (steps,) = self._call(
            "steps", actor_id, id=message_id, after=after, limit=limit
        )
        return [ProgressItem(position, data) for position, data in steps]

    # Turns.

    def claim(self, worker: str, actor_id: ActorId) -> Lease | None:
        """Take the lease of an actor; see `IActorStore.claim`."""
        outcome, holder, token = self._call("claim", actor_id, worker=worker)
        if outcome == b"held":
            if self._sweeps.lives(holder.decode()):
                return None
            # With its token: somebody else may be quicker.
            outcome, holder, token = self._call(
                "claim", actor_id, worker=worker, dead=token.decode()
            )
            if outcome == b"held":
                return None
        if holder and holder != worker.encode():
            self.unwait([actor_id])  # the turn that waited has ended with its worker
        return Lease(actor_id, worker, token)

    def _leased(
        self, script: str, lease: Lease, *blobs: bytes | str, **facts: Any
    ) -> list[Any]:
        outcome, *answer = self._call(
            script,
            lease.actor_id,
            *blobs,
            worker=lease.worker,
            token=str(lease.token),
            **facts,
        )
        if outcome == b"lost":
            raise LeaseLostError(
                f"worker {lease.worker} has no lease of actor {lease.actor_id} any more:"
                " claim it again",
                actor_id=str(lease.actor_id),
            )
        return [outcome, *answer]

    def release(self, lease: Lease) -> None:
        """Give a lease back; see `IActorStore.release`."""
        token = str(lease.token)
        self._call("release", lease.actor_id, worker=lease.worker, token=token)

    def take(self, lease: Lease, *, crash_attempts: int = 3) -> Taken:
        """Begin a turn of the oldest request; see `IActorStore.take`."""
        _, begun = self._leased("take", lease, crash_attempts=crash_attempts)
        return _taken(lease.actor_id, *begun)

    def append_progress(
        self, lease: Lease, message_id: str, items: Sequence[ProgressItem]
    ) -> None:
        """Append steps to a log; see `IActorStore.append_progress`."""
        blobs = Blobs()
        progress = blobs.progress(items)
        self._leased("append", lease, *blobs.texts, id=message_id, progress=progress)

    def commit(self, lease: Lease, turn: TurnCommit) -> Committed:
        """End a request with all that its turn leaves; see `IActorStore.commit`."""
        blobs = Blobs(turn.data)
        facts = turn_facts(turn, blobs, self.now())
        outcome, etag, record, begun = self._leased(
            "commit", lease, *blobs.texts, **facts
        )
        return Committed(
            CommitOutcome(outcome.decode()),
            etag.decode(),
            parse_record(lease.actor_id, *record) if record else None,
            _taken(lease.actor_id, *begun) if begun else None,
        )

    def wait(self, edges: Sequence[tuple[ActorId, ActorId]]) -> list[ActorId]:
        """Note who waits for whom; see `IActorStore.wait`."""
        words = [str(actor_id) for edge in edges for actor_id in edge]
        way = self._calls.index("wait", *words) if words else []
        return [ActorId.parse(actor.decode()) for actor in way]

    def unwait(self, actor_ids: Sequence[ActorId]) -> None:
        """Forget for whom these wait."""
        if actor_ids:
            self._link.one("HDEL", INDEXES["waits"], *map(str, actor_ids))

    # Workers and time.

    def heartbeat(self, worker: str, ttl: float) -> bool:
        """Keep all leases of a worker; see `IActorStore.heartbeat`."""
        in_time, *time = self._calls.index("beat", worker, repr(float(ttl)))
        self._calls.clock.set(*time)
        return bool(in_time)

    def retire(self, worker: str) -> None:
        """Give back all leases of a worker, and forget it."""
        self._sweeps.retire(worker)

    def ready(self, worker: str, limit: int) -> list[ActorId]:
        """Return actors whose turns the worker may run; see `IActorStore.ready`."""
        return self._sweeps.ready(worker, limit)

    def cancellations(self, worker: str) -> list[tuple[ActorId, str, Cancellation]]:
        """Return what was noted for turns of a worker."""
        return self._sweeps.cancellations(worker)

    def relay(self, now: float, limit: int) -> Moved:
        """Move outgoing requests into mailboxes; see `IActorStore.relay`."""
        return self._sweeps.relay(now, limit)

    def fire_reminders(self, now: float, limit: int) -> Moved:
        """Make requests of reminders; see `IActorStore.fire_reminders`."""
        return self._sweeps.fire_reminders(now, limit)

    def expire(self, now: float, limit: int) -> list[RequestRecord]:
        """End requests whose deadline has passed; see `IActorStore.expire`."""
        return self._sweeps.expire(now, limit)

    def purge(self, now: float, limit: int, retention: Retention) -> int:
        """Forget what need not be kept; see `IActorStore.purge`."""
        return self._sweeps.purge(now, limit, retention)

    # For people.

    def dead_letters(self, limit: int, after: str | None = None) -> list[DeadLetter]:
        """Return dead letters, the oldest first; see `IActorStore.dead_letters`."""
        start = "-" if after is None else f"({after}"
        texts = self._calls.index("letters", start, limit)
        return [parse_letter(text) for text in texts]

    def dead_letter(self, id: str) -> DeadLetter | None:
        """Return a dead letter, or None."""
        text = self._link.one("HGET", INDEXES["letters"], id)
        return None if text is None else parse_letter(text)

    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""
        return bool(self._calls.index("discard", id))

    def inspect(self, actor_id: ActorId) -> ActorSummary | None:
        """Return what is known of an actor; see `IActorStore.inspect`."""
        known, etag, worker, token, owner, last_turn, count, running, reminders = (
            self._call("inspect", actor_id)
        )
        if not known:
            return None
        lives = worker is not None and self._sweeps.lives(worker.decode())
        return ActorSummary(
            actor_id,
            etag.decode(),
            worker.decode() if lives else None,
            int(token),
            None if owner is None else owner.decode(),
            queued=count - bool(running),
            running=running.decode() or None,
            last_turn=float(last_turn) if last_turn else None,
            reminders=tuple(name.decode() for name in reminders),
        )

    def own(self, actor_id: ActorId, owner: str) -> str:
        """Make somebody the owner of an actor that has none; see `IActorStore.own`."""
        (found,) = self._call("own", actor_id, owner=owner)
        return str(found.decode())

    def owner(self, actor_id: ActorId) -> str | None:
        """Return the owner of an actor; None if it has none."""
        found = self._link.one("HGET", key_of(str(actor_id), "actor"), "owner")
        return None if found is None else found.decode()

    def delete(self, lease: Lease) -> bool:
        """Remove an actor with all it has; see `IActorStore.delete`."""
        _, had = self._leased("delete", lease)
        letters = self._calls.index("discard_of", dead_mark(str(lease.actor_id)))
        return bool(had or letters)

    def pending(self) -> int:
        """Return how many requests wait or run."""
        return int(self._link.one("ZCARD", INDEXES["pending"]))

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:
        """Tell of what others do to this store; see `IActorStore.subscribe`."""
        return self._hints.subscribe(callback)

    def close(self) -> None:
        """Close the connections and end the thread of hints. Idempotent."""
        self._hints.close()
        self._link.close()


def _taken(actor_id: ActorId, ended: list[Any], begun: list[Any]) -> Taken:
    return Taken(
        parse_record(actor_id, *begun) if begun else None,
        [parse_record(actor_id, *record) for record in ended],
    )
