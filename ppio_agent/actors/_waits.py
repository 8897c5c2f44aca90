"""Turns that wait for other actors, and whether any of them waits for ever.

A turn blocks its actor. So before its thread waits for a request it notes in the store
for whom, with all turns below it on the thread; whoever closes a circle is told, and
waits for nothing. All waits of turns come by here, whichever way they asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ppio_agent.exceptions import ActorDeadlockError
from ppio_agent.wire.actors import ActorId

from ._call import Call
from ._outage import OUTAGES
from ._waiting import look
from .telemetry import Count

if TYPE_CHECKING:
    from ._engine import Engine
    from ._turn import Turn

__all__ = ["Waits", "deadlock"]

# Another process may have been told that its wait is over and not have noted it yet: it
# looks at least once a second.
_DOUBT, _LOOK_EVERY = 2.5, 0.25
_AGAIN = 0.25  # seconds


def deadlock(actors: list[ActorId], message_id: str) -> ActorDeadlockError:
    """Return the error for a circle of actors, each waiting for the next."""
    circle = " -> ".join(str(actor_id) for actor_id in [*actors, actors[0]])
    return ActorDeadlockError(
        f"actors would wait for each other: {circle}; use tell where no answer is"
        " needed, or let the first one be called again (reentrancy)",
        actor_id=str(actors[0]),
        message_id=message_id,
    )


class Waits:
    """The waits of the turns of one runtime.

    Thread safety: thread-safe; each step on the table is one of the interpreter's own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # What each actor waits for in this process, directly or by those it called.
        self._calls: dict[ActorId, Call] = {}

    def __contains__(self, actor_id: object) -> bool:
        """Whether a turn of an actor waits, itself or in those that it called."""
        return actor_id in self._calls

    def wait(
        self, turn: Turn, call: Call, wait: Callable[[float | None], bool]
    ) -> bool:
        """Wait for a request on behalf of a turn.

        Args:
            turn: Whose thread this is.
            call: The request.
            wait: Waits for it, for so many seconds or as long as it may; returns
                whether it has ended.

        Returns:
            Whether it has ended; else it was waited for long enough, or the end of the
            turn was asked for.

        Raises:
            ActorDeadlockError: It would never end.
        """
        pairs = _pairs(turn, call.actor_id)
        before = {asker: self._calls.get(asker) for asker, _ in pairs}
        self._calls.update(dict.fromkeys(before, call))
        stir = partial(self._engine.calls.doubt, call.actor_id, call.message_id)
        unsubscribe = turn.cancelled.subscribe(stir, quick=True)
        try:
            self._check(pairs, call, wait)
            return wait(None)
        finally:
            unsubscribe()
            for asker, earlier in before.items():
                self._back_to(asker, earlier)
            self._tell(list(before))

    def _back_to(self, asker: ActorId, earlier: Call | None) -> None:
        """Note what an actor waited for before; of one called again another thread."""
        if earlier is None:
            self._calls.pop(asker, None)
        else:
            self._calls[asker] = earlier

    def _tell(self, askers: list[ActorId]) -> None:
        """Tell the store what actors wait for now; again later, if it fails."""
        store = self._engine.store
        try:
            store.unwait(askers)
            for asker in askers:
                call = self._calls.get(asker)
                if call is not None:
                    store.wait([(asker, call.actor_id)])
        except OUTAGES:  # the sweep tells of it
            again = time.monotonic() + _AGAIN
            self._engine.timers.at(again, partial(self._tell, askers), always=True)

    def _check(
        self,
        pairs: list[tuple[ActorId, ActorId]],
        call: Call,
        wait: Callable[[float | None], bool],
    ) -> None:
        """Note who waits for whom, and raise if it is a circle that stays."""
        store = self._engine.store
        circle = store.wait(pairs)
        doubt_until = time.monotonic() + _DOUBT
        while circle and not call.over:
            if self._certain(circle) or time.monotonic() >= doubt_until:
                if self._engine.telemetry is not None:
                    self._engine.telemetry.count(Count.DEADLOCKS, call.actor_id)
                raise deadlock(circle, call.message_id)
            if not store.shared:
                return  # one of them has its answer, and is about to go on
            wait(_LOOK_EVERY)
            circle = store.wait(pairs)

    def _certain(self, circle: list[ActorId]) -> bool:
        """Whether all of a circle wait in this process for what has not ended."""
        for actor_id in circle:
            call = self._calls.get(actor_id)
            if call is None:
                return False
            if self._engine.store.shared and not call.over:
                look(self._engine, call)
            if call.over:
                return False
        return True


def _pairs(turn: Turn, target: ActorId) -> list[tuple[ActorId, ActorId]]:
    """Return who waits for whom on the thread of a turn, the latest last."""
    pairs = []
    waiting: Turn | None = turn
    while waiting is not None:
        pairs.append((waiting.cell.actor_id, target))
        target, waiting = waiting.cell.actor_id, waiting.caller
    return pairs[::-1]
