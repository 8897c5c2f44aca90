"""`AgentRuntimeClient`: templates, sessions and invocations of one platform."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import AgentTemplate, InvocationResponse

from .agent_runtime import RuntimeStream, invoke_agent_runtime
from .auth import AuthManager
from .batch import Batch, BatchPlan, BatchProgress, Pool
from .config import UNSET, ClientConfig, Unset
from .core import ClientCore
from .futures import InvocationFuture
from .invocation import AgentRequest
from .limits import seconds
from .reference import SessionRef
from .runner import Runner
from .session import SandboxSession
from .state import SessionState, SessionStatus
from .stream import StreamingResponse
from .template import TemplateManager

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .launch import SandboxArguments

__all__ = ["AgentRuntimeClient"]

_CLOSE_LIMIT = 30.0


class AgentRuntimeClient(Closing):
    """Calls agents in sandboxes of the platform, from ordinary blocking code.

    Example:
        with AgentRuntimeClient() as client:
            print(client.invoke_agent("my-agent", "Hello").result)

    With neither an address nor a key, in the arguments or the environment, it uses
    the local platform on this machine, which starts with the first call.

    Args:
        api_key: Key of the platform; None reads `PPIO_API_KEY`.
        api_secret: Secret for signed requests; None reads `PPIO_API_SECRET`.
        base_url: Control plane; None takes that of the settings.
        config: Settings; None takes those of the environment.
        plugins: Modules or objects with hook functions, besides the installed ones.

    Raises:
        AuthenticationError: There is an address but no key, or it cannot be used.
        ConfigurationError: A setting cannot be used.

    Thread safety: thread-safe; make one and share it. A forked child may go on with
    it and owns no session of its parent.

    Blocking: every method that talks to the platform; see there.
    """

    def __init__(
        self,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        base_url: str | None = None,
        config: ClientConfig | None = None,
        plugins: Iterable[object] = (),
    ) -> None:
        config = ClientConfig() if config is None else config
        if base_url is not None:
            config = config.replace(base_url=base_url)
        self._run = Runner(ClientCore(config, api_key, api_secret, plugins), config)

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._run.config

    @property
    def auth(self) -> AuthManager:
        """The keys; `rotate` there exchanges them.

        Raises:
            ConfigurationError: There are none, since a plug-in stands in for them.
        """
        auth = self._run.core.backend().control.auth
        if not isinstance(auth, AuthManager):
            raise ConfigurationError(
                "a plug-in proves who asks for this client; it has no keys of its own"
            )
        return auth

    @property
    def templates(self) -> TemplateManager:
        """The templates of the platform."""
        return self._run.core.templates

    def with_options(
        self,
        *,
        timeout: float | Unset | None = UNSET,
        max_retries: int | Unset = UNSET,
        headers: Mapping[str, str] | Unset = UNSET,
    ) -> AgentRuntimeClient:
        """Return a client with other settings that shares everything with this one.

        Connections, sessions and templates are the same; closing one of the two closes
        both. A session keeps the settings of the client that created it. The list of
        templates is asked for with those of the first client, since it serves all.

        Args:
            timeout: Total seconds of an invocation; None means no limit.
            max_retries: Further attempts of a call that may be repeated.
            headers: Further headers of every other request, besides this client's.

        Raises:
            ConfigurationError: A value cannot be used.
        """
        given: dict[str, Any] = {"timeout": timeout, "max_retries": max_retries}
        given["headers"] = headers
        changes = {k: v for k, v in given.items() if not isinstance(v, Unset)}
        if isinstance(changes.get("headers"), Mapping):
            changes["headers"] = {**self.config.headers, **changes["headers"]}
        variant = object.__new__(type(self))
        variant._run = Runner(self._run.core, self.config.replace(**changes))
        return variant

    def list_templates(
        self,
        *,
        tags: Collection[str] | None = None,
        name: str | None = None,
        refresh: bool = False,
    ) -> list[AgentTemplate]:
        """Return the templates there are; see `TemplateManager.list_templates`."""
        return self.templates.list_templates(tags=tags, name=name, refresh=refresh)

    def get_template(self, template_id: str) -> AgentTemplate:
        """Return the template of this id, alias, name, ``name:version`` or agent id.

        Raises:
            TemplateNotFoundError: There is none.
            ValidationError: The name belongs to several.
        """
        return self.templates.get_template(template_id)

    def template_exists(self, template_id: str) -> bool:
        """Tell whether `get_template` would find one."""
        return self.templates.template_exists(template_id)

    def create_session(
        self,
        template_id: str,
        timeout_seconds: float | None = None,
        *,
        env_vars: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        allow_internet: bool = True,
        secure: bool = True,
        auto_pause: bool = False,
        session_id: str | None = None,
        start_timeout: float | None = None,
        deadline: float | None = None,
    ) -> SandboxSession:
        """Create a sandbox and return the hold on it once its agent answers.

        Args:
            template_id: Id, alias or name of the template.
            timeout_seconds: Time to live of the sandbox; extended while invocations
                run. None takes `ClientConfig.sandbox_timeout`.
            env_vars: Environment of the agent.
            metadata: Kept by the platform with the sandbox.
            allow_internet: Whether the sandbox may reach the internet.
            secure: Whether the sandbox's own API needs a token.
            auto_pause: Pause instead of end when the time to live is over.
            session_id: Id of the conversation, for the agent; None takes that of the
                sandbox. ``invoke_agent(…, session_id=…)`` finds the session by it.
            start_timeout: Seconds in which the agent has to be ready. None takes what
                the template says, else `ClientConfig.start_timeout`.
            deadline: Total seconds of this call; None means no limit beside those of
                its steps.

        Raises:
            TemplateNotFoundError: There is no such template; nothing was created.
            SandboxCreationError: The agent did not become ready; its sandbox was
                killed. `exit_code` and `log_tail` say why.
            RateLimitError, AuthenticationError, NetworkError: As the platform or the
                network said; nothing is left behind.
        """
        limit = Deadline.after(seconds("deadline", deadline))
        return self._run.create(template_id, session_id, limit, {
            "timeout_seconds": timeout_seconds,
            "env_vars": env_vars,
            "metadata": metadata,
            "allow_internet": allow_internet,
            "secure": secure,
            "auto_pause": auto_pause,
            "start_timeout": start_timeout,
        })  # fmt: skip

    def attach_session(
        self,
        ref: SessionRef | str,
        *,
        own: bool = False,
        session_id: str | None = None,
    ) -> SandboxSession:
        """Return a session on a sandbox that exists, whoever created it.

        Its state is `PAUSED` if the sandbox is paused. Its own `close` ends the
        sandbox; closing the client does so only with `own`.

        Args:
            ref: What `SandboxSession.detach` gave, here or in another process, or the
                id of a sandbox.
            own: Whether closing the client ends the sandbox.
            session_id: Id of the conversation, for the agent; None keeps the one that
                the sandbox has.

        Raises:
            SessionNotFoundError: There is no such sandbox, or no longer.
            ValidationError: `ref` or `session_id` cannot be used.
        """
        return self._run.attach(ref, own=own, session_id=session_id)

    def list_sessions(self) -> tuple[SessionStatus, ...]:
        """Return what is known of this client's live sessions, without asking."""
        found = (s.snapshot() for s in self._run.core.book.sessions())
        # One that could not be ended is kept, to be ended with the client.
        return tuple(s for s in found if s.state is not SessionState.CLOSED)

    def close_session(self, session_id: str) -> bool:
        """Close this client's session of this session id or sandbox id.

        Returns:
            Whether there was one.
        """
        found = self._run.core.book.named(session_id)
        for session in found:
            session.close()
        return bool(found)

    def close_all(self, timeout: float = _CLOSE_LIMIT) -> dict[str, Exception]:
        """Close all sessions of this client, 16 at a time.

        Args:
            timeout: Seconds to wait for it.

        Returns:
            The failures by sandbox id; empty if all went well.
        """
        return self._run.core.book.close_all(Deadline.after(timeout))

    def invoke_agent(
        self,
        template_id: str,
        request: AgentRequest,
        *,
        session_id: str | None = None,
        timeout: float | Unset | None = UNSET,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **sandbox: Unpack[SandboxArguments],
    ) -> InvocationResponse:
        """Run an agent once and return its answer.

        Without `session_id` a sandbox is created for this and killed afterwards, come
        what may. With it the sandbox of that conversation is used, created first if
        there is none, and kept.

        Args:
            template_id: Id, alias or name of the template.
            request: A prompt, an object that is sent as it is, or an
                `InvocationRequest`.
            session_id: The conversation; its first call decides how its sandbox is
                made.
            timeout: Total seconds, finding the template and creating the sandbox
                included; None means no limit. Default: `ClientConfig.timeout`. The
                sandbox is killed after that, which is not counted.
            idempotency_key: Under which the agent runs this once.
            headers: Further headers for the agent; no ``Idempotency-Key``.
            sandbox: How its sandbox is made, as for `create_session`.

        Raises:
            As `create_session` and `SandboxSession.invoke`.
        """
        return self._run.invoke(
            template_id,
            request,
            session_id=session_id,
            timeout=timeout,
            idempotency_key=idempotency_key,
            headers=headers,
            sandbox=sandbox,
        )

    def submit(
        self,
        template_id: str,
        request: AgentRequest,
        *,
        session_id: str | None = None,
        timeout: float | Unset | None = UNSET,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **sandbox: Unpack[SandboxArguments],
    ) -> InvocationFuture:
        """Do as `invoke_agent`, on one of 32 threads of the client's, without waiting.

        `timeout` counts from when the call gets its thread.

        Returns:
            A `concurrent.futures.Future` of the answer; its `cancel` also ends a call
            that runs. What `invoke_agent` raises is its error.

        Blocking: while 1,000 calls wait for a thread.
        """
        return self._run.core.submissions.submit(
            partial(
                self._run.invoke,
                template_id,
                request,
                session_id=session_id,
                timeout=timeout,
                idempotency_key=idempotency_key,
                headers=headers,
                sandbox=sandbox,
            )
        )

    def invoke_agent_stream(
        self,
        template_id: str,
        request: AgentRequest,
        *,
        session_id: str | None = None,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        **sandbox: Unpack[SandboxArguments],
    ) -> StreamingResponse:
        """Run an agent once and return its answer piece by piece.

        Without `session_id` the sandbox lives exactly as long as the stream: read it
        to the end or close it.

        Args:
            template_id: As for `invoke_agent`.
            request: As for `invoke_agent`.
            session_id: As for `invoke_agent`.
            deadline: Total seconds until the end of the stream, finding the template
                and creating the sandbox included; None means no limit. The sandbox is
                killed after that, which is not counted.
            idempotency_key: As for `invoke_agent`.
            headers: As for `invoke_agent`.
            sandbox: As for `invoke_agent`.

        Raises:
            As `create_session` and `SandboxSession.invoke_stream`.
        """
        return self._run.stream(
            template_id,
            request,
            session_id=session_id,
            deadline=deadline,
            idempotency_key=idempotency_key,
            headers=headers,
            sandbox=sandbox,
        )

    invoke_stream = invoke_agent_stream

    def invoke_agent_runtime(
        self,
        agentId: str,  # noqa: N803 - the names are those of Amazon's client
        payload: bytes | str,
        runtimeSessionId: str | None = None,  # noqa: N803 - as above
        timeout: float | None = None,
        endpoint: str | None = None,
    ) -> Mapping[str, Json] | RuntimeStream:
        """Run an agent once, spelled as in Amazon's AgentCore runtime.

        The sandbox is kept for the conversation: until `close_session`, `close_all`,
        or the end of its time to live.

        Args:
            agentId: Id, alias or name of the template, or an agent id or ARN that ends
                in ``-<template id>``.
            payload: Text or UTF-8: a JSON object, or else the prompt.
            runtimeSessionId: The conversation; None begins a new one.
            timeout: Total seconds, a stream's too. None takes `ClientConfig.timeout`,
                if that is None, too, there is no limit.
            endpoint: Version of the template, as in ``name:version``; None and
                ``DEFAULT`` take it as `agentId` names it.

        Returns:
            ``{"response": envelope, "runtimeSessionId": str, "status": str, "agentId":
            str}``. If the agent streams, an iterator with `close` of ``{"chunk": str,
            "runtimeSessionId": str, "agentId": str}``; its ``["runtimeSessionId"]``
            is known at once.

        Raises:
            ValidationError: The payload or the session id cannot be sent; nothing was.
            As `invoke_agent`.
        """
        return invoke_agent_runtime(
            self._run,
            agentId,
            payload,
            session_id=runtimeSessionId,
            timeout=timeout,
            endpoint=endpoint,
        )

    def invoke_many(
        self,
        template_id: str,
        requests: Iterable[AgentRequest],
        *,
        max_workers: int = 8,
        sessions: Literal["per-request"] | Pool = "per-request",
        ordered: bool = True,
        return_exceptions: bool = False,
        on_progress: Callable[[BatchProgress], object] | None = None,
        progress: bool = False,
        deadline: float | None = None,
        timeout: float | Unset | None = UNSET,
        journal: str | os.PathLike[str] | None = None,
        **sandbox: Unpack[SandboxArguments],
    ) -> Batch:
        """Run an agent for many requests, several at a time; work begins at once.

        Args:
            template_id: Id, alias or name of the template.
            requests: What `invoke_agent` takes, each; may be endless, since at most
                four a worker are taken ahead of whoever iterates the batch.
            max_workers: How many run at a time.
            sessions: ``"per-request"``: a sandbox for each request. ``pool(n)``: so
                many sandboxes, and so as many workers, each running one item after
                another.
            ordered: Give the items in input order, else as they end.
            return_exceptions: Put an error into its item; else the first one is
                raised, after what runs was aborted and what has not begun dropped.
            on_progress: Called after each change, from one thread; what it raises is
                logged.
            progress: Show a bar on stderr, if that is a terminal.
            deadline: Total seconds; what has not ended by then fails with
                `RequestTimeoutError`.
            timeout: Total seconds of one invocation, the creation of its sandbox not
                included.
            journal: A file by which the same call later runs only what is missing.
            sandbox: How sandboxes are made, as for `create_session`.

        Returns:
            An iterator of `BatchItem`, and a context manager. Leaving it early kills
            its sandboxes and closes `requests`, if that is a generator.

        Raises:
            TemplateNotFoundError: There is no such template.
            BatchJournalError: The journal cannot be used; nothing has run.
        """
        plan = BatchPlan(
            max_workers=max_workers,
            sessions=sessions,
            ordered=ordered,
            return_exceptions=return_exceptions,
            deadline=Deadline.after(seconds("deadline", deadline)),
            timeout=self._run.total(timeout),
            on_progress=on_progress,
            bar=progress,
            journal=journal,
        )
        return self._run.batch(template_id, requests, plan, sandbox)

    def close(self) -> None:
        """End everything of this client: streams, sessions and their sandboxes.

        Further calls raise `ClientClosedError`. Idempotent; takes at most 30 s. After an
        interruption it may be called again. In a forked child it ends nothing of its
        parent's.
        """
        self._run.core.close()

    def __reduce__(self) -> tuple[Any, ...]:
        api_key, api_secret, plugins = self._run.core.given
        make = partial(type(self), config=self.config, plugins=plugins)
        return make, (api_key, api_secret)

    def __repr__(self) -> str:
        sessions = len(self._run.core.book.sessions())
        return f"AgentRuntimeClient({self._run.core.where}, {sessions} sessions)"
