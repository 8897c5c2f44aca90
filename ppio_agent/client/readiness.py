"""Wait until the agent in a sandbox answers: never a fixed sleep, never for ever."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Mapping

from attrs import evolve, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ClientClosedError,
    ConflictError,
    NetworkError,
    PPIOAgentError,
    RequestTimeoutError,
    SandboxCreationError,
    ServiceUnavailableError,
    SessionNotFoundError,
)
from ppio_agent.transport import pause
from ppio_agent.wire.json import Json

from .agent_port import AgentPort
from .control import ControlPlane
from .envd import AgentStart

__all__ = ["Readiness", "ends_waiting", "poll_delays"]

_FIRST_DELAY, _GROWTH, _LONGEST_DELAY = 0.010, 1.5, 0.5
_LOG_TAIL_BYTES = 4096
_DETAIL_LIMIT = 5.0
# What a caller whose time is up waits for it all the same.
_LATE_DETAIL_LIMIT = 0.5
# An agent that ended may have found that its template had started one already.
_GRACE = 1.0
# The edge may learn of a new sandbox, or of its controller, late; it says so by these.
_EDGE_LAG = 5.0
_NOT_YET = (
    AgentUnreachableError,
    ConflictError,
    ServiceUnavailableError,
    SessionNotFoundError,
)


def poll_delays() -> Iterator[float]:
    """Yield the pauses between two pings, in seconds: 10, 15, 22 … up to 500 ms."""
    delay = _FIRST_DELAY
    while True:
        yield delay
        delay = min(delay * _GROWTH, _LONGEST_DELAY)


def ends_waiting(error: PPIOAgentError) -> bool:
    """Tell whether an answer to a ping says that no later one will be better."""
    if isinstance(error, AgentUnreachableError):
        return error.exit_code is not None
    if isinstance(error, NetworkError):
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                return True
            cause = cause.__cause__ or cause.__context__
    return isinstance(error, (AuthenticationError, ClientClosedError))


@frozen(kw_only=True)
class Readiness:
    """Waits for one agent.

    Attributes:
        deadline: Of all that the caller does.
        start: The start of the agent, if it was started here; says if it ends.

    Thread safety: immutable.
    """

    port: AgentPort
    control: ControlPlane
    sandbox_id: str
    template_id: str
    deadline: Deadline
    start: AgentStart | None = None

    def is_ready(self, deadline: Deadline) -> bool:
        """Ping once; raise what ends the waiting."""
        return self._ping(deadline) is None

    def start_and_wait(
        self, start: Callable[[Deadline], AgentStart], deadline: Deadline
    ) -> None:
        """Start the agent, unless it comes up by itself, and ping until it is ready.

        Args:
            start: Starts it.
            deadline: When to give up.

        Raises:
            PPIOAgentError: What `start` raises, or as `wait`.
        """
        started = self._started(start, deadline)
        if started is not None:
            with started:
                evolve(self, start=started).wait(deadline)

    def _started(
        self, start: Callable[[Deadline], AgentStart], deadline: Deadline
    ) -> AgentStart | None:
        """Return the start of the agent; None if it came up by itself meanwhile."""
        lag = deadline.earlier(_EDGE_LAG)
        delays = poll_delays()
        while True:
            try:
                return start(deadline)
            except RequestTimeoutError as error:
                if not deadline.expired:
                    raise
                raise self._gave_up("its agent was not ready in time") from error
            except _NOT_YET:
                if lag.expired:
                    raise
            pause(lag.earlier(next(delays)))
            if self.is_ready(deadline):
                return None

    def check_agent(self) -> None:
        """Raise if the platform says that there is no agent, and none will be started.

        Raises:
            SandboxCreationError: That is so.
        """
        if self._agent().get("phase") == "none":
            raise self._failed("its template has no agent: deploy one", stage="start")

    def wait(self, deadline: Deadline) -> None:
        """Ping until the agent is ready.

        Args:
            deadline: When to give up.

        Raises:
            SandboxCreationError: It ended, or was not ready in time; with its last
                output.
            RequestTimeoutError: The caller's own time ran out before.
            SessionNotFoundError: The sandbox is gone.
        """
        limit = deadline
        for delay in poll_delays():
            over = self.start is not None and self.start.over
            if over and limit is deadline:
                limit = deadline.earlier(_GRACE)
            seen = self._ping(limit)
            if seen is None:
                return
            if limit.expired:
                raise self._gave_up(f"its agent was not ready in time: {seen}")
            if isinstance(seen, SessionNotFoundError) and delay >= _LONGEST_DELAY:
                # The edge may learn of a sandbox late; the control plane knows.
                self.control.get_sandbox(self.sandbox_id, deadline)
            if self.start is None or over:
                pause(limit.earlier(delay))
            else:
                self.start.pause(limit.earlier(delay))

    def _gave_up(self, why: str) -> PPIOAgentError:
        """Return the error of an agent that is not ready: how it ended, if it did."""
        start = self.start
        if start is not None and start.ended is not None:
            return self._failed(
                f"its agent ended ({start.ended.status})",
                stage="start",
                exit_code=start.ended.exit_code,
            )
        if start is not None and start.failure is not None:
            return start.failure
        if self.deadline.expired:
            return RequestTimeoutError(
                f"the time ran out while the agent in sandbox {self.sandbox_id} was"
                f" waited for: {why}",
                phase="response",
            )
        return self._failed(why)

    def _ping(self, deadline: Deadline) -> Exception | str | None:
        """Return None if the agent is ready, else what says that it is not yet."""
        try:
            answer, well = self.port.ping(deadline)
        except PPIOAgentError as error:
            if not ends_waiting(error):
                return error
            if isinstance(error, AgentUnreachableError):
                code = error.exit_code or 0
                how = f"by signal {-code}" if code < 0 else f"with exit status {code}"
                raise self._failed(f"its agent ended {how}", exit_code=code) from error
            raise
        if well:
            return None
        return f"it says {answer.status.value}: {answer.message or 'no reason'}"

    def _failed(
        self, why: str, *, stage: str = "ready", exit_code: int | None = None
    ) -> SandboxCreationError:
        seen = "" if self.start is None else self.start.log_tail
        log_tail = seen or self._log_tail()
        last = log_tail.strip().rpartition("\n")[2]
        told = f"; it last wrote {last!r}" if last else ""
        return SandboxCreationError(
            f"the sandbox {self.sandbox_id} of template {self.template_id} is of no"
            f" use: {why}{told}",
            sandbox_id=self.sandbox_id,
            stage=stage,
            exit_code=exit_code,
            log_tail=log_tail,
        )

    def _log_tail(self) -> str:
        tail = self._agent().get("logTail")
        return tail[-_LOG_TAIL_BYTES:] if isinstance(tail, str) else ""

    def _agent(self) -> Mapping[str, Json]:
        """Return what the platform knows of the agent; empty if it does not tell."""
        left = self.deadline.bound(_DETAIL_LIMIT) or 0.0
        limit = Deadline.after(max(left, _LATE_DETAIL_LIMIT))
        try:
            detail = self.control.get_sandbox(self.sandbox_id, limit)
        except PPIOAgentError:
            return {}  # the failure itself is what the caller has to know
        return detail.agent or {}
