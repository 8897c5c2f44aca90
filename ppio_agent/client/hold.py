"""One sandbox as a client holds it: its state, its time to live, its end."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent.exceptions import (
    ConflictError,
    PPIOAgentError,
    SandboxCreationError,
    SessionNotFoundError,
)
from ppio_agent.hooks import SessionEvent
from ppio_agent.transport import pause, shielded
from ppio_agent.wire.models import PingResponse, SandboxDetail

from .caretaker import Caretaker
from .control import ControlPlane
from .launch import Launched
from .limits import KILL_LIMIT, seconds
from .pulse import SessionPulse
from .readiness import Readiness
from .reference import SessionRef
from .state import (
    Action,
    SessionState,
    SessionStatus,
    closed_error,
    seconds_left,
    state_of,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxHold"]

_log = logging.getLogger(__name__)
_EXTEND_LIMIT = 10.0
_EXTEND_AGAIN_AFTER = 5.0


class SandboxHold:
    """A hold on one sandbox: what a session is, apart from its invocations.

    Args:
        launched: The sandbox and what speaks to its agent.
        control: The platform.
        caretaker: Extends its time to live.
        state: What the platform says of it.
        owned: Whether its client ends it when the client is closed.
        on_closed: Is told when there is nothing left to end.
        on_change: Is told of each new state, if anybody cares.

    Attributes:
        auto_resume: Whether an invocation resumes a paused session first.

    Thread safety: thread-safe. In a forked child it may go on to be used, but ends
    nothing: the sandbox is the parent's.
    """

    def __init__(
        self,
        launched: Launched,
        *,
        control: ControlPlane,
        caretaker: Caretaker,
        state: SessionState = SessionState.ACTIVE,
        owned: bool = True,
        on_closed: Callable[[Any], None],
        on_change: Callable[[SessionEvent], object] | None = None,
    ) -> None:
        self.auto_resume = False
        ref = self._ref = launched.ref
        self._sandbox_id = ref.sandbox_id
        self._start_timeout = launched.start_timeout
        self._timeout = launched.timeout
        self._control = control
        self._port = launched.port
        self._caretaker = caretaker
        self._owned = owned
        self._on_closed = on_closed
        tell = None if on_change is None else _teller(ref, on_change)
        self._pulse = SessionPulse(ref.sandbox_id, state, on_change=tell)
        self._expires = launched.expires
        self._not_before = 0.0
        self._ttl = ref.time_to_live

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox."""
        return self._sandbox_id

    @property
    def template_id(self) -> str:
        """Id of the template that the sandbox was made from."""
        return self._ref.template_id

    @property
    def session_id(self) -> str:
        """Id of the conversation; that of the sandbox if none was chosen."""
        return self._ref.session_id

    @property
    def owned(self) -> bool:
        """Whether closing its client ends the sandbox."""
        return self._owned

    def disown(self) -> None:
        """Let the sandbox outlive its client; its time to live ends it then."""
        self._owned = False

    @property
    def gone(self) -> bool:
        """Whether there is nothing left that closing it would end."""
        return self._pulse.gone

    @property
    def lost(self) -> bool:
        """Whether the platform said that the sandbox is gone, before it was closed."""
        return self._pulse.lost

    def began(self) -> SessionEvent:
        """Return the record that says that it is new here."""
        return _event(self._ref, None, self.state)

    @property
    def state(self) -> SessionState:
        """What the session can be used for, as last seen; see `get_status`."""
        return self._pulse.state

    @property
    def expires_at(self) -> datetime:
        """When the sandbox ends, unless its time to live is extended."""
        return utc_now() + timedelta(seconds=self._expires - time.monotonic())

    @property
    def busy(self) -> bool:
        """Whether a call of this session runs."""
        return bool(self._pulse.calls)

    @property
    def extend_at(self) -> float:
        """Monotonic instant from which the time to live should be extended.

        That is when a third of it is left; not at once again after a failure.
        """
        return max(self._expires - self._ttl / 3, self._not_before)

    def snapshot(self) -> SessionStatus:
        """Return what is known of the session, without asking anybody."""
        return self._status()

    def _status(
        self, detail: SandboxDetail | None = None, agent: PingResponse | None = None
    ) -> SessionStatus:
        return SessionStatus(
            state=self.state,
            sandbox_state=None if detail is None else str(detail.state.value),
            agent=agent,
            expires_at=self.expires_at,
            in_flight=len(self._pulse.calls),
            sandbox_id=self._sandbox_id,
            template_id=self.template_id,
            session_id=self.session_id,
        )

    def ping(self) -> PingResponse:
        """Ask the agent how it is.

        Returns:
            Its answer, also if it says that it is unhealthy.

        Raises:
            InvocationError: The session is paused; nothing was sent.
            NetworkError, AgentUnreachableError: The agent cannot be reached.
        """
        self._pulse.check(Action.PING)
        return self._port.ping(self._deadline())[0]

    def get_status(self) -> SessionStatus:
        """Ask the platform and the agent, and bring `state` up to date.

        A sandbox that is gone is an answer, too: the state is `CLOSED` then.
        """
        return self.ask(self._deadline())

    def ask(self, deadline: Deadline) -> SessionStatus:
        """Do as `get_status`, within a deadline."""
        since = self._pulse.version
        try:
            detail = self._control.get_sandbox(self._sandbox_id, deadline)
        except SessionNotFoundError:
            self._mark_gone()
            return self._status()
        left = seconds_left(detail, utc_now(), at_most=self._ttl)
        self._expires = time.monotonic() + left
        seen, agent = state_of(detail), None
        if seen is SessionState.ACTIVE:
            try:
                agent, _ = self._port.ping(deadline)
            except PPIOAgentError:
                pause(Deadline.after(0.0))  # raises if it was the caller who gave up
                seen = SessionState.ERROR
        self._pulse.observe(seen, since=since)
        return self._status(detail, agent)

    def pause(self, *, force: bool = False) -> None:
        """Freeze the sandbox: it keeps its memory and takes no invocations.

        Args:
            force: Also while invocations run; they wait inside it.

        Raises:
            ConflictError: Invocations run, or the state does not allow it.
        """
        with self._pulse.transition(
            Action.PAUSE, to=SessionState.PAUSED, deadline=self._deadline()
        ) as needed:
            if not needed:
                return
            if self.busy and not force:
                raise ConflictError(
                    f"{len(self._pulse.calls)} invocations run in sandbox"
                    f" {self._sandbox_id}; wait for them, or pause(force=True)"
                )
            with self._noting_loss():
                self._freeze()
            self._pulse.become(SessionState.PAUSED)

    def _freeze(self) -> None:
        try:
            self._control.pause_sandbox(self._sandbox_id, self._deadline())
        except ConflictError:
            # It is paused already, or it changes its state: which of the two?
            detail = self._control.get_sandbox(self._sandbox_id, self._deadline())
            if state_of(detail) is not SessionState.PAUSED:
                raise

    def resume(self, timeout: float | None = None) -> None:
        """Thaw the sandbox and wait until its agent answers.

        Args:
            timeout: New time to live in seconds; None keeps that of the session.

        Raises:
            SandboxCreationError: The agent did not become ready; see `get_status`.
            SessionNotFoundError: The sandbox is gone.
        """
        ttl = seconds("timeout", timeout, none="keeps that of the session")
        self._resume(ttl or self._ttl, Deadline.after(None))

    def _resume(self, ttl: float, deadline: Deadline) -> None:
        with self._pulse.transition(
            Action.RESUME,
            to=SessionState.ACTIVE,
            deadline=deadline.earlier(self._control.request_timeout),
        ) as needed:
            if not needed:
                return
            asked_at = time.monotonic()
            with self._noting_loss():
                self._control.connect_sandbox(
                    self._sandbox_id,
                    ttl,
                    auto_pause=self._ref.auto_pause,
                    deadline=deadline,
                )
            self._ttl, self._expires = ttl, asked_at + ttl
            try:
                with self._noting_loss():
                    self.wait_ready(deadline)
            except SandboxCreationError:
                # The agent failed. A caller who gives up leaves the session paused:
                # the next one resumes it.
                self._pulse.become(SessionState.ERROR)
                raise
            self._pulse.become(SessionState.ACTIVE)

    def wait_ready(self, deadline: Deadline) -> None:
        """Wait until the agent answers, at most for the time it has to start."""
        readiness = Readiness(
            port=self._port,
            control=self._control,
            sandbox_id=self._sandbox_id,
            template_id=self.template_id,
            deadline=deadline,
        )
        readiness.wait(deadline.earlier(self._start_timeout))

    def refresh(self, timeout_seconds: float | None = None) -> None:
        """Let the sandbox live for `timeout_seconds` from now; None: as before.

        Raises:
            ConflictError: It is paused.
            SessionNotFoundError: It is gone, or was given up.
        """
        ttl = seconds("timeout_seconds", timeout_seconds, none="keeps it") or self._ttl
        self._pulse.check(Action.REFRESH)
        self._refresh(ttl, Deadline.after(None))

    def _refresh(self, ttl: float, deadline: Deadline) -> None:
        asked_at = time.monotonic()
        with self._noting_loss():
            self._control.set_timeout(self._sandbox_id, ttl, deadline)
        self._ttl, self._expires = ttl, asked_at + ttl

    def extend(self, deadline: Deadline | None = None) -> None:
        """Let the sandbox live for its whole time to live from now on.

        Args:
            deadline: When to give up; in any case soon, since others wait for it.
        """
        again = time.monotonic() + min(_EXTEND_AGAIN_AFTER, self._ttl / 10)
        if self.state not in {SessionState.ACTIVE, SessionState.ERROR}:
            self._not_before = again
            return
        deadline = (deadline or Deadline.after(None)).earlier(_EXTEND_LIMIT)
        try:
            self._refresh(self._ttl, deadline)
        except PPIOAgentError:
            self._not_before = again
            raise

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except SessionNotFoundError:
            self._mark_gone()
            raise

    def close(self) -> None:
        """End the sandbox; calls that run in it end with `SessionClosedError`.

        Their runs are cancelled first: a platform may give an agent that is still at
        work some time to finish.

        Idempotent, and done also inside a `CallScope` that was aborted. A sandbox that
        is gone already is no error; after a failure, which is raised, the next call
        tries again. In a forked child the sandbox stays: it
        is the parent's.
        """
        ours = self._pulse.begin_close()
        running = [call.invocation_id for call in tuple(self._pulse.calls)]
        self.abort(closed_error(self._sandbox_id))
        if ours:
            with shielded():
                self._port.stop(running)
                limit = Deadline.after(KILL_LIMIT)
                self._control.kill_sandbox(self._sandbox_id, limit)
            self._mark_gone()

    def detach(self) -> SessionRef:
        """Give the sandbox up without ending it: its time to live will.

        The session is `INACTIVE` then; closing it or its client ends nothing.

        Returns:
            What `AgentRuntimeClient.attach_session` takes, in this or another process.

        Raises:
            ConflictError: Invocations run.
            SessionClosedError: There is nothing to give up any more.
        """
        self._pulse.give_up()
        self._on_closed(self)
        return self._reference()

    def release(self, error: PPIOAgentError) -> None:
        """End the calls that run with `error`, and let go of the sandbox."""
        self.abort(error)
        self._pulse.give_up(force=True)
        self._on_closed(self)

    def _reference(self) -> SessionRef:
        return attrs.evolve(self._ref, time_to_live=self._ttl)

    def abort(self, error: PPIOAgentError) -> None:
        """End the calls that run with `error`; the sandbox lives on."""
        for call in tuple(self._pulse.calls):
            call.handle.abort(error)

    def dispose(self) -> None:
        """Close, but only log a failure: the client tries again when it is closed."""
        try:
            self.close()
        except PPIOAgentError as error:
            _log.warning("ending sandbox %s failed: %s", self._sandbox_id, error)

    def _deadline(self) -> Deadline:
        return Deadline.after(self._control.request_timeout)

    def _look_at_platform(self, deadline: Deadline) -> SessionState:
        """Find out what became of the sandbox when the edge does not know it."""
        since = self._pulse.version
        try:
            detail = self._control.get_sandbox(self._sandbox_id, deadline)
        except SessionNotFoundError:
            self._mark_gone()
        except PPIOAgentError as error:
            _log.warning("asking for sandbox %s failed: %s", self._sandbox_id, error)
        else:
            if state_of(detail) is SessionState.PAUSED:
                self._pulse.observe(SessionState.PAUSED, since=since)
        return self.state

    def _mark_gone(self) -> None:
        """Note that the sandbox does not exist any more."""
        if self._pulse.mark_gone():
            self._on_closed(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return copy.copy, (self._reference(),)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.dispose()  # its failure must not hide the error that is under way

    def __del__(self) -> None:
        if self._owned and not self._pulse.gone:
            warnings.warn(
                f"the session on sandbox {self._sandbox_id} was not closed",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self._sandbox_id}, template={self.template_id},"
            f" state={self.state.value})"
        )


def _teller(
    ref: SessionRef, on_change: Callable[[SessionEvent], object]
) -> Callable[[SessionState, SessionState], None]:
    # Not a method: the session would be in a cycle with its pulse, and live until the
    # garbage collector comes.
    def tell(before: SessionState, after: SessionState) -> None:
        on_change(_event(ref, before, after))

    return tell


def _event(
    ref: SessionRef, before: SessionState | None, after: SessionState
) -> SessionEvent:
    return SessionEvent(
        sandbox_id=ref.sandbox_id,
        session_id=ref.session_id,
        template_id=ref.template_id,
        before=None if before is None else before.value,
        after=after.value,
    )
