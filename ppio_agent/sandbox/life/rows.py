"""What is kept of a live sandbox, so that a next platform can take it up. Values."""

from __future__ import annotations

import enum
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from ppio_agent.sandbox.backends.base import LineAddress
from ppio_agent.sandbox.supervisor.tree import Process
from ppio_agent.sandbox.templates.records import Build
from ppio_agent.wire.json import Json
from ppio_agent.wire.model import structure

from .machine import EndReason, State
from .options import CreateOptions
from .values import Asked, Identity, Life

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SandboxRow"]


@frozen(kw_only=True)
class SandboxRow:
    """One live sandbox as it is stored.

    Attributes:
        tenant: Whose it is.
        alias: Name of its template.
        build: What it was made from, without its files: the sandbox has them.
        options: How it was asked for, without its environment, which is secret and
            which its supervisor has.
        line: Where its supervisor is reached.
        access_token: As of `Identity`.
        traffic_token: As of `Identity`.
        state: Its state; one that starts was never seen by anybody.
        started_at: When it was accepted.
        end_at: When its time is over.
        pauses: Whether the end of its time pauses it.
        reason: Why it is being killed.
        pid: Of its supervisor, as the host sees it; None until it is known.
        pid_started: When that was started, as the system counts: no later process
            with this pid is taken for it.
        asked: As of `Identity`.
    """

    tenant: str
    alias: str
    build: Build
    options: CreateOptions
    line: LineAddress
    access_token: str | None = field(repr=False)
    traffic_token: str | None = field(repr=False)
    state: State
    started_at: datetime
    end_at: datetime
    pauses: bool
    reason: EndReason | None
    pid: int | None
    pid_started: float | None
    asked: Asked | None

    @classmethod
    def of(
        cls, identity: Identity, life: Life, supervisor: Process | None = None
    ) -> Self:
        """Return what is to be kept of a sandbox."""
        return cls(
            tenant=identity.tenant,
            alias=identity.alias,
            build=attrs.evolve(identity.build, files=(), compiled={}),
            options=attrs.evolve(identity.options, env={}),
            line=identity.line,
            access_token=identity.access_token,
            traffic_token=identity.traffic_token,
            state=life.state,
            started_at=life.started_at,
            end_at=life.end_at,
            pauses=life.pauses,
            reason=life.reason,
            pid=supervisor.pid if supervisor else None,
            pid_started=supervisor.started if supervisor else None,
            asked=identity.asked,
        )

    @classmethod
    def parse(cls, body: Json) -> Self:
        """Return the row that was stored.

        Raises:
            WireError: It is not one of this version.
        """
        return structure(cls, body)

    @property
    def supervisor(self) -> Process | None:
        """The supervisor's process; None if it was not known."""
        if self.pid is None or self.pid_started is None:
            return None
        return Process(self.pid, self.pid_started)

    def to_body(self) -> dict[str, Json]:
        """Return what is stored."""
        return attrs.asdict(self, value_serializer=_plain)

    def identity(self, sandbox_id: str, root: Path) -> Identity:
        """Return what never changes about the sandbox."""
        return Identity(
            id=sandbox_id,
            tenant=self.tenant,
            alias=self.alias,
            build=self.build,
            options=self.options,
            root=root,
            line=self.line,
            access_token=self.access_token,
            traffic_token=self.traffic_token,
            asked=self.asked,
        )

    def life(self, *, now: datetime, monotonic: float) -> Life:
        """Return how the sandbox lives, its end on the clock of this platform.

        Args:
            now: The present instant.
            monotonic: The same on the monotonic clock.
        """
        return Life(
            state=self.state,
            started_at=self.started_at,
            end_at=self.end_at,
            ends=monotonic + (self.end_at - now).total_seconds(),
            pauses=self.pauses,
            reason=self.reason,
        )


def _plain(_: type, __: attrs.Attribute[Any], value: Any) -> Json:
    return value.value if isinstance(value, enum.Enum) else value
