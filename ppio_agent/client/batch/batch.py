"""Many invocations of one agent, a bounded number at a time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import evolve

from ppio_agent._util.closing import Closing, Unshared
from ppio_agent.client.invocation import AgentRequest
from ppio_agent.exceptions import BatchError, ValidationError
from ppio_agent.wire.models import InvocationResponse

from .crew import BatchCrew
from .journal_file import BatchJournal
from .plan import BatchItem, BatchPlan
from .supply import BatchSupply

__all__ = ["Batch"]

# A sandbox is killed within 10 s, and an interrupt is raised no later.
_STOP_LIMIT = 9.5


class Batch(Unshared, Closing):
    """The items of a batch, as they come; work has begun when it is made.

    Iterate it, or take `results`. Leaving early, by `close`, an error or an
    interrupt, drops what has not begun, aborts what runs, kills the sandboxes and
    closes the input if it is a generator.

    Thread safety: one thread iterates; `close` may come from any other, and whoever
    iterates then gets a `BatchError`. A forked child cannot go on with it.

    Blocking: the next item is waited for.
    """

    _instead = "take its `results()`, or begin it again with the same `journal`"

    def __init__(
        self, supply: BatchSupply, requests: Iterable[AgentRequest], plan: BatchPlan
    ) -> None:
        if isinstance(requests, (str, bytes, Mapping)):
            raise ValidationError(
                "the requests of a batch have to be several: a list, or any iterable"
            )
        self._plan = plan
        self._pid = os.getpid()
        self._over = False
        journal = None
        if plan.journal is not None:
            journal = supply.open_journal(plan.journal)
            supply = evolve(supply, batch_id=journal.batch_id)
        try:
            if journal is not None and isinstance(requests, Sequence):
                _check(journal, requests)
            self._crew = BatchCrew(supply, requests, plan, journal)
        except BaseException:
            if journal is not None:
                journal.close()
            raise
        try:
            self._crew.start()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[BatchItem]:
        return self

    def __next__(self) -> BatchItem:
        if self._over:
            raise StopIteration
        if self._pid != os.getpid():
            raise BatchError("the batch belongs to the parent of this process")
        try:
            item = self._crew.next_item()
            if item.error is not None and not self._plan.return_exceptions:
                raise item.error
        except BaseException:
            self._over = True
            self.close()
            raise
        return item

    def results(self) -> list[InvocationResponse | Exception]:
        """Wait for all that is left and return answers and errors in input order.

        Raises:
            Exception: The first error, unless the batch returns exceptions.
        """
        items = sorted(self, key=lambda item: item.index)
        # One of the two is there. An answer is a mapping: its truth would be its length.
        return [i.response if i.error is None else i.error for i in items]  # type: ignore[misc]

    def close(self) -> None:
        """Drop what has not begun, abort what runs, kill the sandboxes. Idempotent."""
        if self._pid == os.getpid():
            self._crew.stop()
            self._crew.wait(_STOP_LIMIT)

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None and self._pid == os.getpid() and crew.stop():
            warnings.warn(
                "a batch was let go of before its end; close it, or use `with`",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


def _check(journal: BatchJournal, requests: Sequence[AgentRequest]) -> None:
    """Raise if these are not the requests of the journal, before anything runs."""
    for index in journal.entries:
        if index < len(requests):
            journal.recall(index, requests[index])
