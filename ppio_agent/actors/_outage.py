"""What a store raises that cannot be reached, or fails, for a while."""

from __future__ import annotations

import logging

from ppio_agent.exceptions import ServiceUnavailableError

__all__ = ["OUTAGES", "Outage"]

OUTAGES = (OSError, ServiceUnavailableError)

_log = logging.getLogger(__name__)


class Outage:
    """Tells an outage once, however often it is met; and its end.

    Thread safety: thread-safe; at worst it is told twice.
    """

    def __init__(self) -> None:
        self._lasts = False

    def met(self, error: Exception) -> None:
        """Note that the store failed."""
        if not self._lasts:
            self._lasts = True
            _log.warning("the store of actors fails, and is tried again: %s", error)

    def over(self) -> None:
        """Note that the store answers."""
        if self._lasts:
            self._lasts = False
            _log.info("the store of actors answers again")
