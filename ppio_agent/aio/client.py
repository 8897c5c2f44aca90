"""`AgentRuntimeClient`, its templates and its batches, for coroutines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ppio_agent import client as blocking
from ppio_agent.client.config import UNSET, Unset
from ppio_agent.transport import CallScope
from ppio_agent.wire.json import Json

from .bridge import Bridge
from .mirror import ClosingMirror, Mirror, awaited, ending, opening
from .session import SandboxSession
from .stream import RuntimeStream, streaming

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["AgentRuntimeClient", "Batch", "TemplateManager"]

_C = TypeVar("_C", bound="AgentRuntimeClient")


class TemplateManager(Mirror[blocking.TemplateManager]):
    """The templates of one platform, as its control plane lists them.

    It is `AgentRuntimeClient.templates`.
    """

    @property
    def skipped(self) -> int:
        """How many records of the newest list could not be read."""
        return self._blocking.skipped

    def invalidate(self) -> None:
        """Drop the cached list."""
        self._blocking.invalidate()

    list_templates = awaited(blocking.TemplateManager.list_templates)
    get_template = awaited(blocking.TemplateManager.get_template)
    template_exists = awaited(blocking.TemplateManager.template_exists)


class Batch(ClosingMirror[blocking.Batch]):
    """The items of a batch, as they come; work has begun when it is made.

    Iterate it with ``async for``, or await `results`. Leaving early, by `close`, an
    error or the cancellation of the task that waits, drops what has not begun, aborts
    what runs and kills the sandboxes.

    Thread safety: one task iterates; `close` may come from any other.
    """

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> blocking.BatchItem:
        item = await self._bridge.call(self._next, discard=self._close)
        if item is None:
            raise StopAsyncIteration
        return item

    def _next(self) -> blocking.BatchItem | None:
        return next(self._blocking, None)

    def _close(self, _: blocking.BatchItem | None) -> None:
        self._blocking.close()  # an item that was taken for nobody is lost

    results = awaited(blocking.Batch.results)
    close = ending(blocking.Batch.close)


def _session(
    bridge: Bridge, session: blocking.SandboxSession, _: CallScope
) -> SandboxSession:
    return SandboxSession(bridge, session)


def _batch(bridge: Bridge, batch: blocking.Batch, _: CallScope) -> Batch:
    return Batch(bridge, batch)


def _answer(
    bridge: Bridge,
    answer: Mapping[str, Json] | blocking.RuntimeStream,
    scope: CallScope,
) -> Mapping[str, Json] | RuntimeStream:
    if isinstance(answer, blocking.RuntimeStream):
        return RuntimeStream(bridge, answer, scope)
    return answer


def _drop(answer: Mapping[str, Json] | blocking.RuntimeStream) -> None:
    if isinstance(answer, blocking.RuntimeStream):
        answer.close()


def _give_back(session: blocking.SandboxSession) -> None:
    """End a session that nobody takes; what was there before lives on."""
    if session.owned:
        session.dispose()
    else:
        session.detach()


class AgentRuntimeClient(ClosingMirror[blocking.AgentRuntimeClient]):
    """Calls agents in sandboxes of the platform, from coroutines.

    Example:
        async with AgentRuntimeClient() as client:
            response = await client.invoke_agent("my-agent", "Hello")

    The arguments are those of `ppio_agent.AgentRuntimeClient`, whose calls it runs, at
    most 64 at a time, on threads of its own; further ones wait for their turn. The
    cancellation of a task aborts its call. Nothing is kept of an event loop: one
    client serves any number of them, one after another or at a time.

    Thread safety: tasks of any number of event loops may use it at a time. A forked
    child may go on with it and owns no session of its parent.
    """

    def __init__(
        self,
        api_key: str | None = None,
        api_secret: str | None = None,
        *,
        base_url: str | None = None,
        config: blocking.ClientConfig | None = None,
        plugins: Iterable[object] = (),
    ) -> None:
        client = blocking.AgentRuntimeClient(
            api_key, api_secret, base_url=base_url, config=config, plugins=plugins
        )
        super().__init__(Bridge(), client)

    @property
    def config(self) -> blocking.ClientConfig:
        """The settings."""
        return self._blocking.config

    @property
    def auth(self) -> blocking.AuthManager:
        """The keys; `rotate` there exchanges them.

        It blocks if it is the first use of the platform embedded in this program.
        """
        return self._blocking.auth

    @property
    def templates(self) -> TemplateManager:
        """The templates of the platform."""
        return TemplateManager(self._bridge, self._blocking.templates)

    def with_options(
        self,
        *,
        timeout: float | Unset | None = UNSET,
        max_retries: int | Unset = UNSET,
        headers: Mapping[str, str] | Unset = UNSET,
    ) -> AgentRuntimeClient:
        """Return a client with other settings that shares everything with this one.

        Closing one of the two closes both.

        Args:
            timeout: Total seconds of an invocation; None means no limit.
            max_retries: Further attempts of a call that may be repeated.
            headers: Further headers of every request, besides this client's.

        Raises:
            ConfigurationError: A value cannot be used.
        """
        variant = self._blocking.with_options(
            timeout=timeout, max_retries=max_retries, headers=headers
        )
        return _mirror(type(self), variant, self._bridge)

    def list_sessions(self) -> tuple[blocking.SessionStatus, ...]:
        """Return what is known of this client's live sessions, without asking."""
        return self._blocking.list_sessions()

    list_templates = awaited(blocking.AgentRuntimeClient.list_templates)
    get_template = awaited(blocking.AgentRuntimeClient.get_template)
    template_exists = awaited(blocking.AgentRuntimeClient.template_exists)
    create_session = opening(
        blocking.AgentRuntimeClient.create_session,
        _session,
        discard=_give_back,
    )
    attach_session = opening(
        blocking.AgentRuntimeClient.attach_session, _session, discard=_give_back
    )
    invoke_agent = awaited(blocking.AgentRuntimeClient.invoke_agent)
    invoke_agent_stream = streaming(blocking.AgentRuntimeClient.invoke_agent_stream)
    invoke_stream = invoke_agent_stream
    invoke_many = opening(
        blocking.AgentRuntimeClient.invoke_many, _batch, discard=blocking.Batch.close
    )
    invoke_agent_runtime = opening(
        blocking.AgentRuntimeClient.invoke_agent_runtime, _answer, discard=_drop
    )
    close_session = ending(blocking.AgentRuntimeClient.close_session)
    close_all = ending(blocking.AgentRuntimeClient.close_all)

    async def close(self) -> None:
        """End everything of this client: streams, sessions and their sandboxes.

        Further calls raise `ClientClosedError`. Idempotent; takes at most 40 s.
        """
        await self._bridge.close(self._blocking.close)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _mirror, (type(self), self._blocking)


def _mirror(
    cls: type[_C],
    client: blocking.AgentRuntimeClient,
    bridge: Bridge | None = None,
) -> _C:
    made = cls.__new__(cls)
    Mirror.__init__(made, bridge or Bridge(), client)
    return made
