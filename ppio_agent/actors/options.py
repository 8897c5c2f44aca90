"""How a runtime and its actors are sized, and what happens when they crash. Values."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from ppio_agent.storage.actors.records import Retention
from ppio_agent.storage.actors.settings import duration, flag, kind, number, whole, word

__all__ = ["ActorOptions", "Retention", "RuntimeOptions", "Supervision"]


@frozen(kw_only=True)
class Supervision:
    """What happens when an exception escapes an actor.

    Args:
        strategy: `restart`: a new instance for the next message; `resume`: the same
            one; `stop`: the actor is stopped at the first crash.
        max_restarts: So many within `window`; past it the actor is stopped.
        window: Seconds.
        backoff: Seconds before the first restart within the window; each further one
            waits `backoff_factor` times as long, up to `backoff_max`, ± 20 %.
        backoff_factor: See `backoff`.
        backoff_max: See `backoff`.
        crash_attempts: Turns of one request whose process died under it.
        quarantine: Seconds an actor stays stopped.
        escalate_after: So many stopped actors of a type within `window` make the type
            degraded.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.
    """

    strategy: Literal["restart", "resume", "stop"] = field(
        default="restart", validator=word("restart", "resume", "stop")
    )
    max_restarts: int = field(default=5, validator=whole(0))
    window: float = field(default=60.0, validator=duration())
    backoff: float = field(default=0.2, validator=duration(zero=True))
    backoff_factor: float = field(default=2.0, validator=number(1.0))
    backoff_max: float = field(default=30.0, validator=duration(zero=True))
    crash_attempts: int = field(default=3, validator=whole(1))
    quarantine: float = field(default=60.0, validator=duration(zero=True))
    escalate_after: int = field(default=20, validator=whole(1))


@frozen(kw_only=True)
class ActorOptions:
    """Limits of the actors of one type.

    Args:
        mailbox_limit: Most requests that wait or run for one actor.
        mailbox_policy: What a full mailbox does: `reject`; `block`: so after the
            sender's `block` seconds or its deadline; `drop_oldest`: the oldest that
            waits is REJECTED.
        idle_timeout: Seconds without a message after which an instance is disposed.
        state_ttl: Seconds after the last turn after which the state is deleted; None:
            never.
        reentrancy: What happens when an actor asks one that waits for it: `reject`, or
            `allow` a nested turn.
        supervision: What happens when it crashes.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.
    """

    mailbox_limit: int = field(default=100, validator=whole(1))
    mailbox_policy: Literal["reject", "block", "drop_oldest"] = field(
        default="reject", validator=word("reject", "block", "drop_oldest")
    )
    idle_timeout: float = field(default=900.0, validator=duration())
    state_ttl: float | None = field(default=None, validator=duration(none=True))
    reentrancy: Literal["reject", "allow"] = field(
        default="reject", validator=word("reject", "allow")
    )
    supervision: Supervision = field(factory=Supervision, validator=kind(Supervision))


@frozen(kw_only=True)
class RuntimeOptions:
    """Limits of one runtime.

    Args:
        workers: Most turns at once on its own threads.
        max_pending: Most requests that wait or run, over all actors, and most that are
            on their way to others.
        max_live: Most live instances; beyond, the least recently used idle ones go.
        retention: How long ended requests and dead letters are kept.
        lease_ttl: Seconds after which the actors of a worker that is silent may be
            taken over by others.
        sweep_every: Seconds between two sweeps, ± 20 %.
        debug: Whether failures tell callers the type and text of exceptions.
        actor: What actors have whose type says nothing else.

    Raises:
        ConfigurationError: A value is of the wrong type or out of range.
    """

    workers: int = field(default=128, validator=whole(1))
    max_pending: int = field(default=10_000, validator=whole(1))
    max_live: int = field(default=10_000, validator=whole(1))
    retention: Retention = field(factory=Retention, validator=kind(Retention))
    lease_ttl: float = field(default=30.0, validator=duration())
    sweep_every: float = field(default=1.0, validator=duration())
    debug: bool = field(default=False, validator=flag())
    actor: ActorOptions = field(factory=ActorOptions, validator=kind(ActorOptions))
