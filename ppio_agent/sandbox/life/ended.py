"""What stays of sandboxes that are gone: their logs, for a while."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.trees import let_in, removal
from ppio_agent.exceptions import WireError
from ppio_agent.sandbox.logview import FILES, LARGEST_FILE
from ppio_agent.storage import Delete, Document, DocumentStore, Put
from ppio_agent.wire.model import structure

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SANDBOX_ROW", "EndedLogs", "remove_tree"]

_log = logging.getLogger(__name__)

SANDBOX_ROW: Final = "sandbox"
"""Kind of the documents of live sandboxes."""

_KIND: Final = "ended"
_KEPT_FOR: Final = timedelta(hours=24)
_MOST: Final = 100
_REMEMBERED: Final = 10_000
_LONG_AGO: Final = datetime.min.replace(tzinfo=timezone.utc)
_LOGS: Final = (*FILES, "supervisor.log")


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all in it, whatever an agent made of it.

    What cannot be removed is logged and left.
    """
    try:
        with _handle(path.parent) as folder:
            for _ in removal(folder, path.name):
                pass
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("the folder %s could not be removed: %s", path, error)


def _keep_logs(root: Path, kept: Path) -> None:
    """Move the log files of a sandbox; an agent may have put other things there.

    What cannot be moved is logged and left.
    """
    try:
        with ExitStack() as opened:
            folder = opened.enter_context(_handle(root.parent))
            for name in (root.name, "logs"):
                folder = let_in(name, folder)
                opened.callback(os.close, folder)
            kept.mkdir(mode=0o700, exist_ok=True)
            for name in _LOGS:
                _keep_log(name, folder, kept)
    except FileNotFoundError:
        pass  # it did not come that far
    except OSError as error:
        _log.warning("the logs in %s could not be kept: %s", root, error)


@contextmanager
def _handle(folder: Path) -> Iterator[int]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _keep_log(name: str, logs: int, kept: Path) -> None:
    with suppress(FileNotFoundError):
        about = os.stat(name, dir_fd=logs, follow_symlinks=False)
        if stat.S_ISREG(about.st_mode) and about.st_size <= LARGEST_FILE:
            os.rename(name, kept / name, src_dir_fd=logs)
            (kept / name).chmod(0o600)


@frozen(kw_only=True)
class _Ended:
    tenant: str
    ended_at: datetime
    reason: str

    @classmethod
    def parse(cls, document: Document) -> Self:
        """Return what was kept; of a row that cannot be read, something long ago."""
        try:
            return structure(cls, document.body)
        except WireError as error:
            _log.warning("the row of %s, ended, is not read: %s", document.id, error)
            return cls(tenant="", ended_at=_LONG_AGO, reason="")


class EndedLogs:
    """Keeps the logs of at most 100 ended sandboxes for 24 hours.

    Args:
        store: Where it is kept whose they are.
        folder: Where the logs are moved to.
        clock: The present instant.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        store: DocumentStore,
        folder: Path,
        *,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._store = store
        self._folder = folder
        self._clock = clock
        # Lets one thread at a time choose what is to be forgotten.
        self._pruning = threading.Lock()
        # Those of this run, forgotten or not; appended to by any thread.
        self._dead: deque[str] = deque(maxlen=_REMEMBERED)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def bury(self, sandbox_id: str, *, tenant: str, reason: str, root: Path) -> None:
        """Take over the logs of an ended sandbox; remove its folder and its row.

        Whatever the instant of a crash, the row is there until nothing else is, save
        what cannot be removed: that is tried again when a platform starts.

        Args:
            sandbox_id: Its id.
            tenant: Whose it was.
            reason: Why it ended.
            root: Its folder, which need not be there.
        """
        _keep_logs(root, self._folder / sandbox_id)
        remove_tree(root)
        ended = {"tenant": tenant, "ended_at": self._clock(), "reason": reason}
        self._store.write(
            Put(_KIND, sandbox_id, ended), Delete(SANDBOX_ROW, sandbox_id)
        )
        self._dead.append(sandbox_id)
        self.prune()

    def remove_strays(self) -> None:
        """Remove logs that no row is of, as after a store was made anew.

        Only before anything is buried by others.
        """
        rows = {document.id for document in self._store.scan(SANDBOX_ROW)}
        known = rows.union(self._kept())
        for found in self._folder.iterdir():
            if found.is_dir() and found.name not in known:
                remove_tree(found)

    def dead(self) -> frozenset[str]:
        """Return the sandboxes that are known to have ended: the latest thousands."""
        return frozenset((*self._dead, *self._kept()))

    def _kept(self) -> list[str]:
        return [document.id for document in self._store.scan(_KIND)]

    def find(self, sandbox_id: str, tenant: str | None) -> Path | None:
        """Return the log folder of an ended sandbox of the tenant, or None."""
        document = self._store.get(_KIND, sandbox_id)
        if document is None:
            return None
        ended = _Ended.parse(document)
        if tenant not in (None, ended.tenant):
            return None
        if ended.ended_at < self._clock() - _KEPT_FOR:
            return None
        return self._folder / sandbox_id

    def prune(self) -> None:
        """Forget what is too old or too much."""
        with self._pruning:
            oldest = self._clock() - _KEPT_FOR
            found = [
                (_Ended.parse(document).ended_at, document.id)
                for document in self._store.scan(_KIND)
            ]
            newest_first = sorted(found, reverse=True)
            for place, (ended_at, sandbox_id) in enumerate(newest_first):
                if place >= _MOST or ended_at < oldest:
                    remove_tree(self._folder / sandbox_id)
                    self._store.write(Delete(_KIND, sandbox_id))
