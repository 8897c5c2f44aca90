"""What a platform does about one that crashed before it, and about what got away.

The rows of its sandboxes tell what there was. Whatever still answers is taken up and
goes on as if nothing had happened; the rest is ended, and only its logs stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from ppio_agent._util.threads import WorkerPool
from ppio_agent.exceptions import SandboxStartError, WireError
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.sandbox.supervisor.tree import Process
from ppio_agent.storage import Document, DocumentStore

from .ended import SANDBOX_ROW, EndedLogs, remove_tree
from .live import LiveSandbox
from .machine import EndReason, State
from .roster import Roster
from .rows import SandboxRow
from .values import Surroundings

__all__ = ["Recovery", "kill_marked"]

_log = logging.getLogger(__name__)

_SWEEP_EVERY: Final = 30.0
_SWEEP_LIMIT: Final = 1.0


class Recovery:
    """Takes up what a platform that crashed has left, and ends what got away.

    Args:
        store: Where the rows of sandboxes are.
        folder: Parent of their folders.
        ended: What is known of those that ended.
        roster: Gets those that go on.
        around: What they need of this platform.
        tidy: Called after each later look, on its thread.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        store: DocumentStore,
        folder: Path,
        *,
        ended: EndedLogs,
        roster: Roster,
        around: Surroundings,
        tidy: Callable[[], object],
    ) -> None:
        self._store = store
        self._folder = folder
        self._ended = ended
        self._roster = roster
        self._around = around
        self._tidy = tidy

    def run(self) -> None:
        """Take up and end what there is, then look again from time to time.

        Blocking: about 2 seconds at most, whatever there is.
        """
        documents = self._store.scan(SANDBOX_ROW)
        rows = {document.id: _parsed(document) for document in documents}
        found = [self._restored(id_, row) for id_, row in rows.items() if row]
        # Not asked of the roster: one whose time was over may be gone from it already.
        taken = self._adopt_all([sandbox for sandbox in found if sandbox is not None])
        lost = [document for document in documents if document.id not in taken]
        ids = {document.id for document in lost}
        supervisors = (
            row.supervisor for id_, row in rows.items() if row and id_ in ids
        )
        kill_marked(self._ended.dead() | ids, [s for s in supervisors if s is not None])
        self._bury_rest()
        self._ended.remove_strays()
        self._sweep_later()

    def _bury_rest(self) -> None:
        """Bury whom nobody did, and remove folders that nobody has.

        After a crash these are all that were not taken up; later those whose burial
        failed, as on a full disk.
        """
        # Looked at before the roster is: it has whom it is for from before the first
        # of these is made until after the last has gone.
        documents = self._store.scan(SANDBOX_ROW)
        folders = list(self._folder.iterdir())
        live = {sandbox.id for sandbox in self._roster.everyone()}
        for document in documents:
            # One that has just ended is in the roster no more, but has no row either.
            if document.id not in live and self._store.get(SANDBOX_ROW, document.id):
                self._bury(document)
        for folder in folders:
            if folder.name not in live:
                remove_tree(folder)
        self._ended.prune()

    def _restored(self, sandbox_id: str, row: SandboxRow) -> LiveSandbox | None:
        """Return the sandbox that a row is of; None: nobody can be waiting for it."""
        if row.state not in (State.RUNNING, State.PAUSED):
            return None
        identity = row.identity(sandbox_id, self._folder / sandbox_id)
        around = self._around
        life = row.life(now=around.utc(), monotonic=around.monotonic())
        return LiveSandbox(identity, around, life=life)

    def _adopt_all(self, sandboxes: list[LiveSandbox]) -> set[str]:
        """Take up all at once; return the ids of those that answer."""
        taken: set[str] = set()
        if sandboxes:
            # One thread each: those that do not answer are waited for together.
            pool = WorkerPool("ppio-sandbox-recovery", max_threads=len(sandboxes))
            try:
                for sandbox in sandboxes:
                    pool.submit(partial(self._adopt, sandbox, taken))
            finally:
                pool.close(None)
        return taken

    def _adopt(self, sandbox: LiveSandbox, taken: set[str]) -> None:
        # In the roster before it is taken up: it may end at once.
        self._roster.enter(sandbox)
        try:
            sandbox.adopt()
        except BaseException as error:
            self._roster.leave(sandbox)
            if not isinstance(error, SandboxStartError):
                raise
            _log.warning("sandbox %s is lost: %s", sandbox.id, error)
        else:
            taken.add(sandbox.id)
            _log.info("sandbox %s goes on", sandbox.id)

    def _bury(self, document: Document) -> None:
        body = document.body
        reason = body.get("reason") or EndReason.CRASHED.value
        _remove_socket(document)
        try:
            self._ended.bury(
                document.id,
                tenant=str(body.get("tenant", "")),
                reason=str(reason),
                root=self._folder / document.id,
            )
        except Exception:  # noqa: BLE001 - one must not keep the others from it
            # Its row is there still, for the next start.
            _log.exception("sandbox %s is not buried", document.id)

    def _sweep_later(self) -> None:
        around = self._around
        around.timers.at(
            around.monotonic() + _SWEEP_EVERY, lambda: around.background(self._sweep)
        )

    def _sweep(self) -> None:
        try:
            kill_marked(self._ended.dead())
            self._bury_rest()
            self._tidy()
        except OSError as error:
            _log.warning("what is left is looked at again later: %s", error)
        finally:
            self._sweep_later()


def _remove_socket(document: Document) -> None:
    """Remove the socket at which the supervisor was reached, which cannot any more."""
    line = document.body.get("line")
    path = Path(str(line.get("path", ""))) if isinstance(line, dict) else Path()
    if path.name == document.id:
        with suppress(OSError):
            path.unlink()


def _parsed(document: Document) -> SandboxRow | None:
    try:
        return SandboxRow.parse(document.body)
    except WireError as error:
        _log.warning("the row of sandbox %s is not read: %s", document.id, error)
        return None


def kill_marked(dead: Container[str], supervisors: Iterable[Process] = ()) -> None:
    """Kill every process that carries the marker of a sandbox that has ended.

    Args:
        dead: Ids of sandboxes that have ended. An id is never given again, so that
            neither a sandbox that is just being started is hit, nor one of another
            platform.
        supervisors: Those of such sandboxes, as the marker of one in namespaces can be
            hidden from this user. With its first process all of a namespace ends.
    """
    find = partial(tree.marked_any, dead, supervisors)
    found = find()
    if not found:
        return
    _log.warning("%d processes that outlived their sandboxes are killed", len(found))
    left = tree.sweep(find, timeout=_SWEEP_LIMIT)
    if left:
        pids = sorted(process.pid for process in left)
        _log.error("processes of ended sandboxes cannot be killed: %s", pids)
