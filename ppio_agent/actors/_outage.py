"""What a store raises that cannot be reached, or fails, for a while."""

from __future__ import annotations

import logging

from ppio_agent.exceptions import (
    ActorError,
    PPIOAgentError,
    ServerBusyError,
    ServerDrainingError,
    ServiceUnavailableError,
)

__all__ = ["OUTAGES", "Outage", "is_outage"]

OUTAGES = (OSError, ServiceUnavailableError)

_REFUSALS = (ActorError, ServerBusyError, ServerDrainingError)

_log = logging.getLogger(__name__)


def is_outage(error: BaseException) -> bool:
    """Whether a store cannot be reached: nothing was refused, and nobody was late."""
    if isinstance(error, PPIOAgentError):
        is_away = isinstance(error, ServiceUnavailableError)
        return is_away and not isinstance(error, _REFUSALS)
    return isinstance(error, OSError)


class Outage:
    """Tells an outage once, however often it is met; and its end.

    Attributes:
        lasts: Whether the store failed when it was asked last, as far as that was noted.

    Thread safety: thread-safe; at worst it is told twice.
    """

    def __init__(self) -> None:
        self.lasts = False

    def met(self, error: BaseException) -> None:
        """Note that the store failed."""
        if not self.lasts:
            self.lasts = True
            _log.warning("the store of actors fails, and is tried again: %s", error)

    def over(self) -> None:
        """Note that the store answers."""
        if self.lasts:
            self.lasts = False
            _log.info("the store of actors answers again")
