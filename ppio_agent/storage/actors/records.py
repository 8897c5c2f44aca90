"""What passes between a runtime and a store of actors: requests, turns, leases.

Instants are seconds since 1970 by the store's own clock. Values are JSON texts in
UTF-8, made and read by the runtime; a store never looks into them.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from attrs import define, field, frozen

from ppio_agent.wire.actors import ActorId, RequestStatus

from .settings import duration, whole

__all__ = [
    "Acceptance",
    "Accepted",
    "ActorSummary",
    "CancelReminder",
    "Cancellation",
    "Cancelled",
    "CommitOutcome",
    "Committed",
    "DeadLetter",
    "Hint",
    "HintKind",
    "Lease",
    "Limits",
    "Outgoing",
    "ProgressItem",
    "Reminder",
    "RemoveKey",
    "RequestRecord",
    "Retention",
    "SetReminder",
    "SetValue",
    "StateRead",
    "Subscription",
    "Taken",
    "TurnCommit",
    "WriteResult",
]


# State.


@frozen
class SetValue:
    """Write one key; `value` is JSON."""

    key: str
    value: bytes = field(repr=False)


@frozen
class RemoveKey:
    """Remove one key; one that does not exist is no error."""

    key: str


@frozen
class StateRead:
    """What was read of an actor's state.

    Attributes:
        etag: The version of the whole state; `"0"` before the first write.
        values: JSON by key, in the order of the keys.
        next_key: Where to go on (`after`); None if nothing is left.
    """

    etag: str
    values: dict[str, bytes] = field(repr=False)
    next_key: str | None = None


@frozen
class WriteResult:
    """What became of a write: the etag that is in force now, and whether it was made."""

    etag: str
    success: bool


# Requests.


class Cancellation(enum.Enum):
    """Why a running turn is to end, and so what is kept of it.

    `CANCEL`: its caller asked; nothing is kept. `INTERRUPT`: another request came; what
    the turn itself says is kept (`TurnCommit.keep`). `ROLLBACK`: so, but nothing.
    """

    CANCEL = "cancel"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


@define(eq=False, weakref_slot=False)
class RequestRecord:
    """A request, and what became of it.

    What a store returned is not changed later; what it was given is its own from then
    on.

    Attributes:
        actor_id: Whose it is.
        message_id: Its id, unique for the actor.
        method: What is asked for.
        params: JSON of the parameters; empty once it has ended.
        digest: SHA-256 of canonical method and parameters; empty if the runtime made
            the id, which then cannot come twice by mistake.
        sender: The actor that asked, as text; "" for none.
        chain: The actors that wait for it, as texts, the first one first.
        traceparent: The sender's span; "" for none.
        created_at: When it was accepted.
        deadline: When it has to have ended; None: no limit.
        status: Where it is.
        attempt: How many turns were begun for it.
        started_at: When the latest of them began; None before.
        finished_at: When it ended; None before.
        data: JSON of the result or the failure; empty before the end, and if it is no
            longer kept (`evicted`).
        evicted: Whether the result was dropped to save space.
        position: How many steps its log has.
        cancel: What was asked for while its turn ran.
    """

    actor_id: ActorId
    message_id: str
    method: str = ""
    params: bytes = field(default=b"null", repr=False)
    digest: bytes = field(default=b"", repr=False)
    sender: str = ""
    chain: tuple[str, ...] = ()
    traceparent: str = ""
    created_at: float = 0.0
    deadline: float | None = None
    status: RequestStatus = RequestStatus.PENDING
    attempt: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    data: bytes = field(default=b"", repr=False)
    evicted: bool = False
    position: int = 0
    cancel: Cancellation | None = None


@frozen
class Limits:
    """What an actor takes, for `IActorStore.accept`.

    Args:
        mailbox: Most requests that wait or run for the actor.
        drop_oldest: Whether the oldest that waits makes room, instead of a refusal.
        pending: Most requests that wait or run for all actors; stores that several
            processes share may count with a delay of a second.
        on_busy: `enqueue`, `reject`, `interrupt` or `rollback`: what happens when the
            actor has another pending request.
    """

    mailbox: int = 100
    drop_oldest: bool = False
    pending: int = 10_000
    on_busy: str = "enqueue"


class Acceptance(enum.Enum):
    """What became of a request that was sent."""

    NEW = "new"  # accepted
    DUPLICATE = "duplicate"  # known by its id
    CONFLICT = "conflict"  # its id is known, with other content
    FULL = "full"  # the mailbox of the actor
    OVERLOADED = "overloaded"  # there are as many pending ones as may be
    BUSY = "busy"  # and the sender wanted to be refused then


@define(eq=False)
class Accepted:
    """Answer of `IActorStore.accept`.

    Attributes:
        outcome: What became of it.
        record: The one that is known (`DUPLICATE`, `CONFLICT`), or the pending one
            that is in the way (`BUSY`).
        ended: Others that were ended for it: dropped or superseded.
        running: Id of the one whose turn is to end for it (`interrupt`, `rollback`).
    """

    outcome: Acceptance
    record: RequestRecord | None = None
    ended: Sequence[RequestRecord] = ()
    running: str | None = None


class Cancelled(enum.Enum):
    """What became of a cancel; the values are what `ActorResponseHandle.cancel` says."""

    CANCELLED = "cancelled"  # it waited, and has ended
    REQUESTED = "requested"  # its turn runs, and is told
    TERMINAL = "terminal"  # it had ended before
    NOT_FOUND = "not_found"


@frozen
class ProgressItem:
    """One step of a request's log: its number from 1, and JSON."""

    position: int
    data: bytes = field(repr=False)


@frozen
class DeadLetter:
    """A request that could not be done, kept for a person to look at.

    Attributes:
        id: Its own id; later ones are greater.
        request: The request as it ended, but with its `params`.
        reason: The code it ended with.
        at: When, in seconds since 1970.
        attempts: How many turns were begun for it.
    """

    id: str
    request: RequestRecord
    reason: str
    at: float
    attempts: int


# Turns.


@define(eq=False, weakref_slot=False)
class Lease:
    """The right to run turns of one actor.

    Attributes:
        actor_id: The actor.
        worker: Who has it.
        token: Raised by each claim: an older one is refused.
    """

    actor_id: ActorId
    worker: str
    token: int


@define(eq=False)
class Taken:
    """The next request whose turn begins.

    Attributes:
        record: The oldest pending one, with `attempt` and `started_at` of this turn;
            None if there is none.
        ended: Those in front of it that were not run, see `admission.end_unbegun`:
            owners died under them too often (FAILED `crashed`, a dead letter), their
            deadline has passed, or they were cancelled when their owner died.
    """

    record: RequestRecord | None = None
    ended: Sequence[RequestRecord] = ()


@frozen
class Outgoing:
    """A request to another actor that leaves with the commit.

    Args:
        request: The request; it is accepted, and so created, when it gets there.
        not_before: When it may leave; 0: at once.
        mailbox: Most requests that wait or run for the actor that it goes to.
    """

    request: RequestRecord
    not_before: float = 0.0
    mailbox: int = 100


@frozen
class SetReminder:
    """Wake the actor at `due` by a request; replaces one of the same name.

    Args:
        name: Its name, unique for the actor.
        due: When it is due first.
        method: Method of the requests.
        params: JSON of the parameters given to it.
        period: Seconds between two of them; None: once.
        count: How many at most; None: no limit.
    """

    name: str
    due: float
    method: str
    params: bytes = field(default=b"null", repr=False)
    period: float | None = None
    count: int | None = None


@frozen
class CancelReminder:
    """Forget a reminder; one that does not exist is no error."""

    name: str


Reminder = SetReminder | CancelReminder


@define(eq=False)
class TurnCommit:
    """All that a turn leaves; it is kept as a whole or not at all.

    Attributes:
        message_id: Of the request.
        status: COMPLETED, FAILED, CANCELLED or EXPIRED.
        data: JSON of the result or the failure.
        request: The request itself if it was not accepted before.
        etag: The state's when the turn read it; None if it read nothing.
        state: Writes, in their order.
        keep: Whether `state` is kept although the turn was interrupted.
        outbox: Requests to others.
        reminders: Changes of reminders.
        progress: Steps that were not appended before.
        dead: Reason for which it becomes a dead letter; None: it does not.
        state_ttl: Seconds after which the state is deleted unless another turn
            commits; None: never.
        take: Whether the next request is begun with it.
        crash_attempts: See `IActorStore.take`.
    """

    message_id: str
    status: RequestStatus
    data: bytes = b"null"
    request: RequestRecord | None = None
    etag: str | None = None
    state: Sequence[SetValue | RemoveKey] = ()
    keep: bool = False
    outbox: Sequence[Outgoing] = ()
    reminders: Sequence[Reminder] = ()
    progress: Sequence[ProgressItem] = ()
    dead: str | None = None
    state_ttl: float | None = None
    take: bool = True
    crash_attempts: int = 3


@define(eq=False)
class Moved:
    """Answer of `IActorStore.relay` and `IActorStore.fire_reminders`.

    Attributes:
        actors: Those that got some.
        more: Whether more may be due: only a page was looked at.
        left: How many requests are on their way still, due or not; of reminders 0.
    """

    actors: Sequence[ActorId]
    more: bool = False
    left: int = 0


class CommitOutcome(enum.Enum):
    """What became of a commit."""

    COMMITTED = "committed"
    CANCELLED = "cancelled"  # by a cancel that came first: nothing else was kept
    ENDED = "ended"  # it had ended before (expired, stopped): nothing was kept
    CONFLICT = "conflict"  # the etag is another: nothing was done, and none begun


@define(eq=False)
class Committed:
    """Answer of `IActorStore.commit`.

    Attributes:
        outcome: What became of it.
        etag: The one that is in force now.
        record: The request as it ended; of `COMMITTED` None: it is as was said.
        taken: The next one, if it was asked for and this is no `CONFLICT`.
    """

    outcome: CommitOutcome
    etag: str
    record: RequestRecord | None = None
    taken: Taken | None = None


@frozen
class ActorSummary:
    """What a store knows of an actor.

    Attributes:
        actor_id: The actor.
        etag: The state's version.
        worker: Who has the lease; None for nobody.
        token: Of the latest lease.
        owner: Who began it, see `IActorStore.own`; None for nobody.
        queued: How many requests wait.
        running: Id of the request whose turn was begun; None: none.
        last_turn: When the latest turn was committed; None: none was.
        reminders: Names of those that are set.
    """

    actor_id: ActorId
    etag: str
    worker: str | None
    token: int
    owner: str | None
    queued: int
    running: str | None
    last_turn: float | None
    reminders: tuple[str, ...] = ()


@frozen(kw_only=True)
class Retention:
    """How long what has ended is kept, for `IActorStore.purge`.

    Args:
        seconds: Ended requests, with their logs.
        payload_bytes: Most bytes of their results and logs; past it those of the oldest
            go (`evicted`), while status and digest stay.
        ids: Most ended requests.
        dead_seconds: Dead letters.
        dead_letters: Most dead letters; the oldest go.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.
    """

    seconds: float = field(default=86_400.0, validator=duration(zero=True))
    payload_bytes: int = field(default=64 * 1024 * 1024, validator=whole(0))
    ids: int = field(default=100_000, validator=whole(0))
    dead_seconds: float = field(default=7 * 86_400.0, validator=duration(zero=True))
    dead_letters: int = field(default=10_000, validator=whole(0))


class HintKind(enum.Enum):
    """What a hint is about."""

    READY = "ready"  # the actor has a request that waits
    ENDED = "ended"
    PROGRESS = "progress"
    CANCEL = "cancel"  # the turn of the request is to end


@frozen
class Hint:
    """Something may have happened; it may be told twice, or not at all."""

    kind: HintKind
    actor_id: ActorId
    message_id: str = ""


class Subscription(Protocol):
    """What ends a subscription."""

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
