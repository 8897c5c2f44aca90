"""One worker of a batch: runs one item after another, in sandboxes that it ends."""

from __future__ import annotations

import threading
import time

from attrs import define, frozen

from ppio_agent.client.invocation import AgentRequest, encode_request
from ppio_agent.client.limits import time_left
from ppio_agent.client.session import SandboxSession
from ppio_agent.client.state import SessionState
from ppio_agent.exceptions import (
    AgentUnreachableError,
    BatchJournalError,
    InvocationCancelledError,
    RateLimitError,
    RequestTimeoutError,
    SessionNotFoundError,
)
from ppio_agent.transport import CallScope
from ppio_agent.wire.models import InvocationResponse

from .journal import JournalEntry, Outcome, digest
from .journal_file import BatchJournal
from .plan import BatchItem, BatchPlan
from .supply import BatchSupply

__all__ = ["BatchWorker", "Ended", "Job", "Refused", "SandboxDied"]


@define(eq=False, kw_only=True)
class Job:
    """One item on its way.

    Attributes:
        index: Its place in the input.
        request: The request.
        key: The idempotency key under which it runs.
        left: What an earlier run left of it, to be joined.
        attempts: How often it was begun.
        started_at: When it was first begun; 0 before.
        noted: Whether the journal knows it.
        died: Whether a sandbox was found dead when the item came to it.
    """

    index: int
    request: AgentRequest
    key: str
    left: JournalEntry | None = None
    attempts: int = 0
    started_at: float = 0.0
    noted: bool = False
    died: bool = False

    def item(
        self,
        response: InvocationResponse | None = None,
        error: Exception | None = None,
    ) -> BatchItem:
        """Return what became of it."""
        return BatchItem(
            index=self.index,
            request=self.request,
            response=response,
            error=error,
            attempts=self.attempts,
            elapsed=time.monotonic() - self.started_at,
        )

    def item_of_earlier_run(self, outcome: Outcome) -> BatchItem:
        """Return the item as an earlier run has ended it."""
        return BatchItem(
            index=self.index,
            request=self.request,
            response=outcome.response,
            attempts=outcome.attempts,
            elapsed=outcome.elapsed,
            from_journal=True,
        )


@frozen
class Ended:
    """An item has ended.

    Attributes:
        item: How.
        ticket: What the journal is to be synced to before the item is told.
    """

    item: BatchItem
    ticket: int = 0


@frozen
class Refused:
    """The platform or the agent answered 429: to be tried again, later.

    Attributes:
        error: The answer.
        creating: Whether a sandbox was refused.
    """

    error: RateLimitError
    creating: bool


@frozen
class SandboxDied:
    """The sandbox had died before the item came: to be tried again, in another one."""


class BatchWorker:
    """Runs items, each in a sandbox of its own or all in one.

    Args:
        supply: Where sandboxes come from.
        plan: How the batch is run.
        journal: Where what happens is noted, if anywhere.

    Attributes:
        scope: In which it works; aborting it ends what runs.
        thread: Its thread, once there is one.

    Thread safety: one thread runs items; `end` may come from any other.
    """

    def __init__(
        self, supply: BatchSupply, plan: BatchPlan, journal: BatchJournal | None
    ) -> None:
        self.scope = CallScope()
        self.thread: threading.Thread | None = None
        self._supply = supply
        self._plan = plan
        self._journal = journal
        # Guards the exchange of _session: one thread ends what it takes out.
        self._lock = threading.Lock()
        self._session: SandboxSession | None = None

    @property
    def has_sandbox(self) -> bool:
        """Whether it holds a sandbox."""
        return self._session is not None

    def run(self, job: Job) -> Ended | Refused | SandboxDied:
        """Run an item once.

        Raises:
            BatchJournalError: The journal cannot be written.
        """
        job.attempts += 1
        job.started_at = job.started_at or time.monotonic()
        try:
            return self._run(job)
        finally:
            if not (self._plan.keeps_sessions and self._usable()):
                self.end()

    def _run(self, job: Job) -> Ended | Refused | SandboxDied:
        try:
            response = self._answer(job)
        except BatchJournalError:
            raise
        except RateLimitError as error:
            if not error.retryable:
                return self.failed(job, error)
            return Refused(error, creating=not self.has_sandbox)
        except Exception as error:  # noqa: BLE001 - it belongs to the item
            died = self._found_dead(error)
            if isinstance(error, SessionNotFoundError):
                self.end()  # of no use, also if the platform cannot be asked for it
            if died and not job.died:
                job.died = True
                return SandboxDied()
            return self.failed(job, error)
        item, ticket = job.item(response), 0
        if self._journal is not None:
            outcome = Outcome(
                response=response, attempts=item.attempts, elapsed=item.elapsed
            )
            ticket = self._journal.done(job.index, outcome)
        return Ended(item, ticket)

    def failed(self, job: Job, error: Exception) -> Ended:
        """Note that an item failed.

        Raises:
            BatchJournalError: The journal cannot be written.
        """
        # What was only stopped is left to be joined.
        if self._journal is not None and job.noted and self.scope.error is None:
            self._journal.failed(job.index)
        return Ended(job.item(error=error))

    def _answer(self, job: Job) -> InvocationResponse:
        if self._plan.deadline.expired:
            raise RequestTimeoutError("the batch's deadline passed before this item")
        if job.left is not None:
            response = self._join(job, job.left)
            job.left = None
            if response is not None:
                return response
        if self._session is None:
            encode_request(job.request)  # refused before there is a sandbox
            self._session = self._supply.open(self._plan.deadline)
        if self._journal is not None:
            entry = JournalEntry(
                digest=digest(encode_request(job.request)),
                key=job.key,
                sandbox_id=self._session.sandbox_id,
            )
            self._journal.start(job.index, entry)
            job.noted = True
        return self._invoke(self._session, job)

    def _invoke(self, session: SandboxSession, job: Job) -> InvocationResponse:
        return session.invoke(
            job.request,
            timeout=time_left(self._plan.deadline, self._plan.timeout),
            idempotency_key=job.key,
        )

    def _join(self, job: Job, left: JournalEntry) -> InvocationResponse | None:
        """Return the answer of the run that an earlier process began.

        None if its sandbox has gone: what it did is lost.
        """
        try:
            session = self._supply.attach(str(left.sandbox_id), self._plan.deadline)
        except SessionNotFoundError:
            return None
        try:
            return self._invoke(session, job)
        except (AgentUnreachableError, InvocationCancelledError):
            return None
        except SessionNotFoundError:
            if session.lost:
                return None
            raise
        finally:
            session.dispose()

    def _found_dead(self, error: Exception) -> bool:
        """Tell whether nothing reached the agent, as the sandbox had died before.

        The error alone may be the agent's own answer: the platform's word is needed.
        """
        session = self._session
        return (
            isinstance(error, SessionNotFoundError)
            and error.code == SessionNotFoundError.code
            and session is not None
            and session.lost
        )

    def _usable(self) -> bool:
        session = self._session
        return session is not None and session.state is SessionState.ACTIVE

    def end(self) -> None:
        """Kill the sandbox, if there is one."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None:
            session.dispose()
