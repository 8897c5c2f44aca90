"""How far a batch is: told to whoever wants to know, or drawn on a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from ppio_agent._util.threads import start_thread

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["BatchProgress", "ProgressBar", "ProgressTeller"]

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class BatchProgress:
    """How far a batch is.

    Attributes:
        total: How many items there are; None if the input does not say.
        done: How many have ended, failures included.
        failed: How many of those failed.
        running: How many were taken from the input and have not ended.
        eta: Seconds until the end, at the pace so far; None if unknown.
        ended: Whether this is the last word.
    """

    total: int | None
    done: int
    failed: int
    running: int
    eta: float | None
    ended: bool = False


class ProgressTeller:
    """The thread that tells of a batch's progress, one change after another.

    Args:
        tellers: Who is told.
        look: Returns how far the batch is.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        tellers: Sequence[Callable[[BatchProgress], object]],
        look: Callable[[], BatchProgress],
    ) -> None:
        self._tellers = tellers
        self._look = look
        self._changed = threading.Event()
        self._changed.set()  # something may have ended before there was a teller
        self.thread = start_thread("ppio-client-batch-progress", self._run)

    def change(self) -> None:
        """Say that there is something to tell."""
        self._changed.set()

    def _run(self) -> None:
        told: BatchProgress | None = None
        while told is None or not told.ended:
            self._changed.wait()
            self._changed.clear()
            progress = self._look()
            for tell in self._tellers:
                try:
                    tell(progress)
                except Exception:  # noqa: BLE001 - the caller's code, logged
                    _log.exception("telling of a batch's progress failed")
            told = progress


class ProgressBar:
    """Draws what it is told on stderr; draws nothing if that is no terminal.

    Thread safety: one thread at a time, as a batch tells its progress.
    """

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._wanted = sys.stderr.isatty()

    def __call__(self, progress: BatchProgress) -> None:
        """Show how far the batch is; the last call leaves the bar as it stands."""
        if not self._wanted:
            return
        bar, task = self._started(progress)
        failed = f", {progress.failed} failed" if progress.failed else ""
        bar.update(
            task,
            total=progress.total,
            completed=progress.done,
            description=f"{progress.running} running{failed}",
        )
        if progress.ended:
            bar.stop()

    def _started(self, progress: BatchProgress) -> tuple[Progress, TaskID]:
        if self._bar is None or self._task is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task("", total=progress.total)
            self._bar.start()
        return self._bar, self._task
