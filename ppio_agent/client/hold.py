"""One sandbox as a client holds it: its state, its time to live, its end."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent.exceptions import (
    ConflictError,
    PPIOAgentError,
    SessionNotFoundError,
)
from ppio_agent.wire.models import PingResponse, SandboxDetail, SandboxState

from .agent_port import AgentPort
from .caretaker import Caretaker
from .control import ControlPlane
from .limits import seconds
from .readiness import Readiness
from .state import SessionPlan, SessionPulse, SessionState, SessionStatus

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxHold"]

_log = logging.getLogger(__name__)
_KILL_LIMIT = 10.0


class SandboxHold:
    """A hold on one sandbox: what a session is, apart from its invocations.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        plan: SessionPlan,
        *,
        sandbox_id: str,
        control: ControlPlane,
        port: AgentPort,
        caretaker: Caretaker,
        on_closed: Callable[[Any], None],
        expires: float,
    ) -> None:
        self.auto_resume = False
        self._plan = plan
        self._sandbox_id = sandbox_id
        self._control = control
        self._port = port
        self._caretaker = caretaker
        self._on_closed = on_closed
        self._pulse = SessionPulse(sandbox_id)
        self._expires = expires
        self._ttl = plan.time_to_live

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox."""
        return self._sandbox_id

    @property
    def template_id(self) -> str:
        """Id of the template that the sandbox was made from."""
        return self._plan.template_id

    @property
    def session_id(self) -> str:
        """Id of the conversation; that of the sandbox if none was chosen."""
        return self._port.session_id

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
        """Monotonic instant at which a third of the time to live is left."""
        return self._expires - self._ttl / 3

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
            NetworkError, AgentUnreachableError: It cannot be reached.
        """
        self._pulse.check_open()
        return self._port.ping(self._deadline())[0]

    def get_status(self) -> SessionStatus:
        """Ask the platform and the agent, and bring `state` up to date."""
        deadline = Deadline.after(self._control.request_timeout)
        try:
            detail = self._control.get_sandbox(self._sandbox_id, deadline)
        except SessionNotFoundError:
            self._mark_gone()
            return self._status()
        if detail.state != SandboxState.RUNNING:
            paused = detail.state == SandboxState.PAUSED
            self._pulse.become(SessionState.PAUSED if paused else SessionState.INACTIVE)
            return self._status(detail)
        try:
            agent, _ = self._port.ping(deadline)
        except PPIOAgentError:
            self._pulse.become(SessionState.ERROR)
            return self._status(detail)
        self._pulse.become(SessionState.ACTIVE)
        return self._status(detail, agent)

    def pause(self, *, force: bool = False) -> None:
        """Freeze the sandbox: it keeps its memory and takes no invocations.

        Args:
            force: Also while invocations run; they wait inside it.

        Raises:
            ConflictError: Invocations run, or the state does not allow it.
        """
        with self._pulse.transition(
            "pause", to=SessionState.PAUSED, deadline=self._deadline()
        ) as needed:
            if not needed:
                return
            if self.busy and not force:
                raise ConflictError(
                    f"{len(self._pulse.calls)} invocations run in sandbox"
                    f" {self._sandbox_id}; wait for them, or pause(force=True)"
                )
            self._control.pause_sandbox(self._sandbox_id, self._deadline())
            self._pulse.become(SessionState.PAUSED)

    def resume(self, timeout: float | None = None) -> None:
        """Thaw the sandbox and wait until its agent answers.

        Args:
            timeout: New time to live in seconds; None keeps that of the session.

        Raises:
            SandboxCreationError: The agent did not become ready; see `get_status`.
            SessionNotFoundError: The sandbox is gone.
        """
        ttl = seconds("timeout", timeout, none="keeps that of the session")
        with self._pulse.transition(
            "resume", to=SessionState.ACTIVE, deadline=self._deadline()
        ) as needed:
            if not needed:
                return
            ttl, asked_at = ttl or self._ttl, time.monotonic()
            with self._noting_loss():
                self._control.connect_sandbox(self._sandbox_id, ttl, self._deadline())
            self._ttl, self._expires = ttl, asked_at + ttl
            try:
                self._wait_ready()
            except PPIOAgentError:
                self._pulse.become(SessionState.ERROR)
                raise
            self._pulse.become(SessionState.ACTIVE)

    def _wait_ready(self) -> None:
        readiness = Readiness(
            port=self._port,
            control=self._control,
            sandbox_id=self._sandbox_id,
            template_id=self.template_id,
        )
        readiness.wait(Deadline.after(self._plan.start_timeout))

    def refresh(self, timeout_seconds: float | None = None) -> None:
        """Let the sandbox live for `timeout_seconds` from now; None: as before."""
        self._pulse.check_open()
        ttl = seconds("timeout_seconds", timeout_seconds, none="keeps it") or self._ttl
        asked_at = time.monotonic()
        with self._noting_loss():
            self._control.set_timeout(self._sandbox_id, ttl, self._deadline())
        self._ttl, self._expires = ttl, asked_at + ttl

    def extend(self) -> None:
        """Let the sandbox live for its whole time to live from now on."""
        if self.state is SessionState.ACTIVE:
            self.refresh()

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except SessionNotFoundError:
            self._mark_gone()
            raise

    def close(self) -> None:
        """End the sandbox; calls that run in it end with `SessionClosedError`.

        Idempotent. A sandbox that is gone already is no error; after a failure, which
        is raised, the next call tries again.
        """
        if not self._pulse.begin_close():
            return
        self.abort(self._pulse.closed_error())
        self._control.kill_sandbox(self._sandbox_id, Deadline.after(_KILL_LIMIT))
        self._mark_gone()

    def abort(self, error: PPIOAgentError) -> None:
        """End the calls that run with `error`; the sandbox lives on."""
        for call in tuple(self._pulse.calls):
            call.abort(error)

    def dispose(self) -> None:
        """Close, but only log a failure: the client tries again when it is closed."""
        try:
            self.close()
        except PPIOAgentError as error:
            _log.warning("ending sandbox %s failed: %s", self._sandbox_id, error)

    def _deadline(self) -> Deadline:
        return Deadline.after(self._control.request_timeout)

    def _look_at_platform(self) -> SessionState:
        """Find out what became of the sandbox when the edge does not know it."""
        try:
            detail = self._control.get_sandbox(self._sandbox_id, self._deadline())
        except SessionNotFoundError:
            self._mark_gone()
        except PPIOAgentError as error:
            _log.warning("asking for sandbox %s failed: %s", self._sandbox_id, error)
        else:
            if detail.state == SandboxState.PAUSED:
                self._pulse.become(SessionState.PAUSED)
        return self.state

    def _mark_gone(self) -> None:
        """Note that the sandbox does not exist any more."""
        if self._pulse.mark_gone():
            self._on_closed(self)

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
        if not self._pulse.gone:
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
