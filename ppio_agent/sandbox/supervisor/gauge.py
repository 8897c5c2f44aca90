"""What a sandbox uses, measured again and again, and cheaply while it is idle.

A process that has not used the processor has neither taken memory nor started another
one, and how much of it a process has used is one call of the system, where its figures
in `/proc` take many. So nothing is measured while nobody has moved.

That holds of the processes that were found, and one that changes its parent meanwhile
may not have been. So the first time that nobody has moved they are asked once more
whether they are all: `tree.is_whole` says why nobody is missed then.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

from . import tree

__all__ = ["Gauge", "processor_time"]

# Seconds after which all is measured although nobody has moved: what the kernel does by
# itself, as to join small pages to large ones, moves nobody.
_TRUST = 30.0

_CLOCKS = sys.platform == "linux"


def processor_time(pid: int) -> float | None:
    """Return how long a process has run, all its threads together; None if it is gone.

    To be compared with what was returned before, and with nothing else. Where the
    system tells, it is exact to the nanosecond: who has run at all shows.
    """
    if not _CLOCKS:
        return tree.measure([pid]).cpu_seconds or None
    try:
        # The number of the clock that is a process's own, as the kernel counts them.
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        return None


class Gauge:
    """Measures the calling process and the tree below it.

    Args:
        root: The calling process.
        clock: Monotonic seconds.

    Attributes:
        own_bytes: Resident memory of the calling process, as of the last `read`.

    Thread safety: one thread at a time.
    """

    def __init__(
        self, root: int, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._clock = clock
        self._load: tree.Load | None = None
        self._until = 0.0
        # As of the last measurement: how long each process below had run, whether they
        # are known to be all, and how often the calling one, which runs to measure, had
        # been given memory.
        self._ran: dict[int, float | None] = {}
        self._whole = False
        self._faults = 0
        self.own_bytes = 0
        self._measure_itself()

    def forget(self) -> None:
        """Measure at the next `read`, for the calling process has started another."""
        self._load = None

    def read(self) -> tree.Load:
        """Return what all processes below use together now."""
        if (
            self._load is None
            or self._clock() >= self._until
            or self._moved()
            or not self._found_all()
        ):
            self._until = self._clock() + _TRUST
            self._ran = {}
            self._whole = False
            # How long each has run is noted before it is asked for its children:
            # whoever starts one after that has moved since.
            self._load = tree.measure(tree.walk(self._root, before=self._note))
            self._measure_itself()
        elif _faults() != self._faults:
            self._measure_itself()
        return self._load

    def _moved(self) -> bool:
        return any(
            ran is None or processor_time(pid) != ran for pid, ran in self._ran.items()
        )

    def _found_all(self) -> bool:
        self._whole = self._whole or tree.is_whole(self._root, list(self._ran))
        return self._whole

    def _measure_itself(self) -> None:
        self._faults = _faults()
        self.own_bytes = tree.measure([self._root]).rss_bytes

    def _note(self, pid: int) -> None:
        if pid != self._root:
            self._ran[pid] = processor_time(pid)


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt
