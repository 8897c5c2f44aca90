"""What is done with actors that crash: they rest for a while, or are stopped.

An actor that rests keeps its flag, with no thread: a timer hands it to the pool again.
So nobody can run it meanwhile, and what comes waits in its mailbox.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from ppio_agent.exceptions import ActorStoppedError, RuntimeOverloadedError
from ppio_agent.hooks import Hooks
from ppio_agent.wire.actors import ActorId

from ._cells import Activation, Cell
from ._supervision import Reaction, Supervisor
from ._timers import Timer
from .telemetry import Count

if TYPE_CHECKING:
    from ._engine import Engine
    from ._turn import Turn

__all__ = ["Crashes"]

_log = logging.getLogger(__name__)


class Crashes:
    """Sees to the actors of one engine that crash.

    Attributes:
        supervisor: Remembers them.

    Thread safety: thread-safe; what concerns one actor is for who has its flag.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.supervisor = Supervisor(time.monotonic)
        self._resting: dict[Cell, Timer] = {}

    def __contains__(self, cell: object) -> bool:
        """Whether an actor rests."""
        return cell in self._resting

    def judge(self, turn: Turn) -> None:
        """Note that the actor of a turn has crashed in it."""
        cell, activation = turn.cell, turn.activation
        verdict = self.supervisor.crashed(cell.actor_id, cell.type.options.supervision)
        activation.verdict = verdict
        telemetry = self._engine.telemetry
        if telemetry is not None and verdict.reaction is Reaction.RESTART:
            telemetry.count(Count.RESTARTS, cell.actor_id, turn.record.method)
        if verdict.reaction is not Reaction.RESUME:
            self._engine.lives.dispose(activation)

    def settle(self, cell: Cell) -> bool:
        """Do what was decided about an actor that has crashed, if it has.

        Returns:
            Whether the flag is the caller's no more, as the actor rests.
        """
        activation = cell.activation
        verdict = None if activation is None else activation.verdict
        if activation is None or verdict is None:
            return False
        activation.verdict = None
        cell.signal = True  # the commit has begun no other turn
        if verdict.reaction is Reaction.STOP:
            self._stop(cell, activation, verdict.wait)
        elif verdict.wait > 0.0:
            return self._rest(cell, verdict.wait)
        return False

    def _rest(self, cell: Cell, wait: float) -> bool:
        engine = self._engine
        _log.warning("actor %s is restarted in %.1f s", cell.actor_id, wait)
        try:
            timer = engine.later(wait, partial(self._wake, cell))
        except RuntimeOverloadedError:  # so many instants are waited for: now
            return False
        self._resting[cell] = timer
        if engine.halted:
            self.give_up()
        return True

    def _wake(self, cell: Cell) -> None:
        self._resting.pop(cell, None)
        self._engine.submit(cell)

    def give_up(self) -> None:
        """Let go of the actors that rest: no further turn is to begin."""
        for cell in list(self._resting):
            timer = self._resting.pop(cell, None)
            if timer is not None and timer.cancel():
                cell.flag.release()

    # Stopped actors.

    def check(self, actor_id: ActorId) -> None:
        """Return if requests may be sent to an actor.

        Raises:
            ActorStoppedError: It crashed too often.
        """
        left = self.supervisor.stopped_for(actor_id)
        if left > 0.0:
            raise ActorStoppedError(
                f"actor {actor_id} crashed too often, and takes no requests for another"
                f" {left:.1f} s",
                actor_id=str(actor_id),
                retry_after=left,
            )

    def refuses(self, cell: Cell, activation: Activation) -> bool:
        """End what waits for an actor if it is stopped; return whether it is."""
        if self.supervisor.stopped_for(cell.actor_id) <= 0.0:
            return False
        self._engine.drainer.refuse(cell, activation)
        return True

    def _stop(self, cell: Cell, activation: Activation, quarantine: float) -> None:
        engine, type_name = self._engine, cell.type.name
        _log.error(
            "actor %s crashed too often: it is stopped for %s s",
            cell.actor_id,
            quarantine,
        )
        engine.drainer.refuse(cell, activation)
        engine.lives.deactivate(cell)
        count = self.supervisor.escalates(type_name, cell.type.options.supervision)
        if count:
            _log.error("%d actors of type %s were stopped", count, type_name)
            Hooks.load().actor_escalation(type_name, count)
