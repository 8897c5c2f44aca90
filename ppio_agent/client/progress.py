"""A batch's progress as a bar on a person's terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from .batch import BatchProgress

__all__ = ["ProgressBar"]


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
