"""Requests that the loop's own thread serves, as long as they are quick.

To hand a request to another thread costs two switches, and the threads then take the
interpreter's lock from each other: together more than all the rest of an instant
request. So while requests are quick, the thread that waits for sockets serves them
itself. When one turns out not to be, the loop goes on in another thread; see `loop`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from .crew import Crew

__all__ = ["Inline", "Pace"]

_Job = Callable[[], object]

# Seconds that a request may take, and of these, that it may wait for something else
# than the processor: others could be served in that time.
_QUICK = 0.002
_WAITING = 0.0005
# A request that took longer speaks for a while: such an agent is not instant.
_SLOW = 0.02
_SLOW_SAYS = 1.0
# How long other threads serve after a disappointment: ever longer, until so many
# requests in a row were quick.
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 10.0
_FORGIVEN_AFTER = 200


class Pace:
    """Whether the next request is likely to be quick, from those before.

    Instants and times are seconds.

    Thread safety: thread-safe; a race costs one request's note.
    """

    def __init__(self) -> None:
        self._pause = 0.0
        self._not_before = 0.0
        self._streak = 0

    def quick(self, now: float) -> bool:
        """Whether it is worth trying."""
        return now >= self._not_before

    def inline(self, now: float, *, took: float, cpu: float) -> None:
        """Note what a request took that was tried, and what of it on the processor."""
        if took > _QUICK or took - cpu > _WAITING:
            self.held_up(now)
            return
        self._streak += 1
        if self._streak == _FORGIVEN_AFTER:
            self._pause = 0.0

    def elsewhere(self, now: float, *, took: float) -> None:
        """Note how long a request took on another thread."""
        if took > _SLOW:
            self._not_before = max(self._not_before, now + _SLOW_SAYS)

    def held_up(self, now: float) -> None:
        """Note that a request was tried and was not quick."""
        self._streak = 0
        self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
        self._not_before = max(self._not_before, now + self._pause)


class Inline:
    """Where a request that is just being read may be left for the reading thread.

    Args:
        crew: Serves such requests otherwise; it has to have a place for the thread.

    Thread safety: thread-safe.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._pace = Pace()
        self._reader: int | None = None
        self._job: _Job | None = None

    def offer(self, job: _Job, now: float) -> bool:
        """Leave a job to the calling thread, if that is in `collect`.

        Returns:
            Whether it takes it.
        """
        if self._reader != threading.get_ident() or self._job is not None:
            return False
        if not (self._pace.quick(now) and self._crew.enter()):
            return False
        self._job = job
        return True

    def collect(self, read: _Job) -> _Job | None:
        """Call `read()` and return the job that was offered meanwhile, if any.

        The caller is to call `run` with it.
        """
        self._reader = threading.get_ident()
        try:
            read()
        finally:
            self._reader = None
        job, self._job = self._job, None
        return job

    def run(self, job: _Job) -> None:
        """Run a collected job."""
        try:
            job()
        finally:
            self._crew.leave()

    def note(self, took: float, *, cpu: float) -> None:
        """Note what a collected job took, and what of it on the processor."""
        self._pace.inline(time.monotonic(), took=took, cpu=cpu)

    def held_up(self) -> None:
        """Note that a job which is being run is not quick, instead of its end."""
        self._pace.held_up(time.monotonic())

    def elsewhere(self, took: float) -> None:
        """Note that another thread has served a request, in so many seconds."""
        self._pace.elsewhere(time.monotonic(), took=took)
