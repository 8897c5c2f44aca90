"""Which actors live here: activated by their first turn, let go when idle or in the way."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from ._cells import Activation, Cell
from ._context import InProcessActorContext
from ._outage import OUTAGES
from ._reminders import end_timers
from .runtime_abstractions import IActor

if TYPE_CHECKING:
    from ._engine import Engine

__all__ = ["Lives"]

_log = logging.getLogger(__name__)

_TRIES = 8  # of actors that might make room, and are in use


class Lives:
    """Activates the actors of one engine, and lets them go.

    Each method but `make_room`, `retire_idle` and `doubt` is for the thread that has
    the flag of the actor.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store

    def activate(self, cell: Cell) -> Activation | None:
        """Claim an actor; return None if it lives elsewhere."""
        engine = self._engine
        if engine.halted:
            return None
        lease = self._store.claim(engine.worker, cell.actor_id)
        cell.away = lease is None
        if lease is None:
            return None
        context = InProcessActorContext(cell.actor_id, self._store, engine.runtime)
        activation = Activation(lease, context)
        activation.state_ttl = cell.type.state_ttl(cell.actor_id)
        engine.cells.activated(cell, activation)
        self.make_room()
        if engine.supervisor.stopped and engine.crashes.refuses(cell, activation):
            self.deactivate(cell)
            return None
        return activation

    def make_room(self) -> None:
        """Let the least recently used go while too many live."""
        cells, most = self._engine.cells, self._engine.options.max_live
        for _ in range(_TRIES):
            cell = cells.oldest() if cells.live > most else None
            if cell is None:
                return
            if cell.flag.acquire(blocking=False):
                self.retire(cell)

    def retire_idle(self) -> None:
        """Let go of the actors that nobody has used for long enough."""
        now = time.monotonic()
        self._retire(
            [cell for cell in self._engine.cells.listed() if _is_idle(cell, now)]
        )

    def doubt(self) -> None:
        """Let go of the idle actors: others may have them by now."""
        self._retire(self._engine.cells.living())

    def _retire(self, cells: list[Cell]) -> None:
        """Let go of those that do nothing, if they were not used meanwhile.

        Users' code may hang, and all wait for this thread: it has one of the pool.
        """
        aside = [(cell, cell.last_use) for cell in cells if _disposes(cell)]
        if aside:
            with suppress(RuntimeError):  # no thread to be had: the next time
                self._engine.pool.submit(partial(self._retire_all, aside))
        self._retire_all(
            [(cell, cell.last_use) for cell in cells if not _disposes(cell)]
        )

    def _retire_all(self, cells: list[tuple[Cell, float]]) -> None:
        for cell, last_use in cells:
            if cell.last_use == last_use and cell.flag.acquire(blocking=False):
                self.retire(cell)

    def retire(self, cell: Cell) -> None:
        """Let an idle actor go, give its lease back, and forget it; ends the flag.

        One for which something waits is drained instead.
        """
        activation = cell.activation
        if cell.signal or (activation is not None and activation.next is not None):
            self._engine.submit(cell)
            return
        self.deactivate(cell)
        if self._engine.cells.remove(cell):
            self._engine.signal(cell.actor_id)

    def deactivate(self, cell: Cell) -> None:
        """Let an actor go, and give its lease back."""
        activation = cell.activation
        if activation is None:
            return
        end_timers(activation)
        self.dispose(activation)
        self._engine.cells.deactivated(cell)
        try:
            self._store.release(activation.lease)
        except OUTAGES:  # it ends by itself when this worker does
            _log.warning("the lease of actor %s was not given back", cell.actor_id)

    def abandon(self, cell: Cell) -> None:
        """Let go of an actor whose turn has not come to its end.

        The lease stays this worker's, so that the turn counts as one that was begun.
        """
        activation = cell.activation
        self._engine.cells.deactivated(cell)
        if activation is not None:
            end_timers(activation)
            self.dispose(activation)

    def lost(self, cell: Cell) -> None:
        """Let go of an actor that another worker has taken over."""
        _log.warning("another worker has taken over actor %s", cell.actor_id)
        self.abandon(cell)

    def dispose(self, activation: Activation) -> None:
        """Let the instance go, once; what it raises is logged."""
        actor, activation.actor = activation.actor, None
        if actor is None:
            return
        try:
            actor.dispose()
        except BaseException:  # noqa: BLE001 - user code, and the actor goes anyway
            _log.exception("actor %s failed to dispose", activation.lease.actor_id)

    def instance(self, cell: Cell, activation: Activation) -> IActor:
        """Make the actor, in its first turn.

        Raises:
            TypeError: The factory gave something else; or what that raises.
        """
        actor = cell.type.factory(activation.context)
        if not isinstance(actor, IActor):
            raise TypeError(
                f"the factory of actor type {cell.type.name} gave a"
                f" {type(actor).__name__}, which is no IActor"
            )
        activation.own_loop = type(actor).run is not IActor.run
        activation.actor = actor
        return actor


def _is_idle(cell: Cell, now: float) -> bool:
    live = cell.activation is not None
    return now - cell.last_use >= (cell.type.options.idle_timeout if live else 1.0)


def _disposes(cell: Cell) -> bool:
    """Whether the instance has a `dispose` of its own."""
    actor = None if cell.activation is None else cell.activation.actor
    return actor is not None and type(actor).dispose is not IActor.dispose
