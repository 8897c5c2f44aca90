"""What stays of sandboxes that are gone: their logs, for a while."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from attrs import frozen

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.logview import FILES, LARGEST_FILE
from ppio_agent.storage import Delete, DocumentStore, Put
from ppio_agent.wire.model import structure

__all__ = ["SANDBOX_ROW", "EndedLogs", "remove_tree"]

_log = logging.getLogger(__name__)

SANDBOX_ROW: Final = "sandbox"
"""Kind of the documents of live sandboxes."""

_KIND: Final = "ended"
_KEPT_FOR: Final = timedelta(hours=24)
_MOST: Final = 100
_REMEMBERED: Final = 10_000
_LOGS: Final = (*FILES, "supervisor.log")


def remove_tree(path: Path) -> None:
    """Remove a folder with all in it, whatever modes an agent gave its folders.

    What cannot be removed is logged and left.
    """
    try:
        try:
            shutil.rmtree(path)
        except PermissionError:
            _open_folders(path)
            shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("the folder %s could not be removed: %s", path, error)


def _open_folders(path: Path) -> None:
    # From the top down: a folder can be listed once it and those above are open.
    path.chmod(0o700)
    for folder, names, _ in os.walk(path):
        for name in names:
            inner = Path(folder, name)
            if not inner.is_symlink():
                inner.chmod(0o700)


def _strip(logs: Path) -> None:
    """Leave only log files in a folder; an agent may have put other things there."""
    for entry in logs.iterdir():
        about = entry.lstat()
        if stat.S_ISDIR(about.st_mode):
            remove_tree(entry)
        elif (
            entry.name not in _LOGS
            or not stat.S_ISREG(about.st_mode)
            or about.st_size > LARGEST_FILE
        ):
            entry.unlink()


@frozen(kw_only=True)
class _Ended:
    tenant: str
    ended_at: datetime
    reason: str


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

        Whatever the instant of a crash, the row is there until nothing else is.

        Args:
            sandbox_id: Its id.
            tenant: Whose it was.
            reason: Why it ended.
            root: Its folder, which need not be there.
        """
        logs = root / "logs"
        if logs.is_dir():
            _strip(logs)
            logs.replace(self._folder / sandbox_id)
        remove_tree(root)
        ended = {"tenant": tenant, "ended_at": self._clock(), "reason": reason}
        self._store.write(
            Put(_KIND, sandbox_id, ended), Delete(SANDBOX_ROW, sandbox_id)
        )
        self._dead.append(sandbox_id)
        self.prune()

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
        ended = structure(_Ended, document.body)
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
                (structure(_Ended, document.body).ended_at, document.id)
                for document in self._store.scan(_KIND)
            ]
            newest_first = sorted(found, reverse=True)
            for place, (ended_at, sandbox_id) in enumerate(newest_first):
                if place >= _MOST or ended_at < oldest:
                    remove_tree(self._folder / sandbox_id)
                    self._store.write(Delete(_KIND, sandbox_id))
