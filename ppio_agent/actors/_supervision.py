"""What becomes of actors that crash, and of types whose actors crash again and again.

`judge` decides; `Supervisor` remembers, for one runtime, who crashed when.
"""

from __future__ import annotations

import enum
import math
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from attrs import define, field, frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent.wire.actors import ActorId

from .options import Supervision

__all__ = ["Reaction", "Supervisor", "Verdict", "judge"]

_SPREAD = 0.2
_MOST = 100_000  # actors that are remembered
_T = TypeVar("_T")


class Reaction(enum.Enum):
    """What happens to an actor that crashed."""

    RESUME = "resume"  # the same instance goes on
    RESTART = "restart"  # a new instance, after a wait
    STOP = "stop"  # no instance, and no message, for the time of its quarantine


@frozen
class Verdict:
    """What follows from a crash.

    Attributes:
        reaction: What happens to the actor.
        wait: Seconds before its next message; of `STOP` the quarantine.
        crashes: The instants to remember of it.
    """

    reaction: Reaction
    wait: float
    crashes: tuple[float, ...]


def judge(
    crashes: tuple[float, ...], policy: Supervision, now: float, chance: float
) -> Verdict:
    """Decide about an actor that has crashed just now.

    Args:
        crashes: When it crashed before, the first one first.
        policy: How its type is supervised.
        now: When it crashed.
        chance: A number in [0, 1), by which waits are spread.

    Example:
        >>> judge((), Supervision(backoff=1.0), 7.0, 0.5)
        Verdict(reaction=<Reaction.RESTART: 'restart'>, wait=1.0, crashes=(7.0,))
    """
    recent = (*(at for at in crashes if now - at < policy.window), now)
    if policy.strategy == "stop" or len(recent) > policy.max_restarts:
        return Verdict(Reaction.STOP, policy.quarantine, ())
    if policy.strategy == "resume":
        return Verdict(Reaction.RESUME, 0.0, recent)
    return Verdict(Reaction.RESTART, _backoff(len(recent), policy, chance), recent)


def _backoff(restart: int, policy: Supervision, chance: float) -> float:
    """Return how long to wait before the `restart`-th restart, from 1."""
    try:
        wait = policy.backoff * policy.backoff_factor ** (restart - 1)
    except OverflowError:
        wait = math.inf
    return min(wait, policy.backoff_max) * (1.0 + _SPREAD * (2.0 * chance - 1.0))


@define(eq=False)
class _TypeRecord:
    """The latest stops of a type's actors, and the policy that they were under."""

    policy: Supervision
    stops: deque[float]
    degraded: bool = False

    def idle(self, now: float) -> bool:
        return now - self.stops[-1] >= self.policy.window


@define(eq=False)
class Supervisor:
    """Remembers crashes, who is stopped, and which types are degraded.

    What it knows is of this process. It is forgotten once it plays no part any more:
    crashes after the window, stopped actors after their quarantine.

    Args:
        clock: Gives instants, as `time.monotonic`.
        chance: Gives numbers in [0, 1).

    Attributes:
        stopped: Until when which actors are, or were not long ago; empty, mostly.

    Thread safety: thread-safe. A forked child has forgotten everything.
    """

    _clock: Callable[[], float]
    _chance: Callable[[], float] = random.random
    # Guards all below.
    _lock: threading.Lock = field(init=False)
    _crashes: dict[ActorId, tuple[tuple[float, ...], float]] = field(init=False)
    stopped: dict[ActorId, float] = field(init=False)
    _types: dict[str, _TypeRecord] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._forget_all()
        renew_in_child(self, Supervisor._forget_all)

    def _forget_all(self) -> None:
        self._lock = threading.Lock()
        self._crashes = {}  # with the instant at which they play no part any more
        self.stopped = {}  # until when
        self._types = {}

    def crashed(self, actor_id: ActorId, policy: Supervision) -> Verdict:
        """Note a crash, and return what follows from it."""
        now = self._clock()
        with self._lock:
            before = self._crashes.pop(actor_id, ((), 0.0))[0]
            verdict = judge(before, policy, now, self._chance())
            if verdict.reaction is Reaction.STOP:
                _remember(self.stopped, actor_id, now + verdict.wait)
            else:
                kept = verdict.crashes, now + policy.window
                _remember(self._crashes, actor_id, kept)
        return verdict

    def escalates(self, type_name: str, policy: Supervision) -> int:
        """Note that an actor of a type was stopped.

        Returns:
            How many were, if the type has become degraded by it, else 0.
        """
        now = self._clock()
        with self._lock:
            record = self._types.get(type_name)
            if record is None or record.idle(now):
                record = _TypeRecord(policy, deque(maxlen=policy.escalate_after))
                self._types[type_name] = record
            record.stops.append(now)
            within = sum(now - at < policy.window for at in record.stops)
            if record.degraded or within < policy.escalate_after:
                return 0
            record.degraded = True
            return within

    def stopped_for(self, actor_id: ActorId) -> float:
        """Return for how many seconds an actor stays stopped; 0 if it is not."""
        until = self.stopped.get(actor_id)
        return 0.0 if until is None else max(0.0, until - self._clock())

    def degraded(self) -> list[str]:
        """Return the types that are degraded, sorted."""
        now = self._clock()
        with self._lock:
            names = self._types.items()
            return sorted(name for name, r in names if r.degraded and not r.idle(now))

    def forget(self) -> None:
        """Let go of what plays no part any more."""
        now = self._clock()
        with self._lock:
            for actor_id, (_, until) in list(self._crashes.items()):
                if until <= now:
                    del self._crashes[actor_id]
            for actor_id, until in list(self.stopped.items()):
                if until <= now:
                    del self.stopped[actor_id]
            for name, record in list(self._types.items()):
                if record.idle(now):
                    del self._types[name]


def _remember(table: dict[ActorId, _T], actor_id: ActorId, value: _T) -> None:
    """Set an entry of a table whose size is bounded; the oldest goes."""
    table[actor_id] = value
    if len(table) > _MOST:
        del table[next(iter(table))]
