"""The runtime of actors in this process."""

from __future__ import annotations

import math
import os
import threading
import time
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ConfigurationError, RuntimeNotRunningError
from ppio_agent.hooks import Hooks
from ppio_agent.storage.actors import IActorStateStorage, IActorStore
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from ppio_agent.storage.actors.records import DeadLetter
from ppio_agent.storage.actors.stateonly import as_store
from ppio_agent.wire.actors import ActorId

from . import _letters, _people
from ._checks import check_actor_id, check_count, check_seconds
from ._context import InProcessActorContext
from ._engine import Engine
from ._stop import stop
from ._types import ActorFactory, ActorTypes
from .client import InProcessActorClient, InProcessResponseHandle
from .options import ActorOptions, RuntimeOptions, Supervision
from .runtime_abstractions import ActorResponseHandle, IActorPlacement
from .telemetry import SafeTelemetry

if TYPE_CHECKING:
    from typing_extensions import Self

    from .telemetry import ActorTelemetry

__all__ = [
    "ActorOptions",
    "InMemoryStateStorage",
    "InProcessActorClient",
    "InProcessActorContext",
    "InProcessActorRuntime",
    "RuntimeOptions",
    "Supervision",
]


def _has(given: object, method: str) -> bool:
    return given is None or callable(getattr(given, method, None))


def _check_given(name: str, is_right: bool, given: object) -> None:  # noqa: FBT001 - what is checked
    if not is_right:
        raise ConfigurationError(
            f"{name} cannot be a {type(given).__name__}: leave it out, or give what"
            " InProcessActorRuntime describes"
        )


class InProcessActorRuntime:
    """Runs actors on threads of this process.

    Args:
        storage: Where actors are kept: a store, an object with the three methods of
            `IActorStateStorage`, or a URL; None: in memory. What is given as a URL is
            opened by `start` and closed by `stop`.
        options: Limits.
        placement: Who is told which actors have something to do, instead of the own
            threads; it then calls `run_actor` somewhere.
        telemetry: Is told of requests, turns and commits, such as an `OpenTelemetry`;
            None: nobody is.

    Attributes:
        options: Its limits.
        types: The registered types.
        telemetry: What is told of them.

    Raises:
        ConfigurationError: What is given is not of that kind.

    Thread safety: thread-safe. A forked child has a stopped runtime, which it may
    start.

    Example:
        >>> class Greeter(IActor):
        ...     def receive(self, context, message):
        ...         return f"Hello {message.params['name']}"
        >>> from ppio_agent.actors import ActorId, IActor
        >>> with InProcessActorRuntime() as runtime:
        ...     runtime.register_actor_type("greeter", lambda context: Greeter())
        ...     runtime.client().ask(ActorId("greeter", "1"), "hi", {"name": "Ann"}).data
        'Hello Ann'
    """

    def __init__(
        self,
        storage: IActorStateStorage | str | None = None,
        *,
        options: RuntimeOptions | None = None,
        placement: IActorPlacement | None = None,
        telemetry: ActorTelemetry | None = None,
    ) -> None:
        self.options = RuntimeOptions() if options is None else options
        _check_given("options", isinstance(self.options, RuntimeOptions), options)
        _check_given("placement", _has(placement, "wake"), placement)
        _check_given("telemetry", _has(telemetry, "watch"), telemetry)
        self._storage = storage
        self._placement = placement
        self.telemetry = None if telemetry is None else SafeTelemetry(telemetry)
        if self.telemetry is not None:
            self.telemetry.watch(self)
        self.types = ActorTypes(self.options.max_pending)
        self._client = InProcessActorClient(self)
        self._engine: Engine | None = None
        self._store: IActorStore | None = None
        if not isinstance(storage, (str, type(None))):  # those are opened when needed
            self._store = as_store(storage)
        self._forget()
        renew_in_child(self, InProcessActorRuntime._forget)

    def _forget(self) -> None:
        self._lock = threading.Lock()  # Lets one thread at a time start or stop it.
        if self._engine is not None:
            self._engine.after_fork()
            self._engine = None
        self._stop_by = math.inf
        if isinstance(self._storage, (str, type(None))):
            self._store = None  # a parent's must not be used; a memory is given up

    # Types.

    def register_actor_type(
        self,
        type_name: str,
        factory: ActorFactory,
        *,
        options: ActorOptions | None = None,
        kind: str = "custom",
        description: str = "",
        expose: bool = False,
    ) -> None:
        """Say how actors of a type are made; replaces an earlier one of this name.

        Args:
            type_name: The `type_name` of their ids.
            factory: Called with the context of a new actor, within its first turn.
            options: Limits of these actors; None: those of the runtime.
            kind: A word for people, such as `test`.
            description: A sentence for people.
            expose: Whether they may be reached over HTTP.

        Raises:
            InvalidActorIdError: The name cannot be one of a type.
        """
        self.types.register(
            type_name,
            factory,
            options=options or self.options.actor,
            kind=kind,
            description=description,
            expose=expose,
        )

    def register_agent(
        self,
        name: str,
        agent: Any,
        *,
        history: int | None = None,
        options: ActorOptions | None = None,
        kind: str = "custom",
        description: str = "",
    ) -> None:
        """Make conversations with an agent actors of a type; they are exposed.

        Args:
            name: The name of the agent and of the type.
            agent: Whatever `AgentActor` takes, and what plug-ins adapt.
            history: How many earlier messages of a conversation it gets; None: all.
            options: As for `register_actor_type`.
            kind: A word for people, such as `mock`.
            description: A sentence for people.

        Raises:
            InvalidActorIdError: The name cannot be one of a type.
            TypeError: The agent cannot be called.
        """
        from .agent_actor import AgentActor, agent_handler

        handler = agent_handler(agent, Hooks.load())
        make = partial(AgentActor, handler, history=history, debug=self.options.debug)
        make()  # what cannot be made is told here, not in the first turn
        self.types.register(
            name,
            lambda _context: make(),
            options=options or self.options.actor,
            kind=kind,
            description=description,
            expose=True,
            is_agent=True,
        )

    # Its life.

    @property
    def engine(self) -> Engine:
        """What runs it; for the parts of this package.

        Raises:
            RuntimeNotRunningError: It was not started, or was stopped.
        """
        engine = self._engine
        if engine is None:
            raise RuntimeNotRunningError(
                "the runtime of the actors does not run: call start() first"
            )
        return engine

    @property
    def running(self) -> bool:
        """Whether it takes requests."""
        engine = self._engine
        return engine is not None and engine.running

    @property
    def store(self) -> IActorStore:
        """Where its actors are kept; opened when it is asked for first."""
        if self._store is None:
            self._store = as_store(self._storage)
        return self._store

    def start(self) -> Self:
        """Take requests, and run what waits in the store.

        Returns:
            Itself. One that runs goes on.

        Raises:
            ConfigurationError: The store cannot be opened.
            OSError: The store fails.
            ServiceUnavailableError: The store cannot be reached.
        """
        with self._lock:
            if self._engine is None:
                engine = Engine(
                    self,
                    self.store,
                    types=self.types,
                    options=self.options,
                    placement=self._placement,
                    worker=f"{os.getpid()}-{new_id()[:12]}",
                    telemetry=self.telemetry,
                )
                try:
                    engine.start()
                except BaseException:
                    stop(engine, lambda: 0.0)  # what it has begun
                    raise
                self._engine = engine
        return self

    def stop(self, drain: float = 30.0) -> int:
        """Refuse requests, let running turns end, and let go of all actors.

        In a store that is not durable whatever has not ended is CANCELLED; in a durable
        one it is kept, and who waits for it gets `RuntimeStoppedError`.

        Args:
            drain: Seconds for which running turns may go on; then they are cancelled,
                and after another second left alone. A second call that gives them less
                time hurries the first.

        Returns:
            How many threads are busy still. One that is stopped does nothing.

        Raises:
            InvalidMessageError: The time is no number of seconds from 0 to 10 years.
        """
        by = time.monotonic() + check_seconds("drain", drain)
        self._stop_by = min(self._stop_by, by)
        with self._lock:
            engine, busy = self._engine, 0
            if engine is not None:
                busy = stop(engine, lambda: self._stop_by)
                self._engine = None
            self._stop_by = math.inf
            if isinstance(self._storage, str) and self._store is not None:
                self._store.close()
                self._store = None
        return busy

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Use.

    def client(self) -> InProcessActorClient:
        """Return what requests are sent with."""
        return self._client

    def get_or_create_actor(self, actor_id: ActorId) -> InProcessActorContext:
        """Return an actor, to send requests to; it is activated by the first.

        Raises:
            UnknownActorTypeError: No such type is registered.
        """
        self.types.find(check_actor_id(actor_id).type_name)
        return InProcessActorContext(actor_id, self.store, self)

    def run_actor(self, actor_id: ActorId, budget: float = 10.0) -> bool:
        """Run what waits for an actor, on this thread; what a woken worker calls.

        Safe at any time. An actor that does not live here is let go afterwards.

        Args:
            actor_id: The actor.
            budget: Seconds after which no further turn begins.

        Returns:
            Whether a turn was run; not if it lives elsewhere, or another thread of
            this process runs it.
        """
        engine = self.engine
        end = time.monotonic() + check_seconds("budget", budget)
        return engine.drainer.run_until(engine.cell(check_actor_id(actor_id)), end)

    def sweep(self) -> int:
        """Do what is due in the store, at once; return how many actors were woken."""
        return self.engine.sweep.run()

    # For people.

    def inspect(self, actor_id: ActorId) -> dict[str, Any]:
        """Return what is known of an actor.

        Returns:
            ``{"actor_id", "live", "queued", "running", "last_turn", "etag", "worker"}``:
            texts and numbers, `running` and `last_turn` (RFC 3339) perhaps None.

        Raises:
            NotFoundError: Nothing is.
        """
        return _people.inspect(self.engine, check_actor_id(actor_id))

    def stats(self) -> dict[str, Any]:
        """Return how much there is of what: numbers by name."""
        return _people.stats(self.engine)

    @property
    def degraded(self) -> list[str]:
        """Types of which many actors were stopped lately, sorted."""
        engine = self._engine
        return [] if engine is None else engine.supervisor.degraded()

    def delete_actor(self, actor_id: ActorId) -> bool:
        """Remove an actor with its state and requests; return whether it had any.

        Raises:
            ActorBusyError: A turn of it runs, here or elsewhere.
        """
        return _people.delete(self.engine, check_actor_id(actor_id))

    def dead_letters(
        self, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Return requests that could not be done, the oldest first.

        Args:
            limit: At most so many, from 0 on.
            after: From behind the letter with this id.
        """
        return self.store.dead_letters(check_count("limit", limit), after)

    def redrive(self, id: str) -> ActorResponseHandle:
        """Send the request of a dead letter again, under a new id; the letter goes.

        Raises:
            NotFoundError: There is no such letter.
            PPIOAgentError: The request is refused, see `IActorClient.send_request`; the
                letter stays.
        """
        engine = self.engine
        return InProcessResponseHandle(engine, _letters.redrive(engine, id))

    def discard(self, id: str) -> bool:
        """Remove a dead letter; return whether there was one."""
        return self.store.discard(id)
