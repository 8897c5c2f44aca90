"""What envd may hold in memory for all of its callers together."""

from __future__ import annotations

__all__ = ["FAIR_SHARE", "Budget"]

FAIR_SHARE = 64 * 1024
"""What each caller may have held, however much is held for the others."""

_MOST = 32 * 1024 * 1024


class Budget:
    """Counts the bytes of bodies, inputs and answers that somebody is still to take.

    Args:
        most: How many there may be; past that nobody gets more than `FAIR_SHARE`.

    Attributes:
        held: How many there are.

    Thread safety: one thread at a time.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self.held = 0

    def change(self, size: int) -> None:
        """Take note that `size` bytes more are held, or fewer if negative."""
        self.held += size

    @property
    def over(self) -> bool:
        """Whether there are as many as there may be."""
        return self.held > self._most

    def refuses(self, size: int) -> bool:
        """Return whether one caller may not have `size` bytes held."""
        return size > FAIR_SHARE and self.over
