"""What a runtime knows of each type of its actors."""

from __future__ import annotations

import re
from collections.abc import Callable

from attrs import field, frozen

from ppio_agent.exceptions import InvalidActorIdError, UnknownActorTypeError
from ppio_agent.storage.actors.records import Limits
from ppio_agent.wire.actors import ActorId

from .options import ActorOptions
from .runtime_abstractions import IActor, IActorRuntimeContext

__all__ = ["ANONYMOUS", "ActorFactory", "ActorType", "ActorTypes"]

ANONYMOUS = "anon-"
"""Begins the instance id of a conversation whose beginner gave it no name."""

ActorFactory = Callable[[IActorRuntimeContext], IActor]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._:\-]{0,99}")
_ANONYMOUS_TTL = 3600.0
_ON_BUSY = ("enqueue", "reject", "interrupt", "rollback")


@frozen(kw_only=True)
class ActorType:
    """A registered type of actors.

    Attributes:
        name: The `type_name` of its actors.
        factory: Makes an actor, in its first turn.
        options: Its limits.
        kind: A word for people, such as `test`.
        description: A sentence for people.
        expose: Whether it may be reached over HTTP.
        is_agent: Whether its actors are conversations with an agent.
        limits: What `IActorStore.accept` is told, by `on_busy`.
    """

    name: str
    factory: ActorFactory
    options: ActorOptions
    kind: str = "custom"
    description: str = ""
    expose: bool = False
    is_agent: bool = False
    limits: dict[str, Limits] = field(repr=False)

    def state_ttl(self, actor_id: ActorId) -> float | None:
        """Return how long after a turn the state of an actor is deleted; None: never.

        A conversation without a name is not come back to for long.
        """
        ttl = self.options.state_ttl
        if ttl is None and self.expose and actor_id.instance_id.startswith(ANONYMOUS):
            return _ANONYMOUS_TTL
        return ttl


class ActorTypes:
    """The types of one runtime, by name.

    Args:
        max_pending: Most requests that wait or run, over all types.

    Thread safety: thread-safe; a type is replaced as a whole.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._types: dict[str, ActorType] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._types

    def register(
        self,
        name: str,
        factory: ActorFactory,
        *,
        options: ActorOptions,
        kind: str = "custom",
        description: str = "",
        expose: bool = False,
        is_agent: bool = False,
    ) -> ActorType:
        """Add a type, or replace it for actors that are activated from now on.

        Raises:
            InvalidActorIdError: The name cannot be one of a type.
            TypeError: The factory cannot be called.
        """
        if type(name) is not str or not _NAME.fullmatch(name):
            raise InvalidActorIdError(
                f"the actor type {name!r:.120} is not a letter or _, then at most 99 of"
                " A-Z a-z 0-9 . _ : -"
            )
        if not callable(factory):
            raise TypeError(f"the factory of actor type {name} cannot be called")
        limits = {
            on_busy: Limits(
                mailbox=options.mailbox_limit,
                drop_oldest=options.mailbox_policy == "drop_oldest",
                pending=self._max_pending,
                on_busy=on_busy,
            )
            for on_busy in _ON_BUSY
        }
        actor_type = ActorType(
            name=name,
            factory=factory,
            options=options,
            kind=kind,
            description=description,
            expose=expose,
            is_agent=is_agent,
            limits=limits,
        )
        self._types[name] = actor_type
        return actor_type

    def find(self, name: str) -> ActorType:
        """Return a type.

        Raises:
            UnknownActorTypeError: There is none of this name.
        """
        found = self._types.get(name)
        if found is None:
            raise UnknownActorTypeError(
                f"No factory registered for actor type: {name}", actor_id=name
            )
        return found

    def listed(self) -> list[ActorType]:
        """Return all types, by name."""
        return [self._types[name] for name in sorted(self._types)]
