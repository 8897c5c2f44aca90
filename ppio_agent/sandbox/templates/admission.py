"""How much of what takes long is let in at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ppio_agent.exceptions import RateLimitError, ServerBusyError

__all__ = ["Admission"]


class Admission:
    """Lets in so many at once, and so many of one tenant; refuses others at once.

    Whoever waits has a thread of the control plane, which others need.

    Args:
        what: What it is about, as a plural, for the message.
        most: Most of all tenants together.
        each: Most of one tenant.
        retry_after: Seconds after which to try again.

    Thread safety: thread-safe.
    """

    def __init__(
        self, what: str, *, most: int, each: int, retry_after: float = 1.0
    ) -> None:
        self._what = what
        self._most = most
        self._each = each
        self._retry_after = retry_after
        self._lock = threading.Lock()  # Guards _inside.
        self._inside: Counter[str] = Counter()

    @contextmanager
    def enter(self, tenant: str) -> Iterator[None]:
        """Be inside for a block.

        Raises:
            RateLimitError: The tenant has as many inside as it may have.
            ServerBusyError: There are as many as there may be.
        """
        with self._lock:
            self._check_locked(tenant)
            self._inside[tenant] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[tenant] -= 1
                self._inside += Counter()  # forgets those that have none

    def _check_locked(self, tenant: str) -> None:
        if self._inside[tenant] >= self._each:
            raise RateLimitError(
                f"{self._each} {self._what} of this key are under way already:"
                " deploy again later",
                retry_after=self._retry_after,
            )
        if self._inside.total() >= self._most:
            raise ServerBusyError(
                f"{self._most} {self._what} are under way already: deploy again later",
                retry_after=self._retry_after,
            )
