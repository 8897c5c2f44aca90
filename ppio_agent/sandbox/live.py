"""One live sandbox: its state machine with the processes behind it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import attrs
from attrs import field, frozen

from ppio_agent._util.clock import utc_now
from ppio_agent.exceptions import NotFoundError, SandboxStateError
from ppio_agent.sandbox.backends.base import (
    AgentStatus,
    Backend,
    LostReason,
    RunningSandbox,
    SandboxSpec,
)

from .limits import extended_end
from .machine import Effect, EndReason, Event, State, on_ttl, step
from .options import CreateOptions
from .records import Build
from .timers import Timer, Timers

__all__ = ["Identity", "Life", "LiveSandbox", "Surroundings", "not_found"]

_log = logging.getLogger(__name__)

TURN_TIMEOUT: Final = 10.0
"""Longest a request waits while the sandbox changes its state, in seconds."""

_KILL_GRACE: Final = 2.0


@frozen(kw_only=True)
class Identity:
    """What never changes about a sandbox.

    Attributes:
        id: Its id.
        tenant: Whose it is.
        alias: Name of its template.
        build: What it was made from.
        options: How its creator wanted it.
        root: Its folder.
        access_token: What callers of envd must show; None is no check.
    """

    id: str
    tenant: str
    alias: str
    build: Build
    options: CreateOptions
    root: Path
    access_token: str | None = field(default=None, repr=False)

    def spec(self) -> SandboxSpec:
        """Return what a backend needs to start it."""
        return SandboxSpec(
            sandbox_id=self.id,
            template_id=self.build.template_id,
            root=self.root,
            entrypoint=self.build.entrypoint,
            env=self.options.env,
            start_timeout=float(self.build.start_timeout),
            memory_mb=self.build.memory_mb,
            cpus=self.build.cpus,
            access_token=self.access_token,
        )


@frozen(kw_only=True)
class Life:
    """What changes about a sandbox; replaced as a whole, so readers need no lock.

    Attributes:
        state: Its state.
        started_at: When it was ready, or accepted while it starts.
        end_at: When its time is over.
        ends: The same as an instant of the monotonic clock.
        pauses: Whether the end of its time pauses it.
        reason: Why it was killed.
    """

    state: State
    started_at: datetime
    end_at: datetime
    ends: float
    pauses: bool
    reason: EndReason | None = None


@frozen(kw_only=True)
class Surroundings:
    """What a sandbox needs of its platform.

    Attributes:
        backend: Starts it.
        timers: Its clock.
        background: Runs a function on another thread.
        on_end: Called once, when its last process is gone.
        paused_timeout: Seconds a paused sandbox is kept.
        monotonic: The clock of `timers`.
    """

    backend: Backend
    timers: Timers
    background: Callable[[Callable[[], object]], None]
    on_end: Callable[[LiveSandbox], None]
    paused_timeout: float
    monotonic: Callable[[], float] = time.monotonic


class LiveSandbox:
    """A sandbox from the moment it is accepted until its last process is gone.

    Thread safety: thread-safe. Transitions take turns; a kill that comes while another
    is under way is carried out right after it and is never lost.
    """

    def __init__(self, identity: Identity, around: Surroundings) -> None:
        self.identity = identity
        self._around = around
        now = utc_now()
        timeout = identity.options.timeout
        self.life = Life(
            state=State.STARTING,
            started_at=now,
            end_at=now + timedelta(seconds=timeout),
            ends=around.monotonic() + timeout,
            pauses=identity.options.pauses,
        )
        self.ended = threading.Event()
        self._timeout = float(timeout)
        self._running: RunningSandbox | None = None
        # Orders transitions and is held over their I/O; readers never take it.
        self._turn = threading.Lock()
        # Guards _doomed and _timer; notified on each change of state or agent.
        self._changed = threading.Condition()
        self._doomed = False
        self._timer: Timer | None = None

    @property
    def id(self) -> str:
        """Its id."""
        return self.identity.id

    @property
    def doomed(self) -> bool:
        """Whether it is being killed, or has been: nobody may use it any more."""
        return self._doomed

    @property
    def changing(self) -> bool:
        """Whether it is on its way from one state to another."""
        return self._turn.locked()

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
        if self._running is None or self._doomed:
            raise not_found(self.id)
        return self._running

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition on its state or its agent holds.

        Args:
            condition: Looks at this sandbox; quick, and without waiting itself.
            timeout: Most seconds.

        Returns:
            Whether it holds.
        """
        with self._changed:
            return self._changed.wait_for(condition, timeout)

    def start(self, prepare: Callable[[], object]) -> None:
        """Start its processes; return when its supervisor is ready.

        Args:
            prepare: Fills its folder first.

        Raises:
            SandboxStartError: The supervisor did not come up.
            SandboxStateError: It was killed meanwhile.

        Whatever is raised, nothing of it is left.
        """
        try:
            with self._turn:
                if not self._doomed:
                    prepare()
                    self._running = self._around.backend.start(
                        self.identity.spec(),
                        on_agent=lambda _status: self._notify(),
                        on_lost=self._on_lost,
                    )
                if not self._doomed:
                    self.life = attrs.evolve(self.life, started_at=utc_now())
                    self._apply(Event.READY)
        except BaseException:
            self.kill(Event.START_FAILED, grace=0.0)
            raise
        self._notify()
        if self._doomed:
            self.ended.wait(TURN_TIMEOUT)
            raise SandboxStateError(f"sandbox {self.id} was killed while it started")

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
        with self._turn:
            self._destroy(event, grace)
        self._finish()
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
        if not self._turn.acquire(timeout=TURN_TIMEOUT):
            raise SandboxStateError(f"sandbox {self.id} is changing state: try again")
        try:
            if self._doomed:
                raise not_found(self.id)
            yield
        finally:
            self._turn.release()
            self._notify()

    def _apply(self, event: Event) -> None:
        """Make the transition; the caller has the turn."""
        outcome = step(self.life.state, event)
        for effect in outcome.effects:
            self._carry_out(effect)
        self.life = attrs.evolve(self.life, state=outcome.state, reason=outcome.reason)

    def _carry_out(self, effect: Effect) -> None:
        if effect is Effect.ARM_TTL:
            self._set_end(self._now() + self._timeout)
        elif effect is Effect.ARM_PAUSED_TTL:
            self._set_end(self._now() + self._around.paused_timeout)
        elif effect is Effect.FREEZE:
            self.processes().pause()
        elif effect is Effect.THAW:
            self.processes().resume()

    def _set_end(self, ends: float) -> None:
        left = timedelta(seconds=ends - self._now())
        self.life = attrs.evolve(self.life, ends=ends, end_at=utc_now() + left)
        with self._changed:
            if self._timer is not None:
                self._timer.cancel()
            if not self._doomed:
                self._timer = self._around.timers.at(
                    ends, lambda: self._around.background(self._expire)
                )

    def _expire(self) -> None:
        try:
            with self._taking_turn():
                if self._now() < self.life.ends:
                    return  # extended meanwhile, by which a new timer was set
                event = on_ttl(self.life.state, pauses=self.life.pauses)
                if event is Event.PAUSE:
                    self._apply(event)
                    return
                if not self._doom():
                    return
                self._destroy(event, _KILL_GRACE)
        except NotFoundError:
            return
        self._finish()

    def _doom(self) -> bool:
        with self._changed:
            if self._doomed:
                return False
            self._doomed = True
            if self._timer is not None:
                self._timer.cancel()
            self._changed.notify_all()
            return True

    def _destroy(self, event: Event, grace: float) -> None:
        """End all processes; the caller has doomed it and has the turn."""
        outcome = step(self.life.state, event)
        self.life = attrs.evolve(self.life, state=outcome.state, reason=outcome.reason)
        if self._running is not None:
            self._running.kill(grace)

    def _finish(self) -> None:
        try:
            self._around.on_end(self)
        finally:
            self.ended.set()
            self._notify()

    def _on_lost(self, reason: LostReason) -> None:
        event = Event.MEMORY if reason == "memory" else Event.LOST
        _log.warning("sandbox %s is lost: %s", self.id, reason)
        self._around.background(lambda: self.kill(event, grace=0.0))

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _now(self) -> float:
        return self._around.monotonic()

    def __repr__(self) -> str:
        return f"LiveSandbox({self.id}, {self.life.state.value})"


def not_found(sandbox_id: str) -> NotFoundError:
    """Return the error for a sandbox that the caller cannot see."""
    return NotFoundError(
        f"sandbox {sandbox_id} was not found", code="sandbox_not_found"
    )
