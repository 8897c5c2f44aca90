"""One run of a runtime, from start to stop: what its parts share.

The store keeps all that must outlast a turn. What is here decides which thread runs
which actor's next turn (`Drainer`), and hands what ended to the threads that wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ppio_agent._util.threads import WorkerPool
from ppio_agent.exceptions import (
    RuntimeNotRunningError,
)
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Cancellation,
    Cancelled,
    Hint,
    HintKind,
    RequestRecord,
    Subscription,
)
from ppio_agent.wire.actors import ActorId, RequestStatus

from ._call import Calls, latch
from ._cells import Cell, Cells
from ._crashes import Crashes
from ._drain import Drainer
from ._lives import Lives
from ._outage import Outage
from ._sweep import Heartbeat, Sweep
from ._timers import Timer, Timers
from ._turn import Turn, current_turn
from ._types import ActorTypes
from ._waiting import look, stopped
from ._waits import Waits
from .options import RuntimeOptions
from .runtime_abstractions import IActorPlacement

if TYPE_CHECKING:
    from .runtime import InProcessActorRuntime
    from .telemetry import ActorTelemetry

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

_AT_ONCE = (False,)  # arguments of `acquire`, for one call
_HELD: list[object] = [True]


class Engine:
    """What the parts of a running runtime share.

    Attributes:
        runtime: Whose it is.
        store: Where all is kept.
        options: The limits.
        types: The registered types.
        worker: Under which name it holds leases.
        cells: The actors that it knows.
        calls: Who waits for what.
        pool: The threads of turns.
        timers: The thread of what is due later.
        placement: Who is told of actors that are ready; None: the pool.
        lives: Activates actors, and lets them go.
        drainer: Runs turns.
        outage: Whether the store fails.
        crashes: Sees to actors that crash.
        supervisor: Remembers crashes.
        waits: Which turns wait for whom.
        heartbeat: Keeps the leases.
        sweep: Looks after what nobody was told of.
        telemetry: Is told what is done; None: nobody is.
        running: Whether requests are taken.
        stopping: Set when no further turn begins.
        halted: Whether no turn may begin: it stops, or is `stale`.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        runtime: InProcessActorRuntime,
        store: IActorStore,
        *,
        types: ActorTypes,
        options: RuntimeOptions,
        placement: IActorPlacement | None,
        worker: str,
        telemetry: ActorTelemetry | None = None,
    ) -> None:
        self.runtime = runtime
        self.store = store
        self.telemetry = telemetry
        self.options = options
        self.types = types
        self.worker = worker
        self.placement = placement
        self.cells = Cells()
        self.calls = Calls()
        self.pool = WorkerPool(
            "ppio-actor",
            max_threads=options.workers,
            max_waiting=options.max_pending,
            idle_timeout=30.0,
        )
        self.timers = Timers()
        self.running = True
        self.stopping = threading.Event()
        self.halted = False
        self._stale = False
        # Senders that wait for a place in a mailbox; none, mostly.
        self._senders: dict[ActorId, deque[threading.Lock]] = {}
        self._senders_lock = threading.Lock()
        drainer = Drainer
        if telemetry is not None:
            from ._telling import TellingDrainer, TellingStore

            self.store, drainer = TellingStore.of(store, telemetry), TellingDrainer
        self.outage = Outage()
        self.crashes = Crashes(self)
        self.supervisor = self.crashes.supervisor
        self.waits = Waits(self)
        self.lives = Lives(self)
        self.drainer = drainer(self)
        self.heartbeat = Heartbeat(self)
        self.sweep = Sweep(self)
        self._subscription: Subscription | None = None

    @property
    def stale(self) -> bool:
        """Whether the leases may have been lost, so that no turn may begin."""
        return self._stale

    @stale.setter
    def stale(self, stale: bool) -> None:
        self._stale = stale
        self.halted = stale or self.stopping.is_set()

    def start(self) -> None:
        """Hold leases, and look after what is due."""
        self.heartbeat.start()
        if self.store.shared:
            self._subscription = self.store.subscribe(self._hinted)
        self.sweep.start()

    def close_subscription(self) -> None:
        """Be told of nothing that others do."""
        if self._subscription is not None:
            self._subscription.close()
            self._subscription = None

    # Cells.

    def cell(self, actor_id: ActorId) -> Cell:
        """Return the cell of an actor, whose type must be known.

        Raises:
            UnknownActorTypeError: It is not.
            RuntimeNotRunningError: The runtime has stopped.
        """
        if not self.running:
            turn = current_turn.get()
            if turn is not None and not turn.over:  # it is to be run again
                turn.cancel("shutdown")
                turn.context.check()
            raise RuntimeNotRunningError(
                "the runtime of the actors does not run: call start() first"
            )
        cell = self.cells.find(actor_id)
        if cell is None:
            cell = self.cells.ensure(actor_id, self.types.find(actor_id.type_name))
        return cell

    def signal(self, actor_id: ActorId, *, here: bool = False) -> None:
        """See to it that what waits for an actor is run; its type may be unknown.

        Args:
            actor_id: The actor.
            here: On the own threads, whoever was to be told of it.
        """
        cell = self.cells.find(actor_id)
        if cell is None:
            if actor_id.type_name not in self.types:
                return  # another process's, which knows its type
            cell = self.cells.ensure(actor_id, self.types.find(actor_id.type_name))
        self.wake(cell, here=here)

    def wake(self, cell: Cell, *, here: bool = False) -> None:
        """See to it that what waits for an actor is run; see `signal`."""
        if self.placement is not None and cell.activation is None and not here:
            try:
                self.placement.wake(cell.actor_id, None)
            except Exception:  # noqa: BLE001 - users' code; it was accepted, and a sweep comes
                _log.exception("nobody was told of actor %s", cell.actor_id)
            return
        cell.signal = True
        held: list[object] = []
        try:
            held.extend(map(cell.flag.acquire, _AT_ONCE))
            if held[0]:
                self.submit(cell, held)
            elif cell.gone:
                self.signal(cell.actor_id, here=here)
        except BaseException:
            if held == _HELD:
                self._rescue(cell)
            raise

    @contextmanager
    def held(self, cell: Cell) -> Iterator[list[object]]:
        """Try to get the flag of an actor, for a thread that a signal may interrupt.

        Yields a list whose one element says whether it is the caller's. Who gives it up
        adds another one, in one step: so it is known at any moment whose it is.
        """
        held: list[object] = []
        try:
            held.extend(map(cell.flag.acquire, _AT_ONCE))
            yield held
        except BaseException:
            if held == _HELD:
                self._rescue(cell)
            raise

    def _rescue(self, cell: Cell) -> None:
        """See to an actor whose turn was interrupted, and whose flag is the caller's."""
        if cell in self.crashes:
            return  # it rests
        self._submit(cell, self.drainer.rescue)

    def submit(self, cell: Cell, held: list[object] | None = None) -> None:
        """Hand an actor, whose flag is the caller's, to a thread of the pool.

        Without one its flag is given up: the sweep finds what waits.

        Args:
            cell: The actor.
            held: See `held`.
        """
        self._submit(cell, self.drainer.drain, held)

    def _submit(
        self,
        cell: Cell,
        run: Callable[[Cell], object],
        held: list[object] | None = None,
    ) -> None:
        ticket: list[object] = [None]
        try:
            if held is not None:
                held.append(None)
            self.pool.submit(partial(_run_once, run, cell, ticket))
        except RuntimeError as error:
            if self.running:
                _log.warning(
                    "actor %s has to wait for a sweep: %s", cell.actor_id, error
                )
            cell.flag.release()
        except BaseException:  # by a signal: perhaps nobody will run it
            self.pool.submit(partial(_run_once, run, cell, ticket))
            raise

    def ask_here(self, request: RequestRecord) -> Turn | None:
        """Run a request on this thread if its actor is idle; None: it was not run."""
        cell = self.cells.find(request.actor_id)
        if cell is None or not self.running:
            cell = self.cell(request.actor_id)
        supervisor = self.supervisor
        if supervisor.stopped and supervisor.stopped_for(request.actor_id) > 0.0:
            return None  # refused by the long way
        if self.halted or (cell.activation is None and self.placement is not None):
            return None
        held: list[object] = []  # as of `held`, without its generator
        try:
            held.extend(map(cell.flag.acquire, _AT_ONCE))
            if not held[0]:
                return None
            activation = cell.activation
            if cell.signal or (activation is not None and activation.next is not None):
                self.submit(cell, held)  # others came first
                return None
            request.created_at = self.store.now()
            return self.drainer.run_here(cell, request, held)
        except BaseException:
            if held == _HELD:
                self._rescue(cell)
            raise

    def run_first(self, cell: Cell, message_id: str) -> bool:
        """Run an accepted request on this thread if its actor is idle, and it is next.

        Returns:
            Whether that was tried; else the actor has to be woken.
        """
        if self.halted or (cell.activation is None and self.placement is not None):
            return False
        with self.held(cell) as held:
            if not held[0]:
                return False
            self.drainer.run_first(cell, message_id, held)
        return True

    # The end of requests.

    def ended(self, records: Iterable[RequestRecord]) -> None:
        """Tell this process that requests have ended, which nobody here has run."""
        for record in records:
            self.calls.end_as(record)
            turn = self.turn_of(record.actor_id, record.message_id)
            if turn is not None:
                expired = record.status is RequestStatus.EXPIRED
                turn.cancel("deadline" if expired else "client")
            if self._senders:
                self.made_room(record.actor_id)

    def after_fork(self) -> None:
        """Let go of what only the parent's threads would do; in a forked child."""
        self.running, self.halted = False, True
        calls, self.calls = self.calls, Calls()
        self._senders_lock = threading.Lock()
        for call in calls.all():
            call.error = partial(stopped, call)

    def turn_of(self, actor_id: ActorId, message_id: str) -> Turn | None:
        """Return the turn of a request if it runs here, or another one within it."""
        cell = self.cells.find(actor_id)
        turn = None if cell is None else cell.turn
        while turn is not None and turn.record.message_id != message_id:
            turn = turn.outer
        return turn

    def cancel(self, actor_id: ActorId, message_id: str) -> Cancelled:
        """Ask for the end of a request, wherever it is."""
        outcome = self.store.cancel(actor_id, message_id)
        turn = self.turn_of(actor_id, message_id)
        if outcome is Cancelled.CANCELLED:
            record = self.store.get_request(actor_id, message_id)
            if record is not None:
                self.ended((record,))
            return outcome
        if turn is None or turn.over:
            return outcome
        if outcome is Cancelled.REQUESTED or not turn.accepted:
            self.interrupt(turn, Cancellation.CANCEL)
            return Cancelled.REQUESTED
        return outcome

    def interrupt(self, turn: Turn, how: Cancellation) -> None:
        """Ask a running turn for its end."""
        turn.cancel("client" if how is Cancellation.CANCEL else "superseded", how)

    def expire(self) -> int:
        """End the requests whose deadline has passed; return how many."""
        records = self.store.expire(self.store.now(), 1000)
        self.ended(records)
        return len(records)

    # Time.

    def later(self, seconds: float, fn: Callable[[], object]) -> Timer:
        """Call `fn()` in so many seconds, on a thread that may block."""
        return self.timers.at(time.monotonic() + seconds, fn)

    def over(self, turn: Turn) -> None:
        """Tell this process of the end of an accepted request that ran here."""
        actor_id = turn.cell.actor_id
        self.calls.end(
            actor_id,
            turn.record.message_id,
            turn.status or RequestStatus.FAILED,
            turn.data,
            turn.position,
        )
        if self._senders:
            self.made_room(actor_id)

    def made_room(self, actor_id: ActorId) -> None:
        """Wake one of the senders that wait for a place in a mailbox."""
        with self._senders_lock:
            waiting = self._senders.get(actor_id)
            lock = waiting.popleft() if waiting else None
            if not waiting:
                self._senders.pop(actor_id, None)
        if lock is not None:
            lock.release()

    @contextmanager
    def in_line(self, actor_id: ActorId) -> Iterator[threading.Lock]:
        """Return what is released when there may be a place in a mailbox."""
        lock = latch()
        with self._senders_lock:
            self._senders.setdefault(actor_id, deque()).append(lock)
        try:
            yield lock
        finally:
            with self._senders_lock:
                waiting = self._senders.get(actor_id)
                if waiting is not None and lock in waiting:
                    waiting.remove(lock)
                    if not waiting:
                        del self._senders[actor_id]

    # What others do to a shared store.

    def _hinted(self, hint: Hint) -> None:
        """Take a hint; called on a thread of the store's, which must not block."""
        actor_id, message_id = hint.actor_id, hint.message_id
        if hint.kind is HintKind.READY:
            cell = self.cells.find(actor_id)
            # Of one that lives elsewhere its owner is told as well; if that is gone,
            # the sweep finds it.
            if cell is None or not cell.away:
                self.signal(actor_id)
        elif hint.kind is HintKind.PROGRESS:
            self.calls.moved(actor_id, message_id)
        elif hint.kind is HintKind.ENDED:
            call = self.calls.doubt(actor_id, message_id)
            if call is not None and call.told:  # no thread waits that would look
                self.timers.at(time.monotonic(), partial(look, self, call), always=True)
        elif self.turn_of(actor_id, message_id) is not None:
            self.timers.at(0.0, self.cancel_noted)

    def cancel_noted(self) -> None:
        """Tell the turns that run here of cancels that others have noted."""
        for actor_id, message_id, how in self.store.cancellations(self.worker):
            turn = self.turn_of(actor_id, message_id)
            if turn is not None:
                self.interrupt(turn, how)

    # The end.

    def close_to_requests(self) -> None:
        """Take no more requests, and begin no further turn."""
        self.running = False
        self.stopping.set()
        self.halted = True
        self.crashes.give_up()


def _run_once(run: Callable[[Cell], object], cell: Cell, ticket: list[object]) -> None:
    """Run an actor unless somebody has come with the same ticket before."""
    try:
        ticket.pop()
    except IndexError:
        return
    run(cell)
