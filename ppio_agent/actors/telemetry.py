"""What a runtime tells of what it does: the seam of its spans and metrics."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ppio_agent.storage.actors.records import RequestRecord, TurnCommit
from ppio_agent.wire.actors import ActorId, RequestStatus

if TYPE_CHECKING:
    from .runtime import InProcessActorRuntime

__all__ = ["ActorTelemetry", "Count", "Ending", "SafeTelemetry", "below"]

_log = logging.getLogger(__name__)

_T = TypeVar("_T")


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
    what came of it. What the methods raise is logged, and otherwise ignored.

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


class SafeTelemetry:
    """A telemetry of which nothing that it raises stops what it is told of.

    An exporter that fails does so each time: it is logged once.

    Args:
        telemetry: What is told.
    """

    def __init__(self, telemetry: ActorTelemetry) -> None:
        self._telemetry = telemetry
        self._is_told = False

    def failed(self) -> None:
        """Log the exception that is handled now, if it is the first."""
        if not self._is_told:
            self._is_told = True
            _log.exception("the telemetry of actors failed, and may be incomplete")

    def watch(self, runtime: InProcessActorRuntime) -> None:
        """Look at a runtime; see `ActorTelemetry.watch`."""
        self._call(lambda: self._telemetry.watch(runtime))

    def below(self, traceparent: str | None) -> AbstractContextManager[None]:
        """Make what is sent part of a trace; see `ActorTelemetry.below`."""
        return _Safe(self, lambda: self._telemetry.below(traceparent), None)

    def sending(self, request: RequestRecord) -> AbstractContextManager[Ending]:
        """Tell that a request is sent; see `ActorTelemetry.sending`."""
        return _Safe(self, lambda: self._telemetry.sending(request), Ending())

    def turn(
        self, request: RequestRecord, *, caller_runs: bool
    ) -> AbstractContextManager[Ending]:
        """Tell of a turn; see `ActorTelemetry.turn`."""

        def make() -> AbstractContextManager[Ending]:
            return self._telemetry.turn(request, caller_runs=caller_runs)

        return _Safe(self, make, Ending())

    def commit(
        self, actor_id: ActorId, turn: TurnCommit
    ) -> AbstractContextManager[Ending]:
        """Tell of an attempt to commit a turn; see `ActorTelemetry.commit`."""
        return _Safe(self, lambda: self._telemetry.commit(actor_id, turn), Ending())

    def batch(self, size: int) -> None:
        """Tell how many writes were one transaction; see `ActorTelemetry.batch`."""
        self._call(lambda: self._telemetry.batch(size))

    def count(
        self, what: Count, actor_id: ActorId, method: str = "", why: str = ""
    ) -> None:
        """Count one of something; see `ActorTelemetry.count`."""
        self._call(lambda: self._telemetry.count(what, actor_id, method, why))

    def _call(self, fn: Callable[[], object]) -> None:
        try:
            fn()
        except Exception:  # noqa: BLE001 - logged there
            self.failed()


class _Safe(Generic[_T]):
    """A context manager that is entered and left as far as it lets itself be."""

    def __init__(
        self,
        telemetry: SafeTelemetry,
        make: Callable[[], AbstractContextManager[_T]],
        instead: _T,
    ) -> None:
        self._telemetry = telemetry
        self._make = make
        self._instead = instead
        self._manager: AbstractContextManager[_T] | None = None

    def __enter__(self) -> _T:
        try:
            manager = self._make()
            entered = manager.__enter__()
        except Exception:  # noqa: BLE001 - logged there
            self._telemetry.failed()
            return self._instead
        self._manager = manager
        return entered

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._manager is None:
            return
        try:
            self._manager.__exit__(kind, error, traceback)
        except Exception as raised:  # noqa: BLE001 - logged there
            if raised is not error:
                self._telemetry.failed()
