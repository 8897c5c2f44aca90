"""When a batch may go on, and with how many sandboxes: what refusals mean. Pure.

A platform that answers 429 says two things. One is "not now": nobody begins anything
until the time it names. If it refused a sandbox, the other is "not so many": as many
as are alive must do, until successes suggest that there is room for one more.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve, field, frozen

from ppio_agent._util.backoff import Backoff

__all__ = ["Admission"]

_SUCCESSES_FOR_ONE_MORE = 10
# Rounds of waiting without a single success, after which waiting seems pointless.
_MAX_ROUNDS = 10
_MAX_RETRY_AFTER = 120.0
_JITTER = 0.1
_backoff = Backoff()


@frozen(kw_only=True)
class Admission:
    """What a batch has learnt of the platform's limits.

    Attributes:
        most: Sandboxes at once that the batch wants; never more are allowed.
        limit: Sandboxes at once that the platform seems to allow.
        live: Sandboxes there are, those being created included.
        paused_until: Monotonic instant before which nothing begins.
        rounds: Pauses since the last success.

    Thread safety: immutable.
    """

    most: int
    limit: int = field()
    live: int = 0
    paused_until: float = 0.0
    rounds: int = 0
    _successes: int = field(default=0, alias="successes")

    @limit.default
    def _no_limit_known(self) -> int:
        return self.most

    @property
    def may_open(self) -> bool:
        """Whether there may be one more sandbox."""
        return self.live < self.limit

    def pause(self, now: float) -> float:
        """Return the seconds for which nothing begins; 0 if it may."""
        return max(0.0, self.paused_until - now)

    def opened(self) -> Admission:
        """Count a sandbox that is about to be created."""
        return evolve(self, live=self.live + 1)

    def ended(self) -> Admission:
        """Count a sandbox off that is gone, or was never there."""
        return evolve(self, live=self.live - 1)

    def succeeded(self) -> Admission:
        """Note an item that went well."""
        if self.limit == self.most:
            return evolve(self, rounds=0) if self.rounds else self
        successes = self._successes + 1
        if successes < _SUCCESSES_FOR_ONE_MORE:
            return evolve(self, rounds=0, successes=successes)
        return evolve(self, rounds=0, successes=0, limit=self.limit + 1)

    def refused(
        self,
        *,
        creating: bool,
        retry_after: float | None,
        now: float,
        random: Callable[[], float],
    ) -> Admission | None:
        """Note a 429; None means that it is no use to wait.

        Args:
            creating: Whether a sandbox was refused, which has been counted off.
            retry_after: Seconds that the platform asks to wait, if it does.
            now: Monotonic instant.
            random: Gives a float in [0, 1).
        """
        learnt = self
        if creating:
            learnt = evolve(self, limit=max(1, min(self.live, self.limit)), successes=0)
        if retry_after is not None:
            if retry_after > _MAX_RETRY_AFTER:
                return None
            delay = retry_after * (1 + _JITTER * random())
        elif creating and self.live:
            return learnt  # one of those alive makes room when it ends
        else:
            delay = _backoff.delay(self.rounds, random)
        if self.pause(now):
            # Refused in the round that is being waited out already.
            return evolve(learnt, paused_until=max(self.paused_until, now + delay))
        if self.rounds >= _MAX_ROUNDS:
            return None
        return evolve(learnt, rounds=self.rounds + 1, paused_until=now + delay)
