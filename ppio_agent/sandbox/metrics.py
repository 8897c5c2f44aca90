"""What each live sandbox uses, sampled now and then and kept for a while."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from attrs import frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import NotFoundError, SandboxStateError
from ppio_agent.sandbox.backends.base import Usage

from .life.live import LiveSandbox
from .life.machine import State

__all__ = ["Metrics", "Sample", "Series", "as_milliseconds", "folder_size"]

_log = logging.getLogger(__name__)

_INTERVAL: Final = 5.0
_KEPT: Final = 720
# How long a sandbox is left alone that did not answer: it would delay the others.
_AVOIDED_FOR: Final = 60.0
# A folder is walked at most so often, in seconds.
_DISK_EVERY: Final = 60.0
# How much of the time all such walks together take at most, and how much of it that is
# not used is kept for later ones, in seconds.
_DISK_SHARE: Final = 0.01
_DISK_KEPT: Final = 0.05
_MOST_FILES: Final = 50_000
_FIRST_MILLISECOND: Final = 10**11
_BLOCK: Final = 512


@frozen(kw_only=True)
class Sample:
    """What a sandbox used at one instant.

    Attributes:
        at: Milliseconds since the epoch.
        cpu_percent: Of the processors it may use; 100 is all of them.
        memory: Resident bytes of its processes.
        disk: Bytes of its folder, from the last time that it was looked at.
    """

    at: int
    cpu_percent: float
    memory: int
    disk: int


class Series:
    """The newest samples of one sandbox. Pure.

    Args:
        cpus: Processors it may use.
        born: Instant of the monotonic clock when it had used no processor time.
        kept: How many samples are kept.

    Thread safety: one thread adds, any may read.
    """

    def __init__(self, *, cpus: int, born: float, kept: int = _KEPT) -> None:
        self._cpus = cpus
        self._since = born
        self._cpu_seconds = 0.0
        self._samples: deque[Sample] = deque(maxlen=kept)

    def add(self, usage: Usage, *, now: float, at: int, disk: int) -> None:
        """Note what was measured.

        Args:
            usage: The measurement.
            now: When, by the monotonic clock.
            at: When, in milliseconds since the epoch.
            disk: Bytes of its folder.
        """
        passed = now - self._since
        used = max(0.0, usage.cpu_seconds - self._cpu_seconds)
        share = used / passed / self._cpus if passed > 0 else 0.0
        self._since, self._cpu_seconds = now, usage.cpu_seconds
        self._samples.append(
            Sample(
                at=at,
                cpu_percent=round(100.0 * share, 2),
                memory=usage.rss_bytes,
                disk=disk,
            )
        )

    def skip(self, now: float) -> None:
        """Leave the time since the last sample out, for the sandbox is paused."""
        self._since = now

    def between(self, start: int | None, end: int | None) -> list[Sample]:
        """Return the samples from `start` to `end`, oldest first; None is no limit."""
        return [
            sample
            for sample in self._samples.copy()
            if (start is None or sample.at >= start)
            and (end is None or sample.at <= end)
        ]


def as_milliseconds(value: int) -> int:
    """Return an instant that clients give in seconds or in milliseconds.

    Example:
        >>> as_milliseconds(1700000000), as_milliseconds(1700000000123)
        (1700000000000, 1700000000123)
    """
    return value if value >= _FIRST_MILLISECOND else value * 1000


def folder_size(root: Path, *, most: int = _MOST_FILES) -> int:
    """Return about how many bytes the files below a folder take on the disk.

    No link is followed, and what goes away meanwhile is not counted. After `most`
    entries the rest is left out.
    """
    size = seen = 0
    pending = [os.fspath(root)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > most:
                        return size
                    size += _taken(entry, pending)
        except OSError:
            continue
    return size


def _taken(entry: os.DirEntry[str], folders: list[str]) -> int:
    try:
        about = entry.stat(follow_symlinks=False)
        if entry.is_dir(follow_symlinks=False):
            folders.append(entry.path)
    except OSError:
        return 0
    return about.st_blocks * _BLOCK


class _Watched:
    """One sandbox with its samples, and when to look at it again."""

    def __init__(self, sandbox: LiveSandbox, series: Series) -> None:
        self.sandbox = sandbox
        self.series = series
        self.avoided_until = 0.0
        self.disk = 0
        self.disk_at: float | None = None


class Metrics:
    """Samples every running sandbox each 5 s, on one thread.

    720 samples of each are kept, in memory, until it ends. A paused one has no new
    samples.

    Args:
        sandboxes: Gives the live ones.
        monotonic: The clock of rates.
        wall_clock: The present instant.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        sandboxes: Callable[[], Iterable[LiveSandbox]],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._sandboxes = sandboxes
        self._monotonic = monotonic
        self._wall_clock = wall_clock
        # Replaced as a whole by the one thread that samples; others only look into it.
        self._watched: dict[str, _Watched] = {}
        # Seconds that folders may be walked as of an instant; less than 0 is a debt.
        self._disk_left = _DISK_KEPT
        self._disk_left_at = monotonic()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Sample from now on."""
        self._thread = start_thread("ppio-metrics-1", self._run)

    def series(self, sandbox_id: str) -> Series | None:
        """Return the samples of a live sandbox, None if there are none yet."""
        watched = self._watched.get(sandbox_id)
        return None if watched is None else watched.series

    def close(self, timeout: float = 5.0) -> None:
        """Stop sampling. Idempotent.

        Blocking: for a measurement under way, at most `timeout` seconds.
        """
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._closed.wait(_INTERVAL):
            try:
                self.sample()
            except Exception:  # noqa: BLE001 - outermost frame of the thread
                _log.exception("the sandboxes could not be measured")

    def sample(self) -> None:
        """Measure all running sandboxes now; one thread at a time."""
        known = self._watched
        self._watched = {
            sandbox.id: known.get(sandbox.id) or self._begin(sandbox)
            for sandbox in self._sandboxes()
        }
        self._measure_disks()
        for watched in self._watched.values():
            if self._closed.is_set():
                return
            self._measure(watched)

    def _begin(self, sandbox: LiveSandbox) -> _Watched:
        age = (self._wall_clock() - sandbox.life.started_at).total_seconds()
        born = self._monotonic() - max(0.0, age)
        cpus = math.ceil(sandbox.identity.build.cpus)
        return _Watched(sandbox, Series(cpus=cpus, born=born))

    def _measure(self, watched: _Watched) -> None:
        now = self._monotonic()
        if watched.sandbox.life.state is not State.RUNNING:
            watched.series.skip(now)
            return
        if now < watched.avoided_until:
            return
        try:
            usage = watched.sandbox.processes().usage(fresh=False)
        except (NotFoundError, SandboxStateError):
            watched.avoided_until = self._monotonic() + _AVOIDED_FOR
            return
        watched.series.add(
            usage,
            now=self._monotonic(),
            at=int(self._wall_clock().timestamp() * 1000),
            disk=watched.disk,
        )

    def _measure_disks(self) -> None:
        """Look at the folders not seen for longest, as many as the time allows.

        One of very many files is looked at in one go; what that takes too long is made
        up for before the next one.
        """
        now = self._monotonic()
        earned = (now - self._disk_left_at) * _DISK_SHARE
        self._disk_left = min(_DISK_KEPT, self._disk_left + earned)
        self._disk_left_at = now
        due = [
            watched
            for watched in self._watched.values()
            if watched.disk_at is None or now - watched.disk_at >= _DISK_EVERY
        ]
        due.sort(key=lambda watched: watched.disk_at or 0.0)
        for watched in due:
            if self._disk_left <= 0 or self._closed.is_set():
                return
            watched.disk = folder_size(watched.sandbox.identity.root)
            watched.disk_at = self._monotonic()
            self._disk_left -= watched.disk_at - now
            now = watched.disk_at
