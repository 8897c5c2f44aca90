"""How one call of an agent gets its sandbox: one of its own, or a conversation's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeVar

from attrs import evolve, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import SessionNotFoundError
from ppio_agent.wire.models import InvocationResponse

from .batch import Batch, BatchPlan, BatchSupply
from .call import Call
from .config import ClientConfig, Unset
from .core import ClientCore
from .invocation import AgentRequest, encode_request
from .launch import Launcher, SandboxOptions
from .limits import seconds
from .reference import SessionRef
from .session import SandboxSession
from .stream import StreamingResponse

if TYPE_CHECKING:
    from .launch import SandboxArguments

__all__ = ["Runner"]

_T = TypeVar("_T")


@frozen
class Runner:
    """Runs agents with the settings of one client, or of one variant of it.

    Args:
        core: What the variants of a client share.
        config: The settings; the core's own, or those of a variant.

    Thread safety: immutable.
    """

    core: ClientCore
    config: ClientConfig

    def total(self, timeout: float | Unset | None) -> float | None:
        """Return the seconds that an invocation may take; None means no limit.

        Raises:
            ValidationError: It is no number of seconds.
        """
        total = self.config.timeout if isinstance(timeout, Unset) else timeout
        return seconds("timeout", total)

    def launcher(self, limit: Deadline | None = None) -> Launcher:
        """Return what makes sandboxes, with these settings; waits until `limit`."""
        launcher = self.core.backend(limit).launcher
        if self.config is launcher.config:
            return launcher
        transport = launcher.control.transport
        retry = evolve(transport.config.retry, max_retries=self.config.max_retries)
        transport = transport.variant(retry=retry, headers=self.config.headers)
        control = evolve(launcher.control, transport=transport)
        return evolve(launcher, control=control, config=self.config)

    def create(
        self,
        template_id: str,
        session_id: str | None,
        limit: Deadline,
        sandbox: SandboxArguments,
    ) -> SandboxSession:
        """Create a sandbox and return the session on it; see `create_session`."""
        options = SandboxOptions.make(self.config, session_id, **sandbox)
        launcher = self.launcher(limit)
        template = self.core.templates.get_template(template_id, deadline=limit)
        return self.core.book.open(launcher, template, options, deadline=limit)

    def attach(
        self, target: SessionRef | str, *, own: bool, session_id: str | None
    ) -> SandboxSession:
        """Return a session on a sandbox that exists; see `attach_session`."""
        return self.core.book.attach(
            self.launcher(),
            target,
            own=own,
            session_id=session_id,
            deadline=Deadline.after(None),
        )

    def call(
        self,
        request: AgentRequest,
        limit: Deadline,
        *,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Call:
        """Return a call that can be sent; raises before there is a sandbox.

        Raises:
            ValidationError: It cannot be sent.
        """
        return Call.make(
            encode_request(request),
            deadline=limit,
            idempotency_key=idempotency_key,
            headers={**self.config.headers, **(headers or {})},
        )

    def invoke(
        self,
        template_id: str,
        request: AgentRequest,
        *,
        session_id: str | None,
        timeout: float | Unset | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        sandbox: SandboxArguments,
    ) -> InvocationResponse:
        """Run an agent once; see `AgentRuntimeClient.invoke_agent`."""
        limit = Deadline.after(self.total(timeout))
        call = self.call(
            request, limit, idempotency_key=idempotency_key, headers=headers
        )
        if session_id is not None:
            return self.converse(
                template_id, session_id, call, sandbox, SandboxSession.run
            )
        session = self.create(template_id, None, limit, sandbox)
        try:
            return session.run(call)
        finally:
            session.dispose()

    def stream(
        self,
        template_id: str,
        request: AgentRequest,
        *,
        session_id: str | None,
        deadline: float | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        sandbox: SandboxArguments,
    ) -> StreamingResponse:
        """Run an agent once; see `AgentRuntimeClient.invoke_agent_stream`."""
        if "timeout" in sandbox:
            raise TypeError(
                "a stream takes no timeout; use deadline=…, the seconds until its end"
            )
        limit = Deadline.after(seconds("deadline", deadline))
        call = self.call(
            request, limit, idempotency_key=idempotency_key, headers=headers
        )
        if session_id is not None:
            return self.converse(
                template_id, session_id, call, sandbox, SandboxSession.open_stream
            )
        session = self.create(template_id, None, limit, sandbox)
        try:
            return session.open_stream(call, owned=True)
        except BaseException:
            session.dispose()
            raise

    def converse(
        self,
        template_id: str,
        session_id: str,
        call: Call,
        sandbox: SandboxArguments,
        run: Callable[[SandboxSession, Call], _T],
    ) -> _T:
        """Run a call in the session of a conversation; once more if that had died.

        What an answer says of the sandbox may be the agent's own word: the platform's
        alone is believed.
        """
        options = SandboxOptions.make(self.config, session_id, **sandbox)
        limit = call.deadline

        def session() -> SandboxSession:
            launcher = self.launcher(limit)
            template = self.core.templates.get_template(template_id, deadline=limit)
            return self.core.book.conversation(
                launcher, template, options, deadline=limit
            )

        held = session()
        try:
            return run(held, call)
        except SessionNotFoundError as error:
            # Another code says that the call may have reached the agent.
            if error.code != SessionNotFoundError.code or not held.lost:
                raise
        return run(session(), call)

    def batch(
        self,
        template_id: str,
        requests: Iterable[AgentRequest],
        plan: BatchPlan,
        sandbox: SandboxArguments,
    ) -> Batch:
        """Begin to run an agent for many requests; see `invoke_many`."""
        options = SandboxOptions.make(self.config, None, **sandbox)
        launcher = self.launcher(plan.deadline)
        launcher.control.transport.allow_connections(plan.workers)
        template = self.core.templates.get_template(template_id, deadline=plan.deadline)

        supply = BatchSupply.of(launcher, self.core.book, template, options)
        return Batch(supply, requests, plan)
