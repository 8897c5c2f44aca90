"""A client's hold on one sandbox and the agent in it."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent.exceptions import (
    ConflictError,
    PPIOAgentError,
    SessionClosedError,
    SessionNotFoundError,
)
from ppio_agent.transport import CallHandle
from ppio_agent.wire.models import (
    InvocationResponse,
    PingResponse,
    SandboxDetail,
    SandboxState,
)

from .agent_port import AgentPort, Call
from .caretaker import Caretaker
from .config import UNSET, Unset
from .control import ControlPlane
from .invocation import AgentRequest, encode_request
from .limits import seconds
from .readiness import Readiness
from .state import (
    SessionPlan,
    SessionPulse,
    SessionState,
    SessionStatus,
    paused_error,
)
from .stream import StreamingResponse

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxSession"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_KILL_LIMIT = 10.0


class SandboxSession:
    """One live sandbox and the agent in it, for as many invocations as wanted.

    Made by `AgentRuntimeClient.create_session`. Use it as a context manager, or close
    it: an open session holds a sandbox.

    Attributes:
        auto_resume: Whether an invocation resumes a paused session first.

    Thread safety: thread-safe; invocations do not wait for one another.

    Blocking: every method waits for the platform or the agent, within
    `ClientConfig.request_timeout` if it takes no timeout of its own.
    """

    def __init__(
        self,
        plan: SessionPlan,
        *,
        sandbox_id: str,
        control: ControlPlane,
        port: AgentPort,
        caretaker: Caretaker,
        on_closed: Callable[[SandboxSession], None],
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

    def invoke(
        self,
        request: AgentRequest,
        *,
        timeout: float | Unset | None = UNSET,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> InvocationResponse:
        """Run the agent once and return its answer.

        Args:
            request: A prompt, an object that is sent as it is, or an
                `InvocationRequest`.
            timeout: Total seconds, retries included; None means no limit. Default:
                `ClientConfig.timeout`.
            idempotency_key: Under which the agent runs this once; made up if None.
            headers: Further headers for the agent.

        Returns:
            The envelope; what a streaming agent gives is collected.

        Raises:
            ValidationError: The request or `timeout` cannot be sent; nothing was.
            InvocationError: The agent failed; code ``session_paused`` if the session
                is paused and nothing was sent.
            SessionNotFoundError: The sandbox is gone; the agent was not reached.
            RequestTimeoutError: The time ran out; `idempotency_key` joins the run.
        """
        call = self._make_call(request, timeout, idempotency_key, headers)

        def run() -> InvocationResponse:
            with self._counted(call.handle):
                return self._port.invoke(call)

        return self._reaching_agent(run)

    def invoke_stream(
        self,
        request: AgentRequest,
        *,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> StreamingResponse:
        """Run the agent once and return its answer piece by piece.

        Args:
            request: As for `invoke`.
            deadline: Total seconds until the end of the stream; None means no limit.
                A silence of `ClientConfig.idle_timeout` ends it in any case.
            idempotency_key: As for `invoke`.
            headers: As for `invoke`.

        Returns:
            The stream, once the agent has begun to answer; read it to the end or
            close it.

        Raises:
            As `invoke`.
        """
        return self.open_stream(
            request, deadline=deadline, idempotency_key=idempotency_key, headers=headers
        )

    def open_stream(
        self,
        request: AgentRequest,
        *,
        owned: bool = False,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> StreamingResponse:
        """Do as `invoke_stream`; with `owned` the session ends with the stream."""
        limit = seconds("deadline", deadline)
        call = self._make_call(request, limit, idempotency_key, headers)
        handle, calls = call.handle, self._pulse.calls

        def ended() -> None:
            calls.discard(handle)
            if owned:
                self.dispose()

        def abandoned() -> None:
            calls.discard(handle)
            if owned:
                self._caretaker.abandon(self)

        def run() -> StreamingResponse:
            self._begin(handle)
            try:
                return self._port.open_stream(call, on_end=ended, on_abandon=abandoned)
            except BaseException:
                calls.discard(handle)
                raise

        return self._reaching_agent(run)

    def _make_call(
        self,
        request: AgentRequest,
        timeout: float | Unset | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        limit = self._plan.timeout if isinstance(timeout, Unset) else timeout
        return Call.make(
            encode_request(request),
            deadline=Deadline.after(seconds("timeout", limit)),
            idempotency_key=idempotency_key,
            headers=headers,
        )

    @contextmanager
    def _counted(self, handle: CallHandle) -> Iterator[None]:
        self._begin(handle)
        try:
            yield
        finally:
            self._pulse.calls.discard(handle)

    def _begin(self, handle: CallHandle) -> None:
        """Count a call in, and see to it that the sandbox outlives it."""
        if self.state is SessionState.PAUSED and self.auto_resume:
            self.resume()
        self._pulse.admit(handle)
        try:
            if time.monotonic() >= self.extend_at:
                self._extend_before_call()
            self._caretaker.watch(self)
        except BaseException:
            self._pulse.calls.discard(handle)
            raise

    def _extend_before_call(self) -> None:
        try:
            self.extend()
        except SessionNotFoundError:
            raise
        except PPIOAgentError as error:
            # The call may well succeed; if it does not, its own error says why.
            _log.warning("extending sandbox %s failed: %s", self._sandbox_id, error)

    def _reaching_agent(self, run: Callable[[], _T]) -> _T:
        """Run a call; if the edge does not know the sandbox, find out why.

        The edge answers alike for a sandbox that is gone and for one that the
        platform froze. In both cases nothing has reached the agent.
        """
        try:
            return run()
        except SessionClosedError:
            raise
        except SessionNotFoundError as error:
            if self._look_at_platform() is not SessionState.PAUSED:
                raise
            if not self.auto_resume:
                raise paused_error(self._sandbox_id) from error
            return run()

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
        readiness.wait(Deadline.after(self._plan.start_timeout), CallHandle())

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

    def detach(self) -> None:
        """Give the sandbox up without ending it: its time to live will.

        The session is `INACTIVE` then; closing it or its client ends nothing.

        Raises:
            ConflictError: Invocations run.
        """
        self._pulse.give_up()
        self._on_closed(self)

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
            f"SandboxSession({self._sandbox_id}, template={self.template_id},"
            f" state={self.state.value})"
        )
