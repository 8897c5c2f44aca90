"""The file of a batch's journal: whose it is, what it knew, what is added to it."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.ids import new_id
from ppio_agent.client.invocation import AgentRequest, encode_request
from ppio_agent.exceptions import BatchJournalError, ValidationError

from .journal import (
    JournalEntry,
    JournalState,
    Outcome,
    digest,
    format_done,
    format_failed,
    format_header,
    format_start,
    parse_done,
    parse_journal,
)

__all__ = ["BatchJournal"]


class BatchJournal:
    """A journal that is open, and nobody else's meanwhile.

    Args:
        path: The file; made if there is none, in a folder that there is.
        template_id: Template of the batch.
        redact: Hides secrets in texts of the answers.

    Attributes:
        batch_id: The batch's; an earlier run's, if there was one.
        resumed: Whether there was an earlier run.
        entries: What the earlier run left, by index.

    Raises:
        BatchJournalError: The file cannot be used: it is in use, of another template,
            damaged, no journal, or the system does not let it be read and written. It
            is left as it was.

    Thread safety: thread-safe. In a forked child it is closed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        template_id: str,
        redact: Callable[[str], str],
    ) -> None:
        self._path = Path(path)
        self._redact = redact
        self._fd = -1
        self._renew()
        try:
            self._open()
            state = self._read(template_id)
            self._begin(state, template_id)
        except OSError as error:
            self.close()
            raise self._error(str(error.strerror or error)) from error
        except BaseException:
            self.close()
            raise
        renew_in_child(self, BatchJournal._leave)

    def _renew(self) -> None:
        # Guards everything below, and the order of lines in the file: a line is
        # written under it, as nothing may come between its bytes.
        self._lock = threading.Lock()
        self._written = self._synced = 0
        self._failure: BatchJournalError | None = None

    def _leave(self) -> None:
        """Let go of the parent's file in a forked child; its lock is the parent's."""
        self._renew()
        self._release(unlock=False)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o600)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise self._error("it is no file")
        try:
            # Freed by the kernel however the process ends.
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._error("another batch uses it") from error

    def _read(self, template_id: str) -> JournalState | None:
        try:
            with open(self._fd, "rb", closefd=False) as lines:
                state = parse_journal(lines)
        except BatchJournalError as error:
            raise self._error(error.message) from error
        if state is not None and state.template_id != template_id:
            raise self._error(
                f"it is of a batch of template {state.template_id}, not {template_id}"
            )
        return state

    def _begin(self, state: JournalState | None, template_id: str) -> None:
        self.resumed = state is not None
        self.entries: Mapping[int, JournalEntry] = state.entries if state else {}
        self.batch_id = state.batch_id if state else new_id()
        os.fchmod(self._fd, 0o600)
        os.ftruncate(self._fd, state.size if state else 0)
        if state is None:
            self._append(format_header(template_id, self.batch_id))
            self.sync(self._written)
            self._sync_folder()

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def recall(self, index: int, request: AgentRequest) -> JournalEntry | None:
        """Return what an earlier run left of an item; None if it did not begin it.

        Raises:
            BatchJournalError: It was another request then.
        """
        entry = self.entries.get(index)
        if entry is None:
            return None
        try:
            known = digest(encode_request(request)) == entry.digest
        except ValidationError:
            known = False  # such a request was never begun
        if not known:
            raise self._error(
                f"item {index} is another request than in the earlier run; go on with"
                " the same requests, or begin a new journal"
            )
        return entry

    def start(self, index: int, entry: JournalEntry) -> None:
        """Note that an item is about to be sent; survives the end of this process.

        Raises:
            BatchJournalError: It cannot be written.
        """
        self._append(format_start(index, entry))

    def done(self, index: int, outcome: Outcome) -> int:
        """Note an item's answer.

        Returns:
            What `sync` is to be given before the answer is told to anybody.

        Raises:
            BatchJournalError: It cannot be written.
        """
        return self._append(format_done(index, outcome, self._redact))

    def failed(self, index: int) -> None:
        """Note that an item is to be run again.

        Raises:
            BatchJournalError: It cannot be written.
        """
        self._append(format_failed(index))

    def _append(self, line: bytes) -> int:
        with self._lock:
            if self._failure is not None:
                # What follows a torn line could not be read.
                raise self._failure
            try:
                _write(self._fd, line)
            except OSError as error:
                self._failure = self._error(f"writing failed: {error.strerror}")
                raise self._failure from error
            self._written += len(line)
            return self._written

    def sync(self, ticket: int) -> None:
        """Let what was written up to `ticket` survive the end of the machine.

        One call to the system for all that was written by any thread until then.

        Raises:
            BatchJournalError: The system cannot promise it.
        """
        if ticket <= self._synced:
            return
        written = self._written
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise self._error(f"writing failed: {error.strerror}") from error
        self._synced = max(self._synced, written)

    def answer(self, where: tuple[int, int]) -> Outcome:
        """Return the outcome of an item that an earlier run has done.

        Args:
            where: `JournalEntry.done`.

        Raises:
            BatchJournalError: It cannot be read any more.
        """
        offset, size = where
        try:
            return parse_done(os.pread(self._fd, size, offset))
        except OSError as error:
            raise self._error(f"reading failed: {error.strerror}") from error
        except BatchJournalError as error:
            raise self._error(error.message) from error

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        self._release(unlock=True)

    def _release(self, *, unlock: bool) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
            if self._failure is None:
                self._failure = self._error("it was closed")
        if fd >= 0:
            if unlock:
                # Closing frees it only if no forked child has the file as well.
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _error(self, why: str) -> BatchJournalError:
        return BatchJournalError(f"the journal {self._path} cannot be used: {why}")


def _write(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]
