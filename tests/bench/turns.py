"""Measuring in turns: A B A B, so that what else the machine does hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field

from .environments import Unavailable
from .report import Side

__all__ = ["Found", "Turns", "in_turns"]

Found = Mapping[tuple[str, str], Side]
"""What was measured, by what and whom."""

# Whoever takes longer for one turn has had its only one, in seconds.
_SLOW = 7.0


@define
class Turns:
    """All that was measured of one of those that took turns.

    Attributes:
        found: The numbers of each turn.
        reason: Why it could not be measured; empty if nothing is wrong.
    """

    found: list[Mapping[str, Any]] = field(factory=list)
    reason: str = ""

    def side(self, name: str, *, capped: bool = False) -> Side:
        """Return one number of all turns.

        Args:
            name: Which number.
            capped: Whether a turn that was given up makes it a lower bound.
        """
        if self.reason:  # part of the turns is no measurement
            return Side(reason=self.reason)
        return Side(
            values=[one[name] for one in self.found if one[name] is not None],
            failures=sum(one.get("failures", 0) for one in self.found),
            capped=capped and any(one.get("capped", False) for one in self.found),
            reason="nothing came",
        )


def in_turns(
    whom: Iterable[str], measure: Callable[[str], Mapping[str, Any]], *, rounds: int
) -> dict[str, Turns]:
    """Measure each of them `rounds` times, one after the other.

    Whoever cannot be measured has a reason instead, and is left out from then on. Slow
    ones have one turn.
    """
    all_turns = {who: Turns() for who in whom}
    going_on = set(all_turns)
    for _ in range(rounds):
        for who, turns in all_turns.items():
            if who not in going_on:
                continue
            began = time.monotonic()
            try:
                turns.found.append(measure(who))
            except Unavailable as error:
                turns.reason = str(error)
            if turns.reason or time.monotonic() - began > _SLOW:
                going_on.discard(who)
    return all_turns
