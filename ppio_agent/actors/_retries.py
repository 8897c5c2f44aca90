"""What is tried again while the store of a turn fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors.records import Committed, TurnCommit

from ._commits import refused
from ._outage import OUTAGES
from ._turn import Turn

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["Retries"]

_PAUSES = (0.05, 0.2, 1.0)  # seconds before the next tries; then the last one
_PROBE = "-"  # a key of a state that is looked for to see whether the store answers


class Retries:
    """Waits for the store of an engine, on the threads of the turns that it fails.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store

    def wait(self, turn: Turn, error: BaseException) -> bool:
        """Wait till the store answers that failed a turn, which is then run again.

        Returns:
            Whether it does; not if the runtime stops, and the turn is given up.

        Raises:
            BaseException: The error, if it is waited for no longer.
        """
        # The longer, the more often it came back only for a moment.
        for pause in islice(self._pauses(turn), min(turn.outages, 2), None):
            self._engine.outage.met(error)
            self._engine.stopping.wait(pause)
            try:
                self._store.read(turn.cell.actor_id, (_PROBE,))
            except OUTAGES as again:
                error = again
            else:
                turn.outages += 1
                return True
        self._give_up(turn, error)
        return False

    def commit(
        self, turn: Turn, commit: TurnCommit, error: Exception
    ) -> Committed | None:
        """Commit what the store could not take for a moment, or the failure of it.

        Returns:
            None if the lease was lost, or the runtime stops: the next owner runs it.

        Raises:
            Exception: The error, if it is tried no longer.
        """
        pauses = self._pauses(turn)
        while not isinstance(error, LeaseLostError):
            if isinstance(error, OUTAGES):
                pause = next(pauses, None)
                if pause is None:
                    self._give_up(turn, error)
                    return None
                self._engine.outage.met(error)
                self._engine.stopping.wait(pause)
            else:
                commit = refused(turn, commit, error)
            try:
                return self._store.commit(turn.activation.lease, commit)
            except Exception as again:  # noqa: BLE001 - looked at above
                error = again
        turn.over = turn.lost = True
        self._engine.lives.lost(turn.cell)
        return None

    def _pauses(self, turn: Turn) -> Iterator[float]:
        """Yield how long to wait before each further try of what the store failed.

        They end when no turn may be run, or soon if only the caller knows of it.
        """
        yield from _PAUSES
        while turn.accepted and not self._engine.halted:
            yield _PAUSES[-1]

    def _give_up(self, turn: Turn, error: BaseException) -> None:
        """Let go of a turn if the runtime stops.

        Raises:
            BaseException: The error, if it does not.
        """
        if not self._engine.stopping.is_set():
            raise error
        turn.over = turn.lost = True
        self._engine.lives.abandon(turn.cell)
