"""What this process keeps of each actor it has to do with, and which of them live.

Each actor has a *flag*: whoever has it, a thread or a timer, is the only one that runs
turns of the actor here, activates it or lets it go. Nobody waits for a flag. Who fails
to get it has left a *signal*, and who gives it up looks at the signal once more:

    sender                              owner of the flag
    ------                              -----------------
    accept in the store                 signal = False
    signal = True                       take from the store: nothing
    get the flag, else leave            give the flag up
                                        signal set? get the flag, go on

So no request is left behind, whichever way these interleave.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from ppio_agent.storage.actors.records import Lease, RequestRecord
from ppio_agent.wire.actors import ActorId

from ._types import ActorType
from .runtime_abstractions import IActor

if TYPE_CHECKING:
    from ._context import InProcessActorContext
    from ._reminders import ActorTimer
    from ._supervision import Verdict
    from ._turn import Turn

__all__ = ["Activation", "Cell", "Cells"]


class Activation:
    """An actor that lives here: its lease, its instance and the turn that is next.

    Attributes:
        lease: The right to run its turns.
        context: Given to the instance.
        actor: The instance; None before its first turn and after a crash.
        own_loop: Whether the instance has a `run` of its own.
        next: A request that was taken, and whose turn has not begun.
        timers: Its timers by name; None: none.
        size: At most so many bytes of state; None: not known.
        state_ttl: Seconds after a turn after which its state is deleted; None: never.
        verdict: What follows from a crash, once its turn is committed; None: none.
    """

    __slots__ = (
        "actor",
        "context",
        "lease",
        "next",
        "own_loop",
        "size",
        "state_ttl",
        "timers",
        "verdict",
    )

    def __init__(self, lease: Lease, context: InProcessActorContext) -> None:
        self.lease = lease
        self.context = context
        self.actor: IActor | None = None
        self.own_loop = False
        self.next: RequestRecord | None = None
        self.size: int | None = None
        self.state_ttl: float | None = None
        self.timers: dict[str, ActorTimer] | None = None
        self.verdict: Verdict | None = None


class Cell:
    """One actor as this process knows it.

    Attributes:
        actor_id: Its address.
        type: Its type.
        flag: Locked by whoever may run its turns.
        signal: Whether something may wait in the store that the owner of the flag has
            not looked for.
        activation: It, while it lives here; changed with the flag only.
        turn: The turn that runs here.
        last_use: When it was let go last, by `time.monotonic`.
        away: Whether it lived elsewhere when this process last tried to have it.
        gone: Whether it has left `Cells`, its flag locked for ever.
    """

    __slots__ = (
        "activation",
        "actor_id",
        "away",
        "flag",
        "gone",
        "last_use",
        "signal",
        "turn",
        "type",
    )

    def __init__(self, actor_id: ActorId, actor_type: ActorType) -> None:
        self.actor_id = actor_id
        self.type = actor_type
        self.flag = threading.Lock()
        self.signal = False
        self.activation: Activation | None = None
        self.turn: Turn | None = None
        self.last_use = 0.0
        self.away = False
        self.gone = False


class Cells:
    """All cells of a runtime, and those that live in the order of their last use.

    Thread safety: thread-safe; each step on the tables is one of the interpreter's own.
    """

    def __init__(self) -> None:
        self._cells: dict[ActorId, Cell] = {}
        self._live: OrderedDict[Cell, None] = OrderedDict()
        self.find = self._cells.get

    def __len__(self) -> int:
        return len(self._cells)

    def __contains__(self, actor_id: ActorId) -> bool:
        return actor_id in self._cells

    @property
    def live(self) -> int:
        """How many actors live."""
        return len(self._live)

    def ensure(self, actor_id: ActorId, actor_type: ActorType) -> Cell:
        """Return the cell of an actor, a new one if there is none."""
        return self._cells.setdefault(actor_id, Cell(actor_id, actor_type))

    def listed(self) -> list[Cell]:
        """Return all cells."""
        return list(self._cells.values())

    def living(self) -> list[Cell]:
        """Return the cells that live, the least recently used first."""
        return list(self._live)

    def oldest(self) -> Cell | None:
        """Return the least recently used of those that live, if that can be told."""
        try:
            return next(iter(self._live))
        except (StopIteration, RuntimeError):  # none, or others changed them just now
            return None

    def touch(self, cell: Cell) -> None:
        """Note that one that lives is in use."""
        if cell in self._live:
            self._live.move_to_end(cell)

    def activated(self, cell: Cell, activation: Activation) -> None:
        """Note that an actor lives; its flag is the caller's."""
        cell.activation = activation
        self._live[cell] = None

    def deactivated(self, cell: Cell) -> None:
        """Note that an actor lives no more; its flag is the caller's."""
        cell.activation = None
        self._live.pop(cell, None)

    def give_up(self, cell: Cell) -> bool:
        """Give the flag of an actor up; return whether it is the caller's once more.

        It is when something came meanwhile, which the caller then has to look at.
        """
        cell.last_use = time.monotonic()
        if cell.activation is not None:
            self._live.move_to_end(cell)
        cell.flag.release()
        return cell.signal and cell.flag.acquire(blocking=False)

    def remove(self, cell: Cell) -> bool:
        """Forget an actor that does not live here; its flag is the caller's, for ever.

        Returns:
            Whether a signal came too late: somebody has to look with a new cell.
        """
        cell.gone = True
        self._cells.pop(cell.actor_id, None)
        return cell.signal
