"""Where the sandboxes of a batch come from, and how those of a dead run are found."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.client.launch import Launcher, SandboxOptions
from ppio_agent.client.limits import KILL_LIMIT
from ppio_agent.client.session import SandboxSession
from ppio_agent.client.sessions import SessionBook, run_all
from ppio_agent.wire.models import AgentTemplate

from .journal_file import BatchJournal

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BatchSupply"]

_log = logging.getLogger(__name__)

_MARK = "ppio_batch"


@frozen(kw_only=True)
class BatchSupply:
    """Creates a batch's sandboxes, and knows them again in another process.

    Attributes:
        launcher: Creates them; leaves it to the batch to wait after a 429.
        book: The client's, which answers for them.
        template: What they are made from.
        options: What they are asked for with.
        batch_id: With what they are marked; None marks none.

    Thread safety: immutable.
    """

    launcher: Launcher
    book: SessionBook
    template: AgentTemplate
    options: SandboxOptions
    batch_id: str | None = None

    @classmethod
    def of(
        cls,
        launcher: Launcher,
        book: SessionBook,
        template: AgentTemplate,
        options: SandboxOptions,
    ) -> Self:
        """Return the supply of a batch that has no id yet."""
        policy = launcher.control.transport.config.retry
        calm = evolve(policy, statuses=policy.statuses - {429})
        return cls(
            launcher=evolve(launcher, retry=calm),
            book=book,
            template=template,
            options=options,
        )

    def open_journal(self, path: str | os.PathLike[str]) -> BatchJournal:
        """Open the journal of a batch with this template.

        Raises:
            BatchJournalError: The file cannot be used.
        """
        redact = self.launcher.control.auth.redactor.text
        return BatchJournal(path, self.template.template_id, redact)

    def open(self, deadline: Deadline) -> SandboxSession:
        """Create a sandbox and return the session on it."""
        options = self.options
        if self.batch_id is not None:
            metadata = {**(options.metadata or {}), _MARK: self.batch_id}
            options = evolve(options, metadata=metadata)
        return self.book.open(self.launcher, self.template, options, deadline=deadline)

    def attach(self, sandbox_id: str, deadline: Deadline) -> SandboxSession:
        """Return a session on a sandbox that an earlier run has left.

        Raises:
            SessionNotFoundError: It is gone.
        """
        session = self.book.attach(
            self.launcher, sandbox_id, session_id=None, own=True, deadline=deadline
        )
        session.auto_resume = True
        return session

    def kill_leftovers(self, *, but: Collection[str | None]) -> None:
        """End the batch's sandboxes that are alive, except `but`.

        Raises:
            PPIOAgentError: The platform could not be asked. What could not be ended is
                only logged: its time to live will.
        """
        if self.batch_id is None:
            return
        control, limit = self.launcher.control, Deadline.after(KILL_LIMIT)
        ref = control.endpoint.sandbox_ref
        found = control.find_sandboxes({_MARK: self.batch_id}, limit)
        ids = {ref(s.sandbox_id, s.client_id) for s in found}
        jobs: dict[str, Callable[[], object]] = {
            i: partial(control.kill_sandbox, i, limit) for i in ids.difference(but)
        }
        for sandbox_id, error in run_all(jobs, limit).items():
            _log.warning("ending sandbox %s failed: %s", sandbox_id, error)
