"""The states of a session: what each refuses, and how one follows another."""

from __future__ import annotations

import enum
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConflictError,
    InvocationError,
    PPIOAgentError,
    RequestTimeoutError,
    SessionClosedError,
    SessionNotFoundError,
)
from ppio_agent.transport import CallHandle
from ppio_agent.wire.models import PingResponse

from .endpoint import AGENT_PORT

__all__ = [
    "SessionPlan",
    "SessionPulse",
    "SessionState",
    "SessionStatus",
    "closed_error",
    "paused_error",
    "why_unusable",
]


class SessionState(enum.Enum):
    """What a session can be used for.

    Attributes:
        ACTIVE: Invocations run.
        PAUSED: The sandbox is frozen, with its memory; `resume` thaws it.
        INACTIVE: The platform says that it does not run; nothing but `close` is left.
        CLOSED: The sandbox is gone.
        ERROR: The sandbox runs, but its agent does not answer; `get_status` asks again.
    """

    ACTIVE = "active"
    PAUSED = "paused"
    INACTIVE = "inactive"
    CLOSED = "closed"
    ERROR = "error"


@frozen(kw_only=True)
class SessionStatus:
    """What is known of a session at one moment.

    Attributes:
        state: The session's.
        sandbox_state: The platform's word; None if it was not asked or knows nothing.
        agent: The agent's answer to a ping; None if it was not asked or gave none.
        expires_at: When the sandbox ends unless its time to live is extended.
        in_flight: How many calls of this session run.
        sandbox_id: The sandbox.
        template_id: What it was made from.
        session_id: The conversation.
    """

    state: SessionState
    sandbox_state: str | None = None
    agent: PingResponse | None = None
    expires_at: datetime
    in_flight: int
    sandbox_id: str
    template_id: str
    session_id: str


@frozen(kw_only=True)
class SessionPlan:
    """What a session is made with.

    Attributes:
        template_id: Of its sandbox.
        time_to_live: Of its sandbox, in seconds, from each extension on.
        start_timeout: Seconds in which the agent has to be ready after a resume.
        timeout: Total of an invocation unless it says otherwise; None means no limit.
    """

    template_id: str
    time_to_live: float
    start_timeout: float
    timeout: float | None


def why_unusable(
    state: SessionState, sandbox_id: str, *, changing: bool, gone: bool
) -> PPIOAgentError | None:
    """Return why no invocation may begin, or None if one may.

    Args:
        state: The session's.
        sandbox_id: For the message.
        changing: Whether a thread pauses or resumes it at the moment.
        gone: Whether the sandbox ended without being closed here.
    """
    if state is SessionState.CLOSED:
        return closed_error(sandbox_id, gone=gone)
    if state is SessionState.INACTIVE:
        return SessionNotFoundError(
            f"the sandbox {sandbox_id} was given up or does not run any more; create a"
            " new session"
        )
    if state is SessionState.PAUSED or changing:
        return paused_error(sandbox_id)
    if state is SessionState.ERROR:
        return AgentUnreachableError(
            f"the agent in sandbox {sandbox_id} did not answer when it was last asked;"
            " get_status() asks again, close() ends the sandbox",
            sandbox_id=sandbox_id,
            port=AGENT_PORT,
        )
    return None


def paused_error(sandbox_id: str) -> InvocationError:
    """Return the error of an invocation that met a paused session."""
    return InvocationError(
        f"the session on sandbox {sandbox_id} is paused; call resume() first",
        code="session_paused",
    )


def closed_error(sandbox_id: str, *, gone: bool) -> SessionClosedError:
    """Return the error of using a session that has ended.

    Its code is that of `SessionNotFoundError` if the sandbox was `gone` by itself: no
    call was in it then, so whoever starts anew runs nothing twice.
    """
    why = "its sandbox is gone" if gone else "it was closed"
    return SessionClosedError(
        f"the session on sandbox {sandbox_id} has ended: {why}; create a new one",
        code=SessionNotFoundError.code if gone else None,
    )


class SessionPulse:
    """The state of one session and the calls that run in it, seen by all threads alike.

    Attributes:
        calls: The calls that run. Taken out without a lock, as a finaliser does.

    Thread safety: thread-safe; no lock is held while a transition goes on.
    """

    def __init__(self, sandbox_id: str) -> None:
        self.calls: set[CallHandle] = set()
        self._sandbox_id = sandbox_id
        # Guards all below; told when a transition has ended.
        self._changed = threading.Condition()
        self._state = SessionState.ACTIVE
        self._changing = False
        self._gone = False
        self._gone_by_itself = False

    @property
    def state(self) -> SessionState:
        """The state as last seen."""
        return self._state

    @property
    def gone(self) -> bool:
        """Whether the sandbox is known not to exist any more."""
        return self._gone

    def admit(self, call: CallHandle) -> None:
        """Count a call in; raise if the session takes none."""
        with self._changed:
            refusal = why_unusable(
                self._state,
                self._sandbox_id,
                changing=self._changing,
                gone=self._gone_by_itself,
            )
            if refusal is not None:
                raise refusal
            self.calls.add(call)

    def check_open(self) -> None:
        """Raise if the session has ended."""
        if self._state is SessionState.CLOSED:
            raise self.closed_error()

    def closed_error(self) -> SessionClosedError:
        """Return the error of using this session after its end."""
        return closed_error(self._sandbox_id, gone=self._gone_by_itself)

    @contextmanager
    def transition(
        self, name: str, *, to: SessionState, deadline: Deadline
    ) -> Iterator[bool]:
        """Be the only one to change the state for a while; calls are not admitted.

        Args:
            name: What is done, for messages.
            to: Where it leads.
            deadline: Bounds the waiting for another thread's transition.

        Yields:
            Whether there is anything to do.

        Raises:
            ConflictError: The state allows no transition.
            RequestTimeoutError: Another one took too long.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._changing, deadline.left()):
                raise RequestTimeoutError(
                    f"another thread pauses or resumes sandbox {self._sandbox_id}",
                    phase="response",
                )
            self.check_open()
            if self._state not in {SessionState.ACTIVE, SessionState.PAUSED}:
                raise ConflictError(
                    f"cannot {name} the session on sandbox {self._sandbox_id}: its"
                    f" state is {self._state.value}; get_status() asks again"
                )
            self._changing = True
            needed = self._state is not to
        try:
            yield needed
        finally:
            with self._changed:
                self._changing = False
                self._changed.notify_all()

    def become(self, state: SessionState) -> None:
        """Change the state, unless the session has ended meanwhile."""
        with self._changed:
            if self._state is not SessionState.CLOSED:
                self._state = state

    def begin_close(self) -> bool:
        """Take no more calls; tell whether there is a sandbox left to end."""
        with self._changed:
            self._state = SessionState.CLOSED
            return not self._gone

    def give_up(self) -> None:
        """Let go of the sandbox without ending it; raise if calls run in it."""
        with self._changed:
            self.check_open()
            if self.calls:
                raise ConflictError(
                    f"{len(self.calls)} invocations run in sandbox"
                    f" {self._sandbox_id}; wait for them, then detach"
                )
            self._state = SessionState.INACTIVE
            self._gone = True  # for this session: there is nothing left to end

    def mark_gone(self) -> bool:
        """Note that the sandbox does not exist any more; tell whether that is news."""
        with self._changed:
            if self._gone:
                return False
            self._gone = True
            self._gone_by_itself = self._state is not SessionState.CLOSED
            self._state = SessionState.CLOSED
            return True
