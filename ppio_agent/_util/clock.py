"""Time: the one deadline that travels through a call, and aware wall-clock instants."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone

__all__ = ["Deadline", "utc_now"]


def utc_now() -> datetime:
    """Return the present instant as an aware UTC datetime."""
    return datetime.now(timezone.utc)


class Deadline:
    """An instant of a monotonic clock by which something has to be over, or none.

    Written without attrs, since `_util` is standard library only. Immutable by
    convention and safe to share between threads.

    Example:
        >>> Deadline.after(None).left() is None
        True
        >>> Deadline.after(0.0).expired
        True
    """

    __slots__ = ("_clock", "instant")

    def __init__(
        self,
        instant: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instant = instant
        self._clock = clock

    @classmethod
    def after(
        cls, seconds: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> Deadline:
        """Return the deadline `seconds` from now; None means no limit."""
        return cls(None if seconds is None else clock() + seconds, clock=clock)

    @classmethod
    def at(
        cls, instant: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> Deadline:
        """Return the deadline at an instant of `clock`; None means no limit."""
        return cls(instant, clock=clock)

    def left(self) -> float | None:
        """Return the seconds left, never negative; None means no limit."""
        if self.instant is None:
            return None
        return max(0.0, self.instant - self._clock())

    @property
    def expired(self) -> bool:
        """Whether the instant has passed; never so without a limit."""
        return self.instant is not None and self._clock() >= self.instant

    def bound(self, timeout: float | None) -> float | None:
        """Return the smaller of `timeout` and the time left; None means no limit."""
        left = self.left()
        if left is None:
            return timeout
        return left if timeout is None else min(left, timeout)

    def earlier(self, seconds: float | None) -> Deadline:
        """Return whichever comes first: this one, or `seconds` from now."""
        if seconds is None:
            return self
        other = self._clock() + seconds
        if self.instant is not None and self.instant <= other:
            return self
        return Deadline(other, clock=self._clock)

    def __repr__(self) -> str:
        left = self.left()
        return "Deadline(none)" if left is None else f"Deadline({left:.3f} s left)"
