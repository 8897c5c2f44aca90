"""The states of a session and what each refuses. Pure."""

from __future__ import annotations

import enum
from datetime import datetime

from attrs import frozen

from ppio_agent.exceptions import (
    AgentUnreachableError,
    ConflictError,
    InvocationError,
    PPIOAgentError,
    SessionClosedError,
    SessionNotFoundError,
)
from ppio_agent.wire.models import PingResponse, SandboxDetail, SandboxState

from .endpoint import AGENT_PORT

__all__ = [
    "Action",
    "SessionState",
    "SessionStatus",
    "between_error",
    "closed_error",
    "paused_error",
    "pauses_at_end",
    "refusal",
    "seconds_left",
    "state_of",
]


class SessionState(enum.Enum):
    """What a session can be used for.

    Attributes:
        ACTIVE: Invocations run.
        PAUSED: The sandbox is frozen, with its memory; `resume` thaws it.
        INACTIVE: It was given up by `detach`, or the platform says that it does not
            run; `attach_session` makes a new session on it if it is still there.
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


def state_of(detail: SandboxDetail) -> SessionState:
    """Return the state of a session whose sandbox the platform describes so."""
    if detail.state == SandboxState.RUNNING:
        return SessionState.ACTIVE
    if detail.state == SandboxState.PAUSED:
        return SessionState.PAUSED
    return SessionState.INACTIVE


def seconds_left(detail: SandboxDetail, now: datetime, *, at_most: float) -> float:
    """Return how long a sandbox lives on, as far as that can be told.

    The platform's clock may differ from ours. If it seems to live shorter than it does,
    the next call extends it once too often; longer than `at_most` is not believed.
    """
    return min(max(0.0, (detail.end_at - now).total_seconds()), at_most)


def pauses_at_end(detail: SandboxDetail) -> bool:
    """Return whether a sandbox is paused, not ended, when its time to live is over."""
    rule = detail.lifecycle
    return isinstance(rule, dict) and rule.get("onTimeout") == "pause"


class Action(enum.Enum):
    """What may be asked of a session; the value is what messages call it.

    `close` and `get_status` are not among them: every state allows them.
    """

    INVOKE = "invoke"
    PING = "ping"
    PAUSE = "pause"
    RESUME = "resume"
    REFRESH = "refresh"
    DETACH = "detach"


_A, _S = Action, SessionState
_ALLOWED: dict[SessionState, frozenset[Action]] = {
    _S.ACTIVE: frozenset(_A),
    _S.PAUSED: frozenset({_A.PAUSE, _A.RESUME, _A.DETACH}),
    _S.INACTIVE: frozenset({_A.DETACH}),
    _S.ERROR: frozenset({_A.PING, _A.REFRESH, _A.DETACH}),
    _S.CLOSED: frozenset(),
}


def refusal(
    action: Action,
    state: SessionState,
    sandbox_id: str,
    *,
    changing: bool = False,
    gone: bool = False,
) -> PPIOAgentError | None:
    """Return why a session does not do something, or None if it may.

    Args:
        action: What it is asked to do.
        state: The session's.
        sandbox_id: For the message.
        changing: Whether a thread pauses or resumes it at the moment: no invocation
            begins then.
        gone: Whether the sandbox ended without being closed here.
    """
    if state is SessionState.CLOSED:
        return closed_error(sandbox_id, gone=gone)
    changing = changing and action is Action.INVOKE
    if action in _ALLOWED[state] and not changing:
        return None
    if state is SessionState.INACTIVE:
        return SessionNotFoundError(
            f"cannot {action.value}: the sandbox {sandbox_id} was given up or does not"
            " run any more; attach_session() holds it again if it is still there"
        )
    if action in {Action.INVOKE, Action.PING}:
        frozen = changing or state is SessionState.PAUSED
        return paused_error(sandbox_id) if frozen else _unreachable(sandbox_id)
    return ConflictError(
        f"cannot {action.value} the session on sandbox {sandbox_id}: its state is"
        f" {state.value}; get_status() asks again"
    )


def _unreachable(sandbox_id: str) -> AgentUnreachableError:
    return AgentUnreachableError(
        f"the agent in sandbox {sandbox_id} did not answer when it was last asked;"
        " get_status() asks again, close() ends the sandbox",
        sandbox_id=sandbox_id,
        port=AGENT_PORT,
    )


def paused_error(sandbox_id: str) -> InvocationError:
    """Return the error of an invocation that met a paused session."""
    return InvocationError(
        f"the session on sandbox {sandbox_id} is paused; call resume() first",
        code="session_paused",
    )


def between_error(sandbox_id: str) -> ConflictError:
    """Return the error of a conversation whose sandbox neither runs nor is paused."""
    return ConflictError(
        f"the sandbox {sandbox_id} of this conversation neither runs nor is paused, by"
        " the platform's word; try again soon, or end it by attach_session(its"
        " id).close()",
        retryable=True,
    )


def closed_error(sandbox_id: str, *, gone: bool = False) -> SessionClosedError:
    """Return the error of using a session that has ended.

    Args:
        sandbox_id: For the message.
        gone: Whether a call is refused since the sandbox ended by itself. The code is
            that of `SessionNotFoundError` then: who starts anew runs nothing twice.
    """
    why = "its sandbox is gone" if gone else "it was closed"
    return SessionClosedError(
        f"the session on sandbox {sandbox_id} has ended: {why}; create a new one",
        code=SessionNotFoundError.code if gone else None,
    )
