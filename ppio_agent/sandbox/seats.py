"""How many may do something that holds others up: in all, and of one tenant."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ppio_agent.exceptions import RateLimitError, ServerBusyError

__all__ = ["Seats"]


class Seats:
    """Lets so many in, and refuses the next.

    Args:
        what: What they do, in the plural, for messages.
        most: How many at once.
        most_of_one: Those of one tenant.
        hint: Seconds after which one that was refused may try again.
        cure: What one that was refused is to do, for messages.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        what: str,
        *,
        most: int,
        most_of_one: int,
        hint: float = 1.0,
        cure: str = "try again later",
    ) -> None:
        self._what = what
        self._most = most
        self._most_of_one = most_of_one
        self._hint = hint
        self._cure = cure
        # Guards _taken; notified when one is left.
        self._changed = threading.Condition()
        self._taken: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many are taken."""
        with self._changed:
            return self._taken.total()

    def take(self, tenant: str) -> None:
        """Take one, to be given back by `leave`.

        Raises:
            RateLimitError: The tenant has as many as it may have.
            ServerBusyError: There are as many as there may be.
        """
        with self._changed:
            if self._taken[tenant] >= self._most_of_one:
                raise RateLimitError(
                    f"{self._most_of_one} {self._what} of this key are under way:"
                    f" {self._cure}",
                    retry_after=self._hint,
                )
            if self._taken.total() >= self._most:
                raise ServerBusyError(
                    f"all {self._most} {self._what} of the platform are taken:"
                    f" {self._cure}",
                    retry_after=self._hint,
                )
            self._taken[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Give one back."""
        with self._changed:
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]
            self._changed.notify_all()

    @contextmanager
    def taken(self, tenant: str) -> Iterator[None]:
        """Have one for the time of the block; raises as `take`."""
        self.take(tenant)
        try:
            yield
        finally:
            self.leave(tenant)

    def wait_empty(self, timeout: float) -> None:
        """Wait until none is taken, at most `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken, timeout)
