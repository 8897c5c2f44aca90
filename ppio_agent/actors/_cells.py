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
from collections import deque
from heapq import nsmallest
from operator import attrgetter
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

_SHARE = 16  # of so many that live one is found to be among the oldest at once
_last_use = attrgetter("last_use")


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
        last_use: When its flag was given up last, or it began to live, by
            `time.monotonic`.
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
    """All cells of a runtime.

    Thread safety: thread-safe; each step on the table is one of the interpreter's own.
    """

    def __init__(self) -> None:
        self._cells: dict[ActorId, Cell] = {}
        self.find = self._cells.get
        # Those that were used least recently when this was made, the first ones first.
        # An order of all, kept with each use, would take as many bytes as a cell.
        self._oldest: deque[tuple[float, Cell]] = deque()
        self._live = 0
        self._lock = threading.Lock()  # Guards the number.

    def __len__(self) -> int:
        return len(self._cells)

    def __contains__(self, actor_id: ActorId) -> bool:
        return actor_id in self._cells

    @property
    def live(self) -> int:
        """How many actors live."""
        return self._live

    def ensure(self, actor_id: ActorId, actor_type: ActorType) -> Cell:
        """Return the cell of an actor, a new one if there is none."""
        return self._cells.setdefault(actor_id, Cell(actor_id, actor_type))

    def listed(self) -> list[Cell]:
        """Return all cells."""
        return list(self._cells.values())

    def living(self) -> list[Cell]:
        """Return the cells that live."""
        return [cell for cell in self.listed() if cell.activation is not None]

    def oldest(self) -> Cell | None:
        """Return the least recently used of those that live and do nothing, if any.

        One that was used since it was found to be one of the oldest is passed over: the
        others were used later than those that are left.
        """
        for _ in range(2):
            while self._oldest:
                try:
                    last_use, cell = self._oldest.popleft()
                except IndexError:  # another thread was quicker
                    break
                if cell.activation is not None and cell.last_use == last_use:
                    return cell
            idle = [cell for cell in self.living() if not cell.flag.locked()]
            found = nsmallest(1 + len(idle) // _SHARE, idle, key=_last_use)
            self._oldest = deque((cell.last_use, cell) for cell in found)
        return None

    def activated(self, cell: Cell, activation: Activation) -> None:
        """Note that an actor lives; its flag is the caller's."""
        cell.activation = activation
        cell.last_use = time.monotonic()
        with self._lock:
            self._live += 1

    def deactivated(self, cell: Cell) -> None:
        """Note that an actor lives no more; its flag is the caller's."""
        if cell.activation is None:
            return
        cell.activation = None
        with self._lock:
            self._live -= 1

    def give_up(self, cell: Cell) -> bool:
        """Give the flag of an actor up; return whether it is the caller's once more.

        It is when something came meanwhile, which the caller then has to look at.
        """
        cell.last_use = time.monotonic()
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
