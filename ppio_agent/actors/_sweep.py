"""What a runtime looks after all the time: its lease, and what no wake-up told it of.

The sweep alone is enough for every request to end; instants that are known in this
process are kept exactly besides, see `Sweep.by`.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import RuntimeOverloadedError
from ppio_agent.storage.actors.records import Moved, SetReminder
from ppio_agent.wire.actors import ActorId

from ._outage import OUTAGES
from ._stuck import Stuck
from ._timers import Timers
from ._waiting import look

if TYPE_CHECKING:
    from ._engine import Engine
    from ._turn import Turn

__all__ = ["Heartbeat", "Instants", "Sweep"]

_log = logging.getLogger(__name__)

_PAGE = 256
_ROUNDS = 40  # of pages, in one sweep
_PURGE_EVERY = 60.0
_PURGE_PAGE = 500  # what was retained is counted once for each
_PURGE_SECONDS = 0.25  # in one sweep; the next one goes on
_AWAITED = 3.0  # seconds for which a request is told of for which nobody waits
_SOON = 60.0  # what is due later than that is left to the sweep
_STEP = 0.01  # what is due within it is one instant
# Reminders come again and again: seconds for which one that came is looked after
# closely, and how closely.
_LIVELY, _CLOSELY = 3.0, 0.1


class Instants:
    """Calls one function at instants that come near, once for those close together.

    Thread safety: thread-safe.
    """

    def __init__(self, timers: Timers, fn: Callable[[], object]) -> None:
        self._timers = timers
        self._fn = fn
        self._forget()
        renew_in_child(self, Instants._forget)

    def _forget(self) -> None:
        # Guards _steps, the instants that are set, in steps.
        self._lock = threading.Lock()
        self._steps: set[int] = set()

    def set(self, delay: float) -> None:
        """Call it after `delay` seconds, or up to a hundredth of a second later.

        Not at all if that is far off, or too many instants are set in the runtime.
        """
        if delay > _SOON:
            return
        now = time.monotonic()
        step = math.ceil((now + delay) / _STEP) if delay > 0.0 else 0
        with self._lock:
            if step in self._steps:
                return
            self._steps.add(step)
        try:
            self._timers.at(max(now, step * _STEP), lambda: self._run(step))
        except RuntimeOverloadedError:
            self._done(step)

    def _done(self, step: int) -> None:
        with self._lock:
            self._steps.discard(step)

    def _run(self, step: int) -> None:
        self._done(step)  # before: what comes while it runs may not be seen by it
        self._fn()


class Heartbeat:
    """Keeps the leases of a worker, and says when they may be others' by now.

    A worker that could not renew them within 2/3 of their time begins no turn
    (`Engine.stale`) until it can.

    Args:
        engine: The runtime.

    Thread safety: thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._ttl = engine.options.lease_ttl
        self._sure_until = 0.0

    def start(self) -> None:
        """Renew now, and from then on again and again.

        Raises:
            OSError: The store fails.
            ServiceUnavailableError: The store cannot be reached.
        """
        self._renew()
        self._again()

    def _again(self) -> None:
        instant = time.monotonic() + self._ttl / 3.0
        self._engine.timers.at(instant, self._beat, always=True)

    def _beat(self) -> None:
        try:
            self._renew()
        except OUTAGES as error:
            self._engine.outage.met(error)
        finally:
            self._again()

    def _renew(self) -> None:
        engine = self._engine
        before = time.monotonic()
        kept = engine.store.heartbeat(engine.worker, self._ttl)
        if not kept:
            _log.warning(
                "worker %s was silent for more than its %s s: others may have taken its"
                " actors over",
                engine.worker,
                self._ttl,
            )
            engine.lives.doubt()
        self._sure_until = before + self._ttl * 2.0 / 3.0
        engine.stale = False
        engine.timers.at(self._sure_until, self._doubt, blocks=False, always=True)

    def _doubt(self) -> None:
        if time.monotonic() >= self._sure_until:
            self._engine.stale = True


class Sweep:
    """Does what is due in the store, and wakes whoever got something by it.

    Args:
        engine: The runtime.
        chance: Gives numbers in [0, 1), by which sweeps are spread.

    Attributes:
        stuck: Finds turns without progress.
        outgoing: How many requests were on their way to others, at the latest look.

    Thread safety: thread-safe.
    """

    def __init__(
        self, engine: Engine, *, chance: Callable[[], float] = random.random
    ) -> None:
        self._engine = engine
        self._chance = chance
        self._next_purge = time.monotonic() + _PURGE_EVERY
        self._lively_until = 0.0
        self._told: set[ActorId] = set()  # by the last sweep
        self.stuck = Stuck()
        self.outgoing = 0
        self._reminders = Instants(engine.timers, self._guarded(self._remind))
        self._outbox = Instants(engine.timers, self._guarded(self._relay))

    def start(self) -> None:
        """Sweep soon, and from then on again and again."""
        self._again(0.0)

    def _again(self, delay: float) -> None:
        self._engine.timers.at(time.monotonic() + delay, self._beat, always=True)

    def _beat(self) -> None:
        try:
            self.run()
        finally:
            every = self._engine.options.sweep_every
            self._again(every * (0.8 + 0.4 * self._chance()))

    def after(self, turn: Turn) -> None:
        """See to what a turn left to be sent, or to be reminded of, in its time."""
        now = self._engine.store.now() if turn.outbox or turn.reminders else 0.0
        for out in turn.outbox or ():
            self._outbox.set(out.not_before - now)
        for change in turn.reminders or ():
            if isinstance(change, SetReminder):
                self._reminders.set(change.due - now)

    def run(self) -> int:
        """Look after everything once; return how many actors were woken.

        A store that cannot be reached is told once, and looked for again next time.
        """
        woken = 0
        try:
            self._engine.expire()
            self._engine.cancel_noted()
            woken = self._relay() + self._remind() + self._wake_ready()
            self._look_after_calls()
            self._purge()
        except OUTAGES as error:
            self._engine.outage.met(error)
        else:
            self._engine.outage.over()
        living = (cell.turn for cell in self._engine.cells.living())
        self.stuck.look([turn for turn in living if turn is not None], time.monotonic())
        self._engine.supervisor.forget()
        self._engine.lives.retire_idle()
        return woken

    def _guarded(self, step: Callable[[], int]) -> Callable[[], object]:
        def run() -> None:
            try:
                step()
            except OUTAGES as error:
                self._engine.outage.met(error)

        return run

    def _relay(self) -> int:
        moved, last = self._move(self._engine.store.relay)
        self.outgoing = last.left
        return moved

    def _remind(self) -> int:
        fired, _ = self._move(self._engine.store.fire_reminders)
        now = time.monotonic()
        if fired:
            self._lively_until = now + _LIVELY
        if now < self._lively_until:
            self._reminders.set(_CLOSELY)
        return fired

    def _move(self, step: Callable[[float, int], Moved]) -> tuple[int, Moved]:
        """Move what is due; return how many actors were woken, and the last answer."""
        now = self._engine.store.now()
        woken = 0
        for _ in range(_ROUNDS):
            moved = step(now, _PAGE)
            woken += self._wake(moved.actors)
            if not moved.more:
                break
        return woken, moved

    def _wake_ready(self) -> int:
        engine = self._engine
        # Those that live here are among them, and must not hide the others.
        limit = _PAGE + engine.cells.live
        ready = engine.store.ready(engine.worker, limit)
        while len(ready) == limit <= engine.options.max_pending:
            limit *= 4
            ready = engine.store.ready(engine.worker, limit)
        # Who was to be told of them last time has not come: perhaps it was not told.
        late, self._told = self._told.intersection(ready), set(ready)
        for actor_id in late if engine.placement is not None else ():
            engine.signal(actor_id, here=True)
        return self._wake(ready)

    def _wake(self, actor_ids: Sequence[ActorId]) -> int:
        for actor_id in actor_ids:
            self._engine.signal(actor_id)
        return len(actor_ids)

    def _look_after_calls(self) -> None:
        engine = self._engine
        if engine.store.shared:
            for call in engine.calls.prune(time.monotonic() - _AWAITED):
                look(engine, call)

    def _purge(self) -> None:
        began = time.monotonic()
        if began < self._next_purge:
            return
        store, retention = self._engine.store, self._engine.options.retention
        while store.purge(store.now(), _PURGE_PAGE, retention) >= _PURGE_PAGE:
            if time.monotonic() - began > _PURGE_SECONDS:
                return
        self._next_purge = began + _PURGE_EVERY
