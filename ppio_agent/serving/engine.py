"""What an app runs on: its entrypoints, its slots, and every invocation it knows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.ids import new_id
from ppio_agent._util.threads import NoThreadError, PoolSaturatedError, WorkerPool
from ppio_agent.agent import (
    Handler,
    Invocation,
    InvocationRegistry,
    InvocationState,
    RequestContext,
)
from ppio_agent.agent.context import CancelReason
from ppio_agent.agent.lifetime import Departure
from ppio_agent.agent.progress import Step
from ppio_agent.agent.registry import Admission, RunKey
from ppio_agent.exceptions import (
    ConfigurationError,
    NotFoundError,
    ServerBusyError,
    ServerDrainingError,
    ServiceUnavailableError,
)
from ppio_agent.web import retry_after
from ppio_agent.web.exchange import Exchange

from .answers import describe
from .call import Call, departure_rule, read_call
from .config import AgentConfig, own_sandbox_id
from .health import Health
from .metrics import Counters
from .passthrough import encode_result, is_response

if TYPE_CHECKING:
    from .middleware import Middleware

__all__ = ["Engine", "Entrypoint"]

_log = logging.getLogger(__name__)

# Seconds from which on it pays to have a thread each for user code and answer at once.
_SLOW = 0.02
# Behind a server without lanes, a request waits so long for a slot.
_SLOT_PATIENCE = 1.0


@frozen
class Entrypoint:
    """One function that is served.

    Attributes:
        handler: The function.
        timeout: Seconds an invocation may take; None: no limit.
        on_disconnect: What becomes of it when its last reader leaves; None: what the
            request says, see `departure_rule`.
    """

    handler: Handler
    timeout: float | None
    on_disconnect: Departure | None = None

    def __attrs_post_init__(self) -> None:
        if self.on_disconnect not in (None, "cancel", "detach"):
            raise ValueError(
                f"on_disconnect has to be cancel or detach, not {self.on_disconnect!r}"
            )


class Engine:
    """Starts invocations for requests and keeps track of them.

    Args:
        config: The app's settings.
        name: The app's name.
        version: The app's version.
        security_schemes: How callers say who they are, as OpenAPI describes it.

    Attributes:
        middleware: What runs around each handler, outermost first; set at the start.
        host: The address that a server of ours listens on; None without one.
        server_stats: Gives the numbers of that server, see `ppio_agent.web.Server`.

    Thread safety: thread-safe once the first request is served; entrypoints and
    middleware are added before that.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        name: str,
        version: str,
        security_schemes: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.name = name
        self.version = version
        self.security_schemes = security_schemes
        self.sandbox_id = own_sandbox_id()
        self.entrypoints: dict[str, Entrypoint] = {}
        self.default: Entrypoint | None = None
        self.middleware: tuple[Middleware, ...] = ()
        self.draining = False
        self.counters = Counters()
        self.host: str | None = None
        self.server_stats: Callable[[], Mapping[str, Any]] | None = None
        self.registry = InvocationRegistry(retention=config.retention)
        registry = self.registry
        self.health = Health(lambda: registry.live, lambda: registry.live_changed_at)
        # A slot is a thread: user code holds it until it ends, whatever became of
        # the request.
        self.slots = WorkerPool(
            "ppio-invoke",
            max_threads=config.max_concurrency,
            max_waiting=config.max_queue,
        )
        self._durations: deque[float] = deque(maxlen=32)
        # Whether the latest invocation was: the next one is likely to be like it.
        self.quick = True
        self._describe = partial(describe, expose=config.expose_errors)

    @property
    def shows_playground(self) -> bool:
        """Whether browsers get a page to talk to the agent."""
        return self.config.shows_playground(self.host)

    @cached_property
    def openapi(self) -> dict[str, Any]:
        """The description of the API, made when somebody first asks for it."""
        from .openapi import document

        return document(self)

    def add(self, entrypoint: Entrypoint, *, named: bool) -> None:
        """Serve one more function.

        Raises:
            RuntimeError: Its name is taken, or it is a second one without a name.
        """
        name = entrypoint.handler.name
        if not named and self.default is not None:
            raise RuntimeError(
                f"{self.default.handler.name} is the entrypoint already; a further one"
                " needs a name: @app.entrypoint(name=…)"
            )
        if name in self.entrypoints:
            raise RuntimeError(f"the entrypoint {name!r} exists already")
        self.entrypoints[name] = entrypoint
        if not named:
            self.default = entrypoint

    def choose(self, name: str | None) -> Entrypoint:
        """Return the entrypoint that a request means.

        Raises:
            ConfigurationError: There is none at all.
            NotFoundError: None has this name, or there is no unnamed one.
        """
        known = self.entrypoints
        if not known:
            raise ConfigurationError("No entrypoint defined")
        if name is None and self.default is not None:
            return self.default
        if name is None and len(known) == 1:
            return next(iter(known.values()))
        found = None if name is None else known.get(name)
        if found is None:
            raise NotFoundError(
                f"there is no entrypoint {name or 'without a name'};"
                f" known are {', '.join(sorted(known))}",
                code="entrypoint_not_found",
            )
        return found

    def begin(self, exchange: Exchange) -> tuple[Admission, Call]:
        """Enter the invocation that a request asks for, or join it to a known one.

        A new one is still to be started.

        Raises:
            ServerDrainingError: Nothing is begun any more.
            PPIOAgentError: The request cannot be used, or conflicts.
        """
        if self.draining:
            raise ServerDrainingError("the agent is shutting down", retry_after=1.0)
        entrypoint = self.choose(exchange.query("entrypoint"))
        payload = exchange.json()
        call = read_call(exchange.environ, payload, home=self.sandbox_id)
        key = None
        if call.key is not None:
            name = entrypoint.handler.name
            key = RunKey.of(call.key, entrypoint=name, body=exchange.body)
        invocation = self._make(entrypoint, payload, call, exchange)
        admission = self.registry.admit(invocation, key)
        if admission.is_new:
            invocation.when_over(self.counters.over, quick=True)
        else:
            self.counters.replayed()
        return admission, call

    def _make(
        self, entrypoint: Entrypoint, payload: Any, call: Call, exchange: Exchange
    ) -> Invocation:
        timeout, wish = entrypoint.timeout, call.timeout
        if wish is not None and (timeout is None or wish < timeout):
            timeout = wish
        metadata = payload.get("metadata") if isinstance(payload, dict) else None
        context = RequestContext(
            invocation_id=call.invocation_id or f"inv_{new_id()}",
            request_id=exchange.request_id,
            session_id=call.session_id,
            timestamp=utc_now(),
            metadata=metadata if isinstance(metadata, dict) else {},
            headers=exchange.shown_headers,
            principal=exchange.principal,
            sandbox_id=call.sandbox_id,
            deadline=None if timeout is None else exchange.arrived + timeout,
        )
        chain = None
        if self.middleware:
            from .middleware import Chain

            chain = Chain(self.middleware, exchange.path)
        invocation = Invocation(
            entrypoint.handler,
            payload,
            context,
            around=chain,
            departure=departure_rule(
                call,
                exchange.environ.get("HTTP_ACCEPT"),
                fixed=entrypoint.on_disconnect,
            ),
            detach_grace=self.config.detach_grace,
            reserve=not call.respond_async,
            describe=self._describe,
            encode=encode_result,
            on_settled=self._settled,
        )
        if chain is not None:
            chain.bind(invocation)
        return invocation

    def start(self, invocation: Invocation, *, patient: bool) -> None:
        """Start a new invocation, or forget it.

        Args:
            invocation: What `begin` gave.
            patient: Whether it may wait for a slot as long as its deadline allows,
                because somebody in front counts who waits.

        Raises:
            ServiceUnavailableError: There is no slot for it.
        """
        try:
            invocation.start(self.slots)
        except PoolSaturatedError:
            raise self._refuse(invocation, self._busy_error()) from None
        except NoThreadError:
            error = ServiceUnavailableError(
                f"no thread can be started for invocation {invocation.id};"
                " try again later",
                retry_after=1.0,
            )
            raise self._refuse(invocation, error) from None
        except RuntimeError:
            closing = ServerDrainingError("the agent is shutting down", retry_after=1.0)
            raise self._refuse(invocation, closing) from None
        if patient or invocation.progress.wait(
            Step.STARTED | Step.OVER, _SLOT_PATIENCE
        ):
            return
        busy = self._busy_error()
        if invocation.refuse(busy):
            self.registry.withdraw(invocation)
            raise busy

    def run_here(self, run: Callable[[], object]) -> bool:
        """Run user code on the calling thread, if there is a slot for it.

        Returns:
            Whether there was one; if not, nothing was run.
        """
        return self.slots.run_here(run)

    def _refuse(
        self, invocation: Invocation, error: ServiceUnavailableError
    ) -> ServiceUnavailableError:
        """Take an admitted invocation back; whoever joined it gets the same error."""
        invocation.refuse(error)
        self.registry.withdraw(invocation)
        return error

    def waiting(self) -> int:
        """Return how many invocations wait for a slot."""
        return self.slots.waiting

    def durations(self) -> list[float]:
        """Return for how many seconds the latest invocations had their slots."""
        return list(self._durations.copy())

    def _busy_error(self) -> ServerBusyError:
        waiting = self.slots.waiting
        limit = self.config.max_concurrency
        seconds = retry_after(self.durations(), waiting=waiting, slots=limit)
        return ServerBusyError(
            f"all {limit} slots are taken and {waiting} requests wait; try again later",
            retry_after=float(seconds),
        )

    def leave(
        self, invocation: Invocation, reason: CancelReason = "disconnect"
    ) -> None:
        """Note that a reader has left, and count it if that was before the end."""
        if invocation.leave(reason):
            self.counters.left(invocation.departure)

    def _settled(self, invocation: Invocation) -> None:
        if not is_response(invocation.value):
            invocation.forget_value()  # answers are made of its JSON
        self.registry.settled(invocation)
        # Now, and not once the caller knows: its next request may come at once.
        self.slots.free_place()
        held = invocation.slot_seconds
        if held is not None:
            self.quick = held < _SLOW
            self._durations.append(held)
        failure = invocation.failure
        if invocation.state is InvocationState.FAILED and failure is not None:
            unexpected = failure.http_status >= 500
            _log.log(
                logging.ERROR if unexpected else logging.INFO,
                "invocation %s failed: %s",
                invocation.id,
                failure.error_type,
                exc_info=invocation.error if unexpected else None,
                extra={
                    "ppio_request_id": invocation.context.request_id,
                    "ppio_invocation_id": invocation.id,
                    "ppio_session_id": invocation.context.session_id,
                },
            )

        if invocation.error is not None and not self.config.debug:
            _forget_frames(invocation.error)

    def drain(self) -> None:
        """Begin nothing more: what waits for a slot is cancelled, what runs goes on."""
        self.draining = True
        self.health.drain()
        self.registry.cancel_all("shutdown", pending_only=True)

    def close(self, *, grace: float) -> bool:
        """Cancel whatever runs, take nothing more, and end the threads. Idempotent.

        Args:
            grace: Seconds that user code has to end.

        Returns:
            Whether all of it has ended.
        """
        self.draining = True
        self.registry.cancel_all("shutdown")
        ended = self.slots.close(grace)
        self.health.close()
        return ended


def _forget_frames(error: BaseException) -> None:
    """Let go of the frames of an exception, and so of all that its code had in hand.

    It is kept for replays, for minutes; only debug answers show where it came from.
    """
    seen: list[BaseException] = []
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and one not in seen:
            seen.append(one)
            chain += [one.__cause__, one.__context__]
            one.__traceback__ = None
