"""Wait until the agent in a sandbox answers: never a fixed sleep, never for ever."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ClientClosedError,
    NetworkError,
    PPIOAgentError,
    SandboxCreationError,
    SessionNotFoundError,
)
from ppio_agent.transport import pause
from ppio_agent.wire.json import Json

from .agent_port import AgentPort
from .control import ControlPlane

__all__ = ["Readiness", "ends_waiting", "poll_delays"]

_FIRST_DELAY, _GROWTH, _LONGEST_DELAY = 0.010, 1.5, 0.5
_LOG_TAIL_BYTES = 4096
_DETAIL_LIMIT = 5.0


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

    Thread safety: immutable.
    """

    port: AgentPort
    control: ControlPlane
    sandbox_id: str
    template_id: str

    def is_ready(self, deadline: Deadline) -> bool:
        """Ping once; raise what ends the waiting."""
        return self._ping(deadline) is None

    def wait(self, deadline: Deadline) -> None:
        """Ping until the agent is ready.

        Args:
            deadline: When to give up.

        Raises:
            SandboxCreationError: It ended, or was not ready in time; with its last
                output.
            SessionNotFoundError: The sandbox is gone.
        """
        for delay in poll_delays():
            seen = self._ping(deadline)
            if seen is None:
                return
            if deadline.expired:
                raise self._failed(f"its agent was not ready in time: {seen}")
            if isinstance(seen, SessionNotFoundError) and delay >= _LONGEST_DELAY:
                # The edge may learn of a sandbox late; the control plane knows.
                self.control.get_sandbox(self.sandbox_id, deadline)
            pause(deadline.earlier(delay))

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
        self, why: str, *, exit_code: int | None = None
    ) -> SandboxCreationError:
        log_tail = self._log_tail()
        last = log_tail.strip().rpartition("\n")[2]
        told = f"; it last wrote {last!r}" if last else ""
        return SandboxCreationError(
            f"the sandbox {self.sandbox_id} of template {self.template_id} is of no"
            f" use: {why}{told}",
            sandbox_id=self.sandbox_id,
            stage="ready",
            exit_code=exit_code,
            log_tail=log_tail,
        )

    def _log_tail(self) -> str:
        try:
            detail = self.control.get_sandbox(
                self.sandbox_id, Deadline.after(_DETAIL_LIMIT)
            )
        except PPIOAgentError:
            return ""  # the failure itself is what the caller has to know
        agent: Mapping[str, Json] = detail.agent or {}
        tail = agent.get("logTail")
        return tail[-_LOG_TAIL_BYTES:] if isinstance(tail, str) else ""
