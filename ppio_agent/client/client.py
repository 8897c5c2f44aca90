"""`AgentRuntimeClient`: templates, sessions and invocations of one platform."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent.exceptions import (
    ClientClosedError,
    SessionNotFoundError,
)
from ppio_agent.hooks import Hooks
from ppio_agent.wire.models import AgentTemplate, InvocationResponse

from .auth import AuthManager
from .batch import Batch, BatchPlan, BatchProgress, Pool
from .config import UNSET, ClientConfig, Unset
from .connection import Backend, connect, named_platform
from .flight import SingleFlight
from .invocation import AgentRequest, encode_request
from .launch import SandboxOptions
from .limits import seconds, time_left
from .plugin import ConfiguredHeaders
from .session import SandboxSession
from .sessions import SessionBook
from .state import SessionStatus
from .stream import StreamingResponse
from .template import TemplateManager

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .launch import SandboxArguments

__all__ = ["AgentRuntimeClient"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

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
        self._config = config if base_url is None else config.replace(base_url=base_url)
        self._given = (api_key, api_secret, tuple(plugins))
        self._named = named_platform(self._config, api_key, api_secret)
        self._hooks = Hooks.load(plugins)
        if self._config.headers:
            self._hooks.register(ConfiguredHeaders(self._config.headers))
        self._closed = False
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Begin without sessions and connections: at first, and in a forked child."""
        self._pid = os.getpid()
        # Guards _closed.
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._connecting: SingleFlight[None, Backend] = SingleFlight()
        self._book = SessionBook(self._config)
        self._templates = TemplateManager(
            lambda: self._connected().control,
            enable_cache=self._config.enable_cache,
            cache_ttl=self._config.cache_ttl,
        )

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self._config

    @property
    def auth(self) -> AuthManager:
        """The keys; `rotate` there exchanges them."""
        return self._connected().control.auth

    @property
    def templates(self) -> TemplateManager:
        """The templates of the platform."""
        self._after_fork()
        return self._templates

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            self._start_afresh()

    def _connected(self) -> Backend:
        self._after_fork()
        if self._closed:
            raise ClientClosedError("the client was closed; make a new one")
        backend = self._backend
        if backend is None:
            backend = self._connecting.run(None, self._connect, Deadline.after(None))
        return backend

    def _connect(self) -> Backend:
        if self._backend is not None:
            return self._backend
        self._backend = connect(
            self._config,
            self._hooks,
            named=self._named,
            on_leftover=self._book.add_leftover,
        )
        return self._backend

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
        return self._create(template_id, session_id, limit, {
            "timeout_seconds": timeout_seconds,
            "env_vars": env_vars,
            "metadata": metadata,
            "allow_internet": allow_internet,
            "secure": secure,
            "auto_pause": auto_pause,
            "start_timeout": start_timeout,
        })  # fmt: skip

    def _create(
        self,
        template_id: str,
        session_id: str | None,
        limit: Deadline,
        sandbox: SandboxArguments,
    ) -> SandboxSession:
        options = SandboxOptions.make(self._config, session_id, **sandbox)
        launcher = self._connected().launcher
        template = self._templates.get_template(template_id, deadline=limit)
        return self._book.open(launcher, template, options, deadline=limit)

    def list_sessions(self) -> tuple[SessionStatus, ...]:
        """Return what is known of this client's live sessions, without asking."""
        self._after_fork()
        return tuple(session.snapshot() for session in self._book.sessions())

    def close_session(self, session_id: str) -> bool:
        """Close this client's session of this session id or sandbox id.

        Returns:
            Whether there was one.
        """
        self._after_fork()
        found = [
            session
            for session in self._book.sessions()
            if session_id in {session.session_id, session.sandbox_id}
        ]
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
        self._after_fork()
        return self._book.close_all(Deadline.after(timeout))

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
            headers: Further headers for the agent.
            sandbox: How its sandbox is made, as for `create_session`.

        Raises:
            As `create_session` and `SandboxSession.invoke`.
        """
        encode_request(request)  # refused before there is a sandbox
        total = self._config.timeout if isinstance(timeout, Unset) else timeout
        limit = Deadline.after(seconds("timeout", total))

        def run(session: SandboxSession) -> InvocationResponse:
            return session.invoke(
                request,
                timeout=time_left(limit),
                idempotency_key=idempotency_key,
                headers=headers,
            )

        if session_id is not None:
            return self._converse(template_id, session_id, limit, sandbox, run)
        session = self._create(template_id, None, limit, sandbox)
        try:
            return run(session)
        finally:
            session.dispose()

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
        encode_request(request)  # refused before there is a sandbox
        owned = session_id is None
        limit = Deadline.after(seconds("deadline", deadline))

        def run(session: SandboxSession) -> StreamingResponse:
            return session.open_stream(
                request,
                owned=owned,
                deadline=time_left(limit),
                idempotency_key=idempotency_key,
                headers=headers,
            )

        if session_id is not None:
            return self._converse(template_id, session_id, limit, sandbox, run)
        session = self._create(template_id, None, limit, sandbox)
        try:
            return run(session)
        except BaseException:
            session.dispose()
            raise

    invoke_stream = invoke_agent_stream

    def _converse(
        self,
        template_id: str,
        session_id: str,
        limit: Deadline,
        sandbox: SandboxArguments,
        run: Callable[[SandboxSession], _T],
    ) -> _T:
        """Run a call in the session of a conversation; once more if that had died."""
        options = SandboxOptions.make(self._config, session_id, **sandbox)

        def session() -> SandboxSession:
            launcher = self._connected().launcher
            template = self._templates.get_template(template_id, deadline=limit)
            return self._book.conversation(launcher, template, options, deadline=limit)

        try:
            return run(session())
        except SessionNotFoundError as error:
            # Not if it was closed here: the call may then have reached the agent.
            if error.code != SessionNotFoundError.code:
                raise
        return run(session())

    def invoke_many(
        self,
        template_id: str,
        requests: Iterable[AgentRequest],
        *,
        max_workers: int = 8,
        sessions: Literal["per-request"] | Pool | int = "per-request",
        ordered: bool = True,
        return_exceptions: bool = False,
        on_progress: Callable[[BatchProgress], object] | None = None,
        progress: bool = False,
        deadline: float | None = None,
        timeout: float | Unset | None = UNSET,
        **sandbox: Unpack[SandboxArguments],
    ) -> Batch:
        """Run an agent for many requests, several at a time; work begins at once.

        Args:
            template_id: Id, alias or name of the template.
            requests: What `invoke_agent` takes, each; may be endless, since at most
                four a worker are taken ahead of whoever iterates the batch.
            max_workers: How many run at a time.
            sessions: ``"per-request"``: a sandbox for each request. A number, or
                ``pool(n)``: so many sandboxes, and so as many workers, each running
                one item after another.
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
            sandbox: How sandboxes are made, as for `create_session`.

        Returns:
            An iterator of `BatchItem`, and a context manager. Leaving it early kills
            its sandboxes.

        Raises:
            TemplateNotFoundError: There is no such template.
        """
        limit = Deadline.after(seconds("deadline", deadline))
        total = self._config.timeout if isinstance(timeout, Unset) else timeout
        plan = BatchPlan(
            max_workers=max_workers,
            sessions=sessions,
            ordered=ordered,
            return_exceptions=return_exceptions,
            deadline=limit,
            timeout=seconds("timeout", total),
            on_progress=on_progress,
            bar=progress,
        )
        options = SandboxOptions.make(self._config, None, **sandbox)
        backend = self._connected()
        backend.control.transport.allow_connections(plan.workers)
        template = self._templates.get_template(template_id, deadline=limit)

        def open_session(until: Deadline) -> SandboxSession:
            return self._book.open(backend.launcher, template, options, deadline=until)

        return Batch(open_session, requests, plan)

    def close(self) -> None:
        """End everything of this client: streams, sessions and their sandboxes.

        Further calls raise `ClientClosedError`. Idempotent; takes at most 30 s. In a
        forked child it ends nothing of its parent's.
        """
        self._after_fork()
        with self._lock:
            if self._closed:
                return
            self._closed = True
        deadline = Deadline.after(_CLOSE_LIMIT)
        error = ClientClosedError("the client was closed while this went on")
        control = self._backend.control if self._backend else None
        failures = self._book.close(error, control, deadline)
        for sandbox_id, failure in failures.items():
            _log.error(
                "sandbox %s could not be ended, its time to live will: %s",
                sandbox_id,
                failure,
            )
        if control is not None:
            control.transport.close()

    def __reduce__(self) -> tuple[Any, ...]:
        api_key, api_secret, plugins = self._given
        make = partial(type(self), config=self._config, plugins=plugins)
        return make, (api_key, api_secret)

    def __repr__(self) -> str:
        where = self._named[0].url if self._named else "the local platform"
        return f"AgentRuntimeClient({where}, {len(self._book.sessions())} sessions)"
