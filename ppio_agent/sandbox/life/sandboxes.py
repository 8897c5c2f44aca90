"""All live sandboxes of a platform: made, found, and ended within their limits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

import attrs
from attrs import frozen

from ppio_agent._util.clock import Deadline, utc_now
from ppio_agent._util.ids import secret_token
from ppio_agent._util.threads import PoolSaturatedError, WorkerPool
from ppio_agent.sandbox.backends.base import Backend, LineAddress
from ppio_agent.sandbox.config import PlatformConfig
from ppio_agent.sandbox.templates.records import Build
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import DocumentStore, Put

from .ended import SANDBOX_ROW, EndedLogs
from .live import LiveSandbox
from .machine import EndReason, Event, State
from .options import CreateOptions
from .recovery import Recovery
from .roster import Roster
from .rows import SandboxRow
from .timers import Timers
from .values import Asked, Identity, Surroundings, not_found

__all__ = ["Folders", "Sandboxes"]

_log = logging.getLogger(__name__)

_STOP_GRACE: Final = 5.0
_REAPERS: Final = 16
_LATER: Final = 0.1
_LAST_WAIT: Final = 1.0


@frozen(kw_only=True)
class Folders:
    """Where sandboxes are.

    Attributes:
        live: Parent of the folders of live ones.
        sockets: Where their supervisors are reached; its path is short.
        ended: Parent of the logs of ended ones.
    """

    live: Path
    sockets: Path
    ended: Path


class Sandboxes:
    """Makes, finds and ends sandboxes.

    Args:
        config: Limits and time-outs.
        store: Where their rows are kept.
        templates: What they are made from.
        backend: What runs them; closed with this.
        folders: Where they are.
        id_factory: Makes ids: 20 of a-z and 0-9, not to be guessed.
        monotonic: The clock that their time runs by.
        utc: The present instant, by which their time goes on after a crash.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        config: PlatformConfig,
        *,
        store: DocumentStore,
        templates: Templates,
        backend: Backend,
        folders: Folders,
        id_factory: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
        utc: Callable[[], datetime] = utc_now,
    ) -> None:
        self._config = config
        self._store = store
        self._templates = templates
        self._backend = backend
        self._folders = folders
        self._id_factory = id_factory
        self._monotonic = monotonic
        self._timers = Timers("ppio-sandbox-timer", clock=monotonic)
        # A sandbox has at most two things to be done at once: its time and its loss.
        self._background = WorkerPool(
            "ppio-sandbox-reaper",
            max_threads=_REAPERS,
            max_waiting=2 * config.max_sandboxes + _REAPERS,
        )
        self._around = Surroundings(
            backend=backend,
            timers=self._timers,
            background=self._later,
            on_life=self._on_life,
            on_end=self._on_end,
            paused_timeout=config.paused_timeout,
            monotonic=monotonic,
            utc=utc,
        )
        self._roster = Roster(config, monotonic=monotonic)
        folders.live.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ended = EndedLogs(store, folders.ended)

    def recover(self) -> None:
        """Take up what a platform that crashed has left; only before any use.

        Blocking: about 2 seconds at most.
        """
        Recovery(
            self._store,
            self._folders.live,
            ended=self.ended,
            roster=self._roster,
            around=self._around,
            tidy=self._templates.tidy,
        ).run()

    def create(
        self, options: CreateOptions, *, tenant: str, asked: Asked | None = None
    ) -> LiveSandbox:
        """Make a sandbox and start it; return when its supervisor is ready.

        Args:
            options: How it is to be.
            tenant: Whose it is.
            asked: The request, if that may come again.

        Raises:
            TemplateNotFoundError: The tenant sees no such template.
            SandboxLimitError: The tenant has as many sandboxes as it may have.
            ServiceUnavailableError: The platform is full or stopping.
            SandboxStartError: It did not come up.
            SandboxPlatformError: 501: the backend cannot do what is asked.
        """
        self._backend.check(allow_internet=options.allow_internet)
        record, build = self._templates.choose(options.template, tenant=tenant)
        sandbox_id = self._id_factory()
        with self._templates.keep_python(build) as python:
            identity = Identity(
                id=sandbox_id,
                tenant=tenant,
                alias=record.name,
                # The files are for its folder only; there may be thousands.
                build=attrs.evolve(build, files=(), compiled={}),
                options=options,
                root=self._folders.live / sandbox_id,
                line=LineAddress(
                    path=str(self._folders.sockets / sandbox_id), secret=secret_token()
                ),
                orphan_grace=self._config.orphan_grace,
                command_deadline=self._config.command_deadline,
                access_token=secret_token() if options.secure else None,
                traffic_token=None if options.public_traffic else secret_token(),
                python=python,
                asked=asked,
            )
            sandbox = LiveSandbox(identity, self._around)
            self._roster.admit(sandbox)
            sandbox.start(lambda: self._prepare(sandbox, build))
        try:
            self._templates.note_spawn(record.id)
        except Exception:  # noqa: BLE001 - it runs, and its caller has to know of it
            _log.exception("the start of sandbox %s is not counted", sandbox.id)
        return sandbox

    def _prepare(self, sandbox: LiveSandbox, build: Build) -> None:
        # The row comes before the first file and process, so that whatever a crash
        # leaves is known.
        self._store.write(attrs.evolve(_row(sandbox), expect=0))
        root = sandbox.identity.root
        root.mkdir(mode=0o700)
        self._templates.fill(build, root / "app")

    def _on_life(self, sandbox: LiveSandbox) -> None:
        try:
            self._store.write(_row(sandbox))
        except Exception:  # noqa: BLE001 - a full disk, say, ends no sandbox
            _log.exception("the row of sandbox %s is not up to date", sandbox.id)

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        """Return the live sandbox with this id, or None; no wait."""
        return self._roster.find(sandbox_id)

    def owner_of(self, access_token: str) -> str | None:
        """Return the id of the sandbox with this envd token; see `Roster.owner_of`."""
        return self._roster.owner_of(access_token)

    def get(self, sandbox_id: str, *, tenant: str | None = None) -> LiveSandbox:
        """Return a live sandbox.

        Args:
            sandbox_id: Its id.
            tenant: Whose it has to be; None: anybody's.

        Raises:
            NotFoundError: There is none with this id that the tenant sees.
        """
        sandbox = self.find(sandbox_id)
        if sandbox is None or tenant not in (None, sandbox.identity.tenant):
            raise not_found(sandbox_id)
        return sandbox

    def list_sandboxes(self, *, tenant: str | None = None) -> list[LiveSandbox]:
        """Return the live sandboxes of a tenant; None: of all."""
        return [
            sandbox
            for sandbox in self._roster.everyone()
            if not sandbox.doomed and tenant in (None, sandbox.identity.tenant)
        ]

    def kill(self, sandbox_id: str, *, tenant: str | None = None) -> None:
        """End a sandbox; return when its last process is gone.

        Raises:
            NotFoundError: There is none, or it is being killed already.
        """
        if not self.get(sandbox_id, tenant=tenant).kill(Event.KILL):
            raise not_found(sandbox_id)

    def logs_of(self, sandbox_id: str, *, tenant: str | None = None) -> Path:
        """Return the folder with the logs of a sandbox, live, ending or lately ended.

        Raises:
            NotFoundError: There is none that the tenant sees.
        """
        sandbox = self._roster.present(sandbox_id)
        if sandbox is not None and tenant in (None, sandbox.identity.tenant):
            return sandbox.identity.root / "logs"
        folder = self.ended.find(sandbox_id, tenant)
        if folder is None:
            raise not_found(sandbox_id)
        return folder

    def counts(self, *, tenant: str | None = None) -> dict[str, int]:
        """Return how many sandboxes are in each state, by its word on the wire."""
        states = [s.life.state for s in self.list_sandboxes(tenant=tenant)]
        paused = sum(state is State.PAUSED for state in states)
        return {"running": len(states) - paused, "paused": paused}

    def _on_end(self, sandbox: LiveSandbox) -> None:
        identity, reason = sandbox.identity, sandbox.life.reason
        word = reason.value if reason else EndReason.CRASHED.value
        try:
            self.ended.bury(
                sandbox.id, tenant=identity.tenant, reason=word, root=identity.root
            )
        finally:
            self._roster.leave(sandbox)
        _log.info("sandbox %s ended: %s", sandbox.id, word)

    def close(self, timeout: float) -> None:
        """Refuse new sandboxes, end all there are, and stop all threads. Idempotent.

        Blocking: at most about `timeout` seconds.
        """
        if not self._roster.close():
            return
        left = self._roster.everyone()
        deadline = Deadline.after(timeout)
        grace = min(_STOP_GRACE, timeout / 2)
        self._kill_at_once(left, grace)
        for sandbox in left:
            sandbox.ended.wait(deadline.left())
        self._timers.close()
        self._backend.close()
        for sandbox in left:
            # Only one that nobody has begun to kill is killed here; its processes
            # are gone already.
            sandbox.kill(Event.STOP, grace=0.0)
            sandbox.ended.wait(max(_LAST_WAIT, deadline.left() or 0.0))
        self._background.close(deadline.left())

    def _kill_at_once(self, sandboxes: list[LiveSandbox], grace: float) -> None:
        """Begin to kill all of them at the same time."""
        pool = WorkerPool("ppio-sandbox-stop", max_threads=max(1, len(sandboxes)))
        try:
            for sandbox in sandboxes:
                pool.submit(partial(sandbox.kill, Event.STOP, grace=grace))
        except RuntimeError:
            # An interpreter that is ending starts no threads: the backend's close,
            # which needs none, ends them without grace.
            _log.debug("no thread can be started", exc_info=True)
        finally:
            pool.close(0.0)

    def _later(self, job: Callable[[], object]) -> None:
        try:
            self._background.submit(job)
        except PoolSaturatedError:
            # Of those taken over there may be more than may be made.
            self._timers.at(self._monotonic() + _LATER, lambda: self._later(job))
        except RuntimeError:
            # Closed: then `close` ends every sandbox itself.
            _log.debug("nothing is done in the background any more", exc_info=True)


def _row(sandbox: LiveSandbox) -> Put:
    row = SandboxRow.of(sandbox.identity, sandbox.life, sandbox.supervisor)
    return Put(SANDBOX_ROW, sandbox.id, row.to_body())
