"""Turns that have made no progress for very long: told once, and counted.

No turn is ended for that: its code may be at work. Without a deadline nobody else would
see it, and its actor takes no other request.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ._turn import Turn

__all__ = ["Stuck"]

_log = logging.getLogger(__name__)

_LONG = 600.0


class Stuck:
    """Finds the turns of one runtime that are stuck.

    Attributes:
        count: How many are.

    Thread safety: one thread at a time looks; `count` is for any.
    """

    def __init__(self) -> None:
        self.count = 0
        # By turn: its last step, when that was seen first, and whether it was told.
        self._seen: dict[Turn, tuple[int, float, bool]] = {}

    def look(self, turns: Iterable[Turn], now: float) -> None:
        """Look at all turns that run.

        Args:
            turns: They.
            now: The instant, by `time.monotonic`.
        """
        seen = {}
        for turn in turns:
            position, since, told = self._seen.get(turn, (-1, now, False))
            if position != turn.position:
                since, told = now, False
            if not told and now - since >= _LONG:
                told = True
                _log.warning(
                    "actor %s has made no progress for %.0f s in request %s",
                    turn.cell.actor_id,
                    now - since,
                    turn.record.message_id,
                )
            seen[turn] = (turn.position, since, told)
        self._seen = seen
        self.count = sum(told for _, _, told in seen.values())
