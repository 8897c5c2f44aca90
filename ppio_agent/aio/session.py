"""A hold on one sandbox, for coroutines."""

from __future__ import annotations

from datetime import datetime

from ppio_agent import client as blocking

from .mirror import ClosingMirror, awaited, ending
from .stream import streaming

__all__ = ["SandboxSession"]


class SandboxSession(ClosingMirror[blocking.SandboxSession]):
    """One live sandbox and the agent in it, for as many invocations as wanted.

    Made by `AgentRuntimeClient.create_session`. Use it as an asynchronous context
    manager, or close it: an open session holds a sandbox.

    Thread safety: tasks of any number of event loops may use it at a time.
    """

    @property
    def auto_resume(self) -> bool:
        """Whether an invocation resumes a paused session first; can be set."""
        return self._blocking.auto_resume

    @auto_resume.setter
    def auto_resume(self, value: bool) -> None:
        self._blocking.auto_resume = value

    @property
    def sandbox_id(self) -> str:
        """Id of the sandbox."""
        return self._blocking.sandbox_id

    @property
    def template_id(self) -> str:
        """Id of the template that the sandbox was made from."""
        return self._blocking.template_id

    @property
    def session_id(self) -> str:
        """Id of the conversation; that of the sandbox if none was chosen."""
        return self._blocking.session_id

    @property
    def state(self) -> blocking.SessionState:
        """What the session can be used for, as last seen; see `get_status`."""
        return self._blocking.state

    @property
    def expires_at(self) -> datetime:
        """When the sandbox ends, unless its time to live is extended."""
        return self._blocking.expires_at

    @property
    def busy(self) -> bool:
        """Whether a call of this session runs."""
        return self._blocking.busy

    def snapshot(self) -> blocking.SessionStatus:
        """Return what is known of the session, without asking anybody."""
        return self._blocking.snapshot()

    invoke = awaited(blocking.SandboxSession.invoke)
    invoke_stream = streaming(blocking.SandboxSession.invoke_stream)
    resume_stream = streaming(blocking.SandboxSession.resume_stream)
    ping = awaited(blocking.SandboxSession.ping)
    get_status = awaited(blocking.SandboxSession.get_status)
    pause = awaited(blocking.SandboxSession.pause)
    resume = awaited(blocking.SandboxSession.resume)
    refresh = awaited(blocking.SandboxSession.refresh)
    detach = awaited(blocking.SandboxSession.detach)
    close = ending(blocking.SandboxSession.close)
