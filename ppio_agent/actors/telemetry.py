"""What a runtime tells of what it does: the seam of its spans and metrics."""

from __future__ import annotations

import enum
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from ppio_agent.storage.actors.records import RequestRecord, TurnCommit
from ppio_agent.wire.actors import ActorId, RequestStatus

if TYPE_CHECKING:
    from .runtime import InProcessActorRuntime

__all__ = ["ActorTelemetry", "Count", "Ending", "below"]


def below(
    telemetry: ActorTelemetry | None, traceparent: str | None
) -> AbstractContextManager[None]:
    """Make what is sent now part of a caller's trace, where there is telemetry."""
    return nullcontext() if telemetry is None else telemetry.below(traceparent)


class Count(enum.Enum):
    """What is counted; the values are names of metrics."""

    REQUESTS = "actor.requests"  # that ended, by status
    REFUSED = "actor.refused"  # by code
    DUPLICATES = "actor.duplicates"
    RESTARTS = "actor.restarts"
    DEAD_LETTERS = "actor.dead_letters"  # by reason
    DEADLOCKS = "actor.deadlocks"
    LEASES_LOST = "actor.lease.lost"
    DISCARDED = "actor.results.discarded"


class Ending:
    """How something that was told of has ended; set before the end is told.

    Attributes:
        status: Of the request; None: not known.
        error: Class of an exception or code of a failure; None: it is no error.
        conflict: Whether a commit found the state changed by others.
    """

    conflict = False
    error: str | None = None
    status: RequestStatus | None = None


class ActorTelemetry(Protocol):
    """Takes what a runtime tells; `ppio_agent.actors.OpenTelemetry` is one.

    Each context manager is entered and left by one thread, and told by its `Ending`
    what came of it. None of the methods may raise.

    Thread safety: thread-safe.
    """

    def watch(self, runtime: InProcessActorRuntime) -> None:
        """Look at `InProcessActorRuntime.stats` from now on; does not keep it alive."""

    def below(self, traceparent: str | None) -> AbstractContextManager[None]:
        """Make what is sent now part of a trace, unless it is part of one already."""

    def sending(self, request: RequestRecord) -> AbstractContextManager[Ending]:
        """Tell that a request is sent, and note in it whose it is (`traceparent`).

        An error of this package that ends it is a refusal, to be counted.
        """

    def turn(
        self, request: RequestRecord, *, caller_runs: bool
    ) -> AbstractContextManager[Ending]:
        """Tell of a turn, which belongs to whoever has sent the request."""

    def commit(
        self, actor_id: ActorId, turn: TurnCommit
    ) -> AbstractContextManager[Ending]:
        """Tell of an attempt to commit a turn."""

    def batch(self, size: int) -> None:
        """Tell how many writes a store has made in one transaction."""

    def count(
        self, what: Count, actor_id: ActorId, method: str = "", why: str = ""
    ) -> None:
        """Count one of something; `why` is a status, code or reason."""
