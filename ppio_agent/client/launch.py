"""From a template to a sandbox whose agent answers, or to no sandbox at all."""

from __future__ import annotations

import difflib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypedDict, TypeVar

from attrs import field, frozen

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent._util.ids import new_id
from ppio_agent._version import __version__
from ppio_agent.exceptions import (
    NetworkError,
    PPIOAgentError,
    RequestTimeoutError,
    SandboxCreationError,
    WireError,
)
from ppio_agent.transport import RetryPolicy, Transport, shielded
from ppio_agent.wire.headers import TRAFFIC_TOKEN
from ppio_agent.wire.models import (
    AgentMetadata,
    AgentTemplate,
    NewSandbox,
    Sandbox,
)

from .agent_port import AgentPort
from .auth import attempt_auth
from .config import ClientConfig
from .control import ControlPlane
from .conversation import check_session_id, conversation_metadata, session_id_of
from .endpoint import AGENT_PORT, ENVD_PORT
from .envd import Envd, envd_tokens
from .limits import KILL_LIMIT, seconds
from .readiness import Readiness
from .reference import SessionRef
from .state import SessionState, pauses_at_end, seconds_left, state_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Launched", "Launcher", "SandboxArguments", "SandboxOptions"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_CREATE_ID = "ppio_create_id"


class _Arguments(TypedDict, total=False):
    env_vars: Mapping[str, str] | None
    metadata: Mapping[str, str] | None
    allow_internet: bool
    secure: bool
    auto_pause: bool
    start_timeout: float | None


class SandboxArguments(_Arguments, total=False):
    """How the sandbox of an invocation is made; see `create_session`."""

    timeout_seconds: float | None


@frozen(kw_only=True)
class SandboxOptions:
    """What a sandbox is asked for with; see `AgentRuntimeClient.create_session`."""

    time_to_live: float
    start_timeout: float | None = None
    env_vars: Mapping[str, str] | None = field(default=None, repr=False)
    metadata: Mapping[str, str] | None = None
    allow_internet: bool = True
    secure: bool = True
    auto_pause: bool = False
    session_id: str | None = None

    @classmethod
    def make(
        cls,
        config: ClientConfig,
        session_id: str | None,
        *,
        timeout_seconds: float | None = None,
        **arguments: Unpack[_Arguments],
    ) -> SandboxOptions:
        """Return the options that a caller's arguments and the settings mean.

        Raises:
            TypeError: There is no such argument.
            ValidationError: The session id or a time cannot be used.
        """
        unknown = arguments.keys() - SandboxArguments.__annotations__.keys()
        if unknown:
            raise TypeError(_no_arguments(unknown))
        if session_id is not None:
            check_session_id(session_id)
        own = "takes that of the settings"
        ttl = seconds("timeout_seconds", timeout_seconds, none=own)
        seconds("start_timeout", arguments.get("start_timeout"), none=own)
        return cls(
            time_to_live=ttl or config.sandbox_timeout,
            session_id=session_id,
            **arguments,
        )


@frozen(kw_only=True)
class Launched:
    """A sandbox with an agent, and how it is used.

    Attributes:
        ref: Its name.
        port: What speaks to its agent.
        start_timeout: Seconds in which the agent has to be ready after a resume.
        timeout: Total of an invocation unless it says otherwise; None means no limit.
        expires: Monotonic instant at which it ends unless it is extended.
    """

    ref: SessionRef
    port: AgentPort
    start_timeout: float
    timeout: float | None
    expires: float


@frozen
class Launcher:
    """Creates sandboxes; kills each that did not become ready.

    Attributes:
        on_leftover: Is told the id of a sandbox that could not be killed.
        retry: What creations and invocations follow; None the transport's policy.

    Thread safety: immutable.
    """

    control: ControlPlane
    config: ClientConfig
    on_leftover: Callable[[str], None]
    retry: RetryPolicy | None = None

    def launch(
        self,
        template: AgentTemplate,
        options: SandboxOptions,
        *,
        deadline: Deadline,
        adopt: Callable[[Launched], _T],
    ) -> _T:
        """Create a sandbox, wait for its agent, and give it to `adopt`.

        Whatever goes wrong before `adopt` has it, an interrupt included, the sandbox
        is killed.

        Args:
            template: What it is made from.
            options: What it is asked for with.
            deadline: Bounds everything.
            adopt: Takes over; what it returns is returned.

        Raises:
            SandboxCreationError: The agent did not become ready, or the template does
                not say how to start it.
            PPIOAgentError: What the platform refused, as it is.
        """
        create_id = new_id()
        created: list[str] = []
        try:
            asked_at = time.monotonic()
            # Not to be ended half-way: whether there is a sandbox could then not be
            # known. What is aborted meanwhile ends with the first ping.
            with shielded():
                sandbox = self._create(template, options, create_id, deadline)
            sandbox_id = self.control.endpoint.sandbox_ref(
                sandbox.sandbox_id, sandbox.client_id
            )
            created.append(sandbox_id)
            ref = SessionRef.of(
                sandbox,
                sandbox_id=sandbox_id,
                session_id=options.session_id,
                time_to_live=options.time_to_live,
                auto_pause=options.auto_pause,
            )
            launched = Launched(
                ref=ref,
                port=self.port(ref),
                start_timeout=self._start_timeout(template, options),
                timeout=self.config.timeout,
                expires=asked_at + options.time_to_live,
            )
            self._await_ready(
                template,
                launched,
                options=options,
                envd=lambda: self._envd(ref, sandbox.envd_version),
                deadline=deadline,
            )
            return adopt(launched)
        except BaseException as error:
            # Without an id the answer was lost, or the interrupt came before it: the
            # sandbox may exist for all that.
            with shielded():
                self._kill(created or self._created_by(create_id, error))
            if created and isinstance(error, PPIOAgentError):
                _name_sandbox(error, created[0])
            raise

    def _create(
        self,
        template: AgentTemplate,
        options: SandboxOptions,
        create_id: str,
        deadline: Deadline,
    ) -> Sandbox:
        metadata = {
            **(options.metadata or {}),
            **conversation_metadata(template.template_id, options.session_id),
            _CREATE_ID: create_id,
            "created_by": f"ppio-agent/{__version__}",
        }
        new = NewSandbox(
            template_id=template.template_id,
            timeout=math.ceil(options.time_to_live),
            metadata=metadata,
            env_vars=options.env_vars,
            allow_internet_access=options.allow_internet,
            secure=options.secure,
            auto_pause=options.auto_pause,
        )

        def create() -> Sandbox:
            return self.control.create_sandbox(
                new, idempotency_key=create_id, deadline=deadline, retry=self.retry
            )

        try:
            return create()
        except NetworkError as error:
            if deadline.expired or not _may_have_been_sent(error):
                raise
            found = self._find(create_id, deadline)
            if not found:
                return create()
            kept, *surplus = found
            self._kill(surplus)
            return self.control.adopt_sandbox(kept, deadline)

    def _find(self, create_id: str, deadline: Deadline) -> list[str]:
        limit = deadline.earlier(KILL_LIMIT)
        found = self.control.find_sandboxes({_CREATE_ID: create_id}, limit)
        ref = self.control.endpoint.sandbox_ref
        return [ref(s.sandbox_id, s.client_id) for s in found]

    def _created_by(self, create_id: str, error: BaseException) -> list[str]:
        """Return the sandboxes that a request without an answer left behind."""
        lost = isinstance(error, NetworkError) and _may_have_been_sent(error)
        if isinstance(error, Exception) and not lost:
            return []
        try:
            return self._find(create_id, Deadline.after(None))
        except PPIOAgentError as failure:
            _log.warning("looking for a half-created sandbox failed: %s", failure)
            return []

    def attach(
        self,
        target: SessionRef | str,
        *,
        session_id: str | None,
        time_to_live: float | None,
        deadline: Deadline,
    ) -> tuple[Launched, SessionState]:
        """Return a sandbox that exists, as if it had been launched here, and its state.

        Args:
            target: Its reference or its id.
            session_id: The conversation; None takes that of the reference, else the
                one that it was created for.
            time_to_live: Seconds that each extension gives it; None takes that of the
                reference, else `ClientConfig.sandbox_timeout`.
            deadline: Bounds the request.

        Raises:
            SessionNotFoundError: There is none.
        """
        known = target if isinstance(target, SessionRef) else None
        asked = target if isinstance(target, str) else target.sandbox_id
        detail = self.control.get_sandbox(asked, deadline)
        ref = SessionRef.of(
            detail,
            sandbox_id=self.control.endpoint.sandbox_ref(
                detail.sandbox_id, detail.client_id
            ),
            session_id=session_id
            or (known and known.session_id)
            or session_id_of(detail.metadata),
            time_to_live=time_to_live
            or (known and known.time_to_live)
            or self.config.sandbox_timeout,
            auto_pause=pauses_at_end(detail)
            or (known is not None and known.auto_pause),
        )
        left = seconds_left(detail, utc_now(), at_most=ref.time_to_live)
        ref = ref if known is None else ref.with_tokens_of(known)
        launched = Launched(
            ref=ref,
            port=self.port(ref),
            start_timeout=self.config.start_timeout,
            timeout=self.config.timeout,
            expires=time.monotonic() + left,
        )
        return launched, state_of(detail)

    def port(self, ref: SessionRef) -> AgentPort:
        """Return what speaks to the agent of a sandbox."""
        control, config = self.control, self.config
        traffic = ref.traffic_token
        tokens = {} if traffic is None else {TRAFFIC_TOKEN: traffic}
        return AgentPort(
            transport=self._transport(ref, retry=self.retry),
            route=control.endpoint.route(
                ref.sandbox_id,
                AGENT_PORT,
                domain=ref.domain,
                edge_url=ref.edge_url,
            ),
            sandbox_id=ref.sandbox_id,
            session_id=ref.session_id,
            auth=attempt_auth(control.auth, tokens),
            idle_timeout=config.idle_timeout,
            max_event_bytes=config.max_event_bytes,
            max_response_bytes=config.max_response_bytes,
        )

    def _transport(
        self, ref: SessionRef, *, retry: RetryPolicy | None = None
    ) -> Transport:
        """Return what speaks to a sandbox, which may quote the tokens it was sent."""
        tokens = (ref.traffic_token, ref.envd_token)
        return self.control.transport.variant(retry=retry, secrets=tokens)

    def _start_timeout(self, template: AgentTemplate, options: SandboxOptions) -> float:
        of_template = template.agent and template.agent.start_timeout
        return options.start_timeout or of_template or self.config.start_timeout

    def _envd(self, ref: SessionRef, version: str) -> Envd:
        control = self.control
        return Envd(
            transport=self._transport(ref),
            route=control.endpoint.route(
                ref.sandbox_id, ENVD_PORT, domain=ref.domain, edge_url=ref.edge_url
            ),
            auth=control.auth,
            tokens=envd_tokens(access_token=ref.envd_token, version=version),
            sandbox_id=ref.sandbox_id,
        )

    def _await_ready(
        self,
        template: AgentTemplate,
        launched: Launched,
        *,
        options: SandboxOptions,
        envd: Callable[[], Envd],
        deadline: Deadline,
    ) -> None:
        readiness = Readiness(
            port=launched.port,
            control=self.control,
            sandbox_id=launched.ref.sandbox_id,
            template_id=launched.ref.template_id,
            deadline=deadline,
        )
        limit = deadline.earlier(launched.start_timeout)
        if readiness.is_ready(limit):
            return
        agent = _agent_of(template, launched.ref.sandbox_id)
        if agent is None or agent.entrypoint is None:
            readiness.check_agent()
            readiness.wait(limit)
            return
        given = options.env_vars or {}  # of all that runs in the sandbox
        env = {k: v for k, v in agent.env_vars.items() if k not in given}
        start = partial(envd().start, agent.entrypoint, env)
        readiness.start_and_wait(start, limit)

    def _kill(self, sandbox_ids: list[str]) -> None:
        for sandbox_id in sandbox_ids:
            try:
                deadline = Deadline.after(KILL_LIMIT)
                self.control.kill_sandbox(sandbox_id, deadline)
            except PPIOAgentError as error:
                _log.warning("killing sandbox %s failed: %s", sandbox_id, error)
                self.on_leftover(sandbox_id)
            except BaseException:
                self.on_leftover(sandbox_id)
                raise


def _no_arguments(unknown: Iterable[str]) -> str:
    names = sorted(SandboxArguments.__annotations__)
    said = []
    for name in sorted(unknown):
        near = difflib.get_close_matches(name, names, n=2)
        said.append(f"{name} (did you mean {' or '.join(near)}?)" if near else name)
    return (
        f"neither the call nor its sandbox has the argument {', '.join(said)};"
        f" a sandbox has {', '.join(names)}"
    )


def _agent_of(template: AgentTemplate, sandbox_id: str) -> AgentMetadata | None:
    """Return what the template says of its agent; raise if that cannot be read."""
    document = template.metadata.get("agent_runtime")
    if document is None:
        return None
    try:
        return AgentMetadata.parse(document)
    except WireError as error:
        raise SandboxCreationError(
            f"the agent_runtime metadata of template {template.template_id} cannot be"
            f" read ({error}); deploy it again",
            sandbox_id=sandbox_id,
            stage="start",
        ) from error


def _may_have_been_sent(error: NetworkError) -> bool:
    """Tell whether the platform may have got a request that has no answer."""
    if isinstance(error, RequestTimeoutError):
        return error.phase not in {"connect", "pool"}
    return True


def _name_sandbox(error: PPIOAgentError, sandbox_id: str) -> None:
    if sandbox_id not in error.message:
        error.message += f"; the sandbox {sandbox_id} was killed"
        error.args = (error.message,)
