"""A store of nonces that does not answer: how long it is waited for, and how often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ppio_agent.wire.signing import nonces_unavailable

__all__ = ["PATIENCE", "Outage"]

PATIENCE = 1.0
"""Seconds that a request waits: the threads that answer pings authenticate, too."""

_REST = 1.0  # seconds after a failure in which nothing is asked, thus nobody waits


class Outage:
    """Refuses requests whose nonces a store cannot tell, the next ones at once.

    Args:
        errors: What the store raises when it cannot tell.
        clock: A clock that never goes back.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        *errors: type[Exception],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._errors = errors
        self._clock = clock
        self._resting_until = 0.0

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run the block, which asks the store.

        Raises:
            ServiceUnavailableError: The store failed, or did within the last second,
                in which case the block did not run.
        """
        if self._clock() < self._resting_until:
            raise nonces_unavailable()
        try:
            yield
        except self._errors as error:
            self._resting_until = self._clock() + _REST
            raise nonces_unavailable() from error
