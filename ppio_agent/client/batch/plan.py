"""What a batch is asked for, and what it gives: values alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

from attrs import Attribute, field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.client.invocation import AgentRequest
from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.models import InvocationResponse

from .progress import BatchProgress, ProgressBar

__all__ = ["BatchItem", "BatchPlan", "Pool", "pool"]

# Items taken from the input ahead of the consumer, for each worker.
_AHEAD = 4


def _positive(_: object, attribute: Attribute[int], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValidationError(f"{attribute.name} has to be a whole number above 0")


@frozen
class Pool:
    """As many sandboxes, used again and again, one item each at a time."""

    size: int = field(validator=_positive)


def pool(size: int) -> Pool:
    """Return the choice of `size` reused sandboxes, for ``invoke_many(sessions=…)``."""
    return Pool(size)


@frozen(kw_only=True)
class BatchItem:
    """What became of one request.

    Attributes:
        index: Its place in the input.
        request: The request.
        response: The answer; None after an error.
        error: What went wrong, or None.
        attempts: How often it was tried: more than once if the platform had refused it
            for a while, or if its sandbox had died unused.
        elapsed: Seconds from its start, its sandbox included.
        from_journal: Whether an earlier run had got the answer; nothing ran this time.
    """

    index: int
    request: AgentRequest
    response: InvocationResponse | None = None
    error: Exception | None = None
    attempts: int = 1
    elapsed: float = 0.0
    from_journal: bool = False


@frozen(kw_only=True)
class BatchPlan:
    """How a batch is run; see `AgentRuntimeClient.invoke_many`."""

    deadline: Deadline
    max_workers: int = field(default=8, validator=_positive)
    sessions: Literal["per-request"] | Pool = field(default="per-request")
    ordered: bool = True
    return_exceptions: bool = False
    timeout: float | None = None
    on_progress: Callable[[BatchProgress], object] | None = field(default=None)
    bar: bool = False
    journal: str | os.PathLike[str] | None = field(default=None)

    @sessions.validator
    def _known(self, _: object, value: object) -> None:
        if value != "per-request" and not isinstance(value, Pool):
            raise ValidationError('sessions has to be "per-request" or pool(n)')

    @on_progress.validator
    def _callable(self, _: object, value: object) -> None:
        if value is not None and not callable(value):
            raise ValidationError("on_progress has to be a function, or None")

    @journal.validator
    def _path(self, _: object, value: object) -> None:
        if value is None:
            return
        if not isinstance(value, (str, os.PathLike)) or "\0" in str(value):
            raise ValidationError("journal has to be the path of a file, or None")

    @property
    def workers(self) -> int:
        """How many items run at a time."""
        pooled = self.sessions
        return pooled.size if isinstance(pooled, Pool) else self.max_workers

    @property
    def ahead(self) -> int:
        """How many items are taken from the input ahead of the consumer."""
        return _AHEAD * self.workers

    @property
    def keeps_sessions(self) -> bool:
        """Whether a sandbox serves one item after another."""
        return self.sessions != "per-request"

    def tellers(self) -> list[Callable[[BatchProgress], object]]:
        """Return who is to be told of progress."""
        found = [] if self.on_progress is None else [self.on_progress]
        return [*found, ProgressBar()] if self.bar else found
