"""One live sandbox: its state machine with the processes behind it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import attrs

from ppio_agent.exceptions import (
    NotFoundError,
    SandboxStateError,
    ServiceUnavailableError,
)
from ppio_agent.sandbox.backends.base import AgentStatus, LostReason, RunningSandbox
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.tree import Process

from .changes import Change, Changes, Kind, Listener
from .due import Due
from .limits import extended_end, stopping
from .machine import Effect, EndReason, Event, State, Step, at_end, step
from .turns import TURN_TIMEOUT, Turns
from .values import Identity, Life, Surroundings, not_found

__all__ = ["LiveSandbox"]

_log = logging.getLogger(__name__)

_KILL_GRACE: Final = 2.0
_KILL_RETRIES: Final = 2
_KILL_PAUSE: Final = 0.1


class LiveSandbox:
    """A sandbox from the moment it is accepted until its last process is gone.

    Args:
        identity: What it is.
        around: What it needs of its platform.
        life: How it lived under a platform that crashed; None: it is new.

    Thread safety: thread-safe. Transitions take turns; a kill that comes while another
    is under way is carried out right after it and is never lost.
    """

    def __init__(
        self, identity: Identity, around: Surroundings, *, life: Life | None = None
    ) -> None:
        self.identity = identity
        self._around = around
        self.life = life or _new_life(identity, around)
        self.ended = threading.Event()
        self._timeout = float(identity.options.timeout)
        self._running: RunningSandbox | None = None
        self._turns = Turns(identity.id)
        self._changes = Changes()
        self._due = Due(
            idle_timeout=identity.options.idle_timeout,
            timers=around.timers,
            monotonic=around.monotonic,
            background=around.background,
            look=self._look,
        )

    @property
    def id(self) -> str:
        """Its id."""
        return self.identity.id

    @property
    def doomed(self) -> bool:
        """Whether it is being killed, or has been: nobody may use it any more."""
        return self._turns.doomed

    @property
    def changing(self) -> bool:
        """Whether it is on its way from one state to another."""
        return self._turns.changing

    @property
    def agent(self) -> AgentStatus:
        """The agent as last reported."""
        running = self._running
        if running is not None:
            return running.agent
        return AgentStatus(
            phase="starting" if self.identity.build.entrypoint else "none"
        )

    def processes(self) -> RunningSandbox:
        """Return the hold on its processes.

        Raises:
            NotFoundError: It has none yet, or no longer.
        """
        if self._running is None or self.doomed:
            raise not_found(self.id)
        return self._running

    @property
    def supervisor(self) -> Process | None:
        """Its supervisor's process; None while it has none."""
        return tree.named(self._running.pid) if self._running is not None else None

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition on its state or its agent holds.

        Args:
            condition: Looks at this sandbox; quick, and without waiting itself.
            timeout: Most seconds.

        Returns:
            Whether it holds.
        """
        return self._turns.wait_for(condition, timeout)

    def subscribe(
        self, listener: Listener, *, present: bool = False
    ) -> Callable[[], None]:
        """Have `listener` told each transition and each report of the agent.

        Args:
            listener: Called on the thread that made the change, in the order of the
                changes, one at a time. It must be quick, and must not wait.
            present: First tell it how the agent and the sandbox are now, as changes
                of this moment.

        Returns:
            Ends that; a call that is under way is not waited for.
        """
        if not present:
            return self._changes.subscribe(listener)
        unsubscribe = self._changes.subscribe(
            listener, present=lambda: (self._change("agent"), self._change("state"))
        )
        self._changes.tell()
        return unsubscribe

    def traffic_began(self) -> None:
        """Take note that an exchange with it is under way; no wait, no I/O."""
        self._due.idle.began()

    def traffic_ended(self) -> None:
        """Take note that an exchange with it is over; no wait, no I/O."""
        self._due.idle.ended()

    def start(self, prepare: Callable[[], object]) -> None:
        """Start its processes; return when its supervisor is ready.

        Args:
            prepare: Fills its folder first.

        Raises:
            SandboxStartError: The supervisor did not come up.
            SandboxStateError: It was killed meanwhile.
            ServiceUnavailableError: The platform stops.

        Whatever is raised, nothing of it is left.
        """
        try:
            with self._turns.awaited():
                if not self.doomed:
                    prepare()
                    self._running = self._around.backend.start(
                        self.identity.spec(),
                        on_agent=self._on_agent,
                        on_lost=self._on_lost,
                    )
                if not self.doomed:
                    self._apply(Event.READY)
                    self._around.on_life(self)
        except BaseException as error:
            starting = self.life.state is State.STARTING
            event = Event.START_FAILED if starting else Event.KILL
            if not self.kill(event, grace=0.0) and isinstance(error, Exception):
                raise self._killed_meanwhile() from error
            raise
        self._notify()
        if self.doomed:
            raise self._killed_meanwhile()

    def _killed_meanwhile(self) -> SandboxStateError | ServiceUnavailableError:
        """Return what to tell its creator, when nothing of it is left."""
        self.ended.wait(TURN_TIMEOUT)
        if self.life.reason is EndReason.SHUTDOWN:
            return stopping()
        return SandboxStateError(f"sandbox {self.id} was killed while it started")

    def adopt(self) -> None:
        """Take it up from a platform that crashed: it goes on as it is.

        Raises:
            SandboxStartError: It does not answer.

        Blocking: at most 2 seconds.
        """
        with self._turns.awaited():
            self._running = self._around.backend.adopt(
                self.identity.spec(), on_agent=self._on_agent, on_lost=self._on_lost
            )
            state = State.PAUSED if self._running.paused else State.RUNNING
            ends = self.life.ends
            if state is not self.life.state:
                # The crash came between a transition and the note of it.
                paused = state is State.PAUSED
                left = self._around.paused_timeout if paused else self._timeout
                ends = self._now() + left
                self.life = attrs.evolve(self.life, state=state)
            self._set_end(ends)
            if state is State.RUNNING:
                self._due.idle.start()
            self._around.on_life(self)

    def pause(self) -> None:
        """Freeze it.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: It is paused, or changes its state for too long.
        """
        with self._taking_turn():
            self._apply(Event.PAUSE)

    def resume(self, timeout: float, *, pauses: bool | None = None) -> None:
        """Let it go on; its time is `timeout` seconds from now.

        Args:
            timeout: Seconds.
            pauses: Whether the end of its time pauses it; None leaves that.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: It is running, or changes its state for too long.
        """
        with self._taking_turn():
            self._resume(timeout, pauses=pauses)

    def connect(self, timeout: float, *, pauses: bool | None = None) -> bool:
        """Make sure that it runs, for `timeout` seconds at least.

        Returns:
            Whether it was paused.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: It changes its state for too long.
        """
        with self._taking_turn():
            if self.life.state is State.PAUSED:
                self._resume(timeout, pauses=pauses)
                return True
            self._set_end(extended_end(self.life.ends, self._now(), timeout))
            self._set_pauses(pauses=pauses)
            return False

    def wake(self) -> None:
        """Resume it for a data request if it is paused; its time is as at creation."""
        with self._taking_turn():
            if self.life.state is State.PAUSED:
                self._resume(float(self.identity.options.timeout))

    def set_timeout(self, seconds: float) -> None:
        """End its time `seconds` from now, be that later or sooner.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: It is paused, or changes its state for too long.
        """
        with self._taking_turn():
            if self.life.state is State.PAUSED:
                raise SandboxStateError(f"sandbox {self.id} is paused: resume it first")
            self._set_end(self._now() + seconds)

    def extend(self, seconds: float) -> None:
        """End its time `seconds` from now, unless that is sooner.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: It changes its state for too long.
        """
        with self._taking_turn():
            self._set_end(extended_end(self.life.ends, self._now(), seconds))

    def kill(self, event: Event, *, grace: float = _KILL_GRACE) -> bool:
        """End it; return when its last process and its folder are gone.

        Returns:
            False at once if it is being killed already; `ended` tells when it is.

        Blocking: a transition under way, then about `grace` seconds.
        """
        if not self._doom():
            return False
        self._end(event, grace)
        return True

    def _resume(self, timeout: float, *, pauses: bool | None = None) -> None:
        self._timeout = timeout
        self._apply(Event.RESUME)
        self._set_pauses(pauses=pauses)

    def _set_pauses(self, *, pauses: bool | None) -> None:
        if pauses is not None:
            self.life = attrs.evolve(self.life, pauses=pauses)

    @contextmanager
    def _taking_turn(self) -> Iterator[None]:
        try:
            with self._turns.taken():
                before = self.life
                try:
                    yield
                finally:
                    if self.life is not before:
                        self._around.on_life(self)
        finally:
            self._notify()

    def _apply(self, event: Event) -> None:
        """Make the transition; the caller has the turn."""
        outcome = step(self.life.state, event)
        for effect in outcome.effects:
            self._carry_out(effect)
        self._enter(outcome)
        self._note("state")

    def _enter(self, outcome: Step) -> None:
        self.life = attrs.evolve(self.life, state=outcome.state, reason=outcome.reason)

    def _carry_out(self, effect: Effect) -> None:
        if effect is Effect.ARM_TTL:
            self._set_end(self._now() + self._timeout)
            self._due.idle.start()
        elif effect is Effect.ARM_PAUSED_TTL:
            self._due.idle.stop()
            self._set_end(self._now() + self._around.paused_timeout)
        elif effect is Effect.FREEZE:
            self.processes().pause()
        elif effect is Effect.THAW:
            self.processes().resume()

    def _set_end(self, ends: float) -> None:
        left = timedelta(seconds=ends - self._now())
        self.life = attrs.evolve(self.life, ends=ends, end_at=self._around.utc() + left)
        self._due.at(ends)

    def _look(self) -> None:
        """End it, or pause it, if an end of it has come."""
        with self._turns.awaited():
            event = None
            if not self.doomed:
                event = self._due.event(self.life.state, self.life.ends)
            ends = event is not None and not self._pauses_at(event) and self._doom()
        if event is not None and ends:
            self._end(event, _KILL_GRACE)
        else:
            self._notify()

    def _pauses_at(self, end: Event) -> bool:
        """Pause it if that is its end; one that cannot be paused has to be killed."""
        event = at_end(end, state=self.life.state, pauses=self.life.pauses)
        if event is not Event.PAUSE:
            return False
        try:
            self._apply(event)
        except (NotFoundError, SandboxStateError) as error:
            _log.warning("sandbox %s is killed, not paused: %s", self.id, error)
            return False
        self._around.on_life(self)
        return True

    def _doom(self) -> bool:
        """Let nobody use it any more; return whether the caller is to end it."""
        first = self._turns.doom()
        self._due.cancel()
        return first

    def _end(self, event: Event, grace: float) -> None:
        """End all processes of what the caller has doomed, and tell of it."""
        try:
            with self._turns.awaited():
                self._enter(step(self.life.state, event))
                # Before the first process ends: what was killed is not taken up again.
                self._around.on_life(self)
                self._kill_processes(grace)
        finally:
            self._finish()

    def _kill_processes(self, grace: float) -> None:
        """Kill them; try again if that fails, as for want of descriptors.

        In the end its slot has to be free all the same: what is left then is swept.
        """
        if self._running is None:
            return
        never = threading.Event()
        for _ in range(_KILL_RETRIES):
            try:
                self._running.kill(grace)
            except Exception:  # noqa: BLE001 - raised by the last try
                _log.exception("the processes of sandbox %s live on", self.id)
                never.wait(_KILL_PAUSE)
            else:
                return
        self._running.kill(grace)

    def _finish(self) -> None:
        try:
            self._around.on_end(self)
        finally:
            self.ended.set()
            self._note("state")
            self._notify()

    def _on_agent(self, status: AgentStatus) -> None:
        self._note("agent", status)
        self._notify()

    def _on_lost(self, reason: LostReason) -> None:
        event = Event.MEMORY if reason == "memory" else Event.LOST
        _log.warning("sandbox %s is lost: %s", self.id, reason)
        self._around.background(lambda: self.kill(event, grace=0.0))

    def _note(self, kind: Kind, agent: AgentStatus | None = None) -> None:
        self._changes.note(self._change(kind, agent))

    def _change(self, kind: Kind, agent: AgentStatus | None = None) -> Change:
        life = self.life
        return Change(
            kind=kind,
            state=life.state,
            reason=life.reason,
            agent=agent or self.agent,
            at=self._around.utc(),
        )

    def _notify(self) -> None:
        self._turns.notify()
        self._changes.tell()

    def _now(self) -> float:
        return self._around.monotonic()

    def __repr__(self) -> str:
        return f"LiveSandbox({self.id}, {self.life.state.value})"


def _new_life(identity: Identity, around: Surroundings) -> Life:
    now, timeout = around.utc(), float(identity.options.timeout)
    return Life(
        state=State.STARTING,
        started_at=now,
        end_at=now + timedelta(seconds=timeout),
        ends=around.monotonic() + timeout,
        pauses=identity.options.pauses,
    )
