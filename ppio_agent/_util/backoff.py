"""How long to wait before a further attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Backoff"]


class Backoff:
    """Exponential backoff with full jitter.

    The delay before attempt n+1 is uniform in ``[0, min(cap, base * factor**n)]``, so
    that clients which failed together do not come back together.

    Source: M. Brooker, "Exponential Backoff And Jitter", 2015.

    Args:
        base: Upper bound of the first delay, in seconds.
        factor: Growth of the bound from one attempt to the next.
        cap: Largest bound, in seconds.
    """

    __slots__ = ("base", "cap", "factor")

    def __init__(
        self, *, base: float = 0.5, factor: float = 2.0, cap: float = 8.0
    ) -> None:
        self.base = base
        self.factor = factor
        self.cap = cap

    def bound(self, attempt: int) -> float:
        """Return the longest delay after failed attempt `attempt` (the first is 0)."""
        try:
            return min(self.cap, self.base * self.factor**attempt)
        except OverflowError:
            return self.cap

    def delay(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the delay in seconds; `random` gives a float in [0, 1)."""
        return self.bound(attempt) * random()
