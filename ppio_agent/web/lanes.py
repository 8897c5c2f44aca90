"""Which thread serves a request, and which request is refused instead.

Three lanes with threads of their own: what must always answer (health checks, cancel,
refusals) never waits behind what may take minutes. Waitress calls `add_task` while it
holds the channel's lock, so nothing here waits for anything.
"""

from __future__ import annotations

import enum
import logging
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import frozen

from ppio_agent._util.threads import PoolSaturatedError, WorkerPool
from ppio_agent.exceptions import (
    PPIOAgentError,
    RequestTooLargeError,
    ServerBusyError,
    ServerDrainingError,
)

from .crew import Crew, Load
from .inline import Inline

__all__ = [
    "Lane",
    "LaneDispatcher",
    "Lanes",
    "Refusal",
    "error_code",
    "retry_after",
]

_log = logging.getLogger(__name__)

_EXPRESS_THREADS = 2
# A request that has waited longer than this for its thread is looked at before it is
# run: its client may have left. Looking costs a system call, so others are not.
_LOOK_AFTER = 0.05
# One that the application queues itself, and that has waited so long for a thread of
# the invoke lane, is handed to it on a further one: there its deadline is kept, and its
# client looked after.
_WAIT_INSIDE = 0.25

_CODES = {
    413: RequestTooLargeError.code,
    431: "headers_too_large",
    501: "not_implemented",
}


class Lane(enum.Enum):
    """Where a request is served.

    A `QUEUED` one is served as those of `INVOKE`; but the application has a queue for
    it, counts by `Lanes.waiting` who is in it, and runs no code of its own before.
    """

    EXPRESS = "express"
    INVOKE = "invoke"
    QUEUED = "queued"
    READ = "read"


@frozen
class Refusal:
    """Why a request is answered without running the application.

    Args:
        error: What the problem body says; its `retry_after` becomes the header.
        close: Whether the connection is closed after the answer.
    """

    error: PPIOAgentError
    close: bool = False


def _all_invoke(method: str, path: str, headers: Mapping[str, str]) -> Lane:
    del method, path, headers
    return Lane.INVOKE


def _nothing_waits() -> int:
    return 0


def _nothing_known() -> Iterable[float]:
    return ()


def error_code(status: int) -> str:
    """Return our code for what waitress found wrong with a request, by its status."""
    return _CODES.get(status, "bad_request")


@frozen(kw_only=True)
class Lanes:
    """What the application tells the server about its requests.

    All of them are called wherever a request is found complete: on the loop's thread,
    or, for those that were sent before the last answer, on the one that gave that
    answer. They must be quick and thread-safe.

    Args:
        classify: Chooses the lane by method, path (decoded, without query) and headers
            (names upper case with underscores, as `X_REQUEST_ID`).
        waiting: How many admitted requests wait inside the application (for a slot,
            or asynchronously); they count against `max_queue`.
        durations: For how many seconds the latest of them had their slots.
    """

    classify: Callable[[str, str, Mapping[str, str]], Lane] = _all_invoke
    waiting: Callable[[], int] = _nothing_waits
    durations: Callable[[], Iterable[float]] = _nothing_known


def retry_after(durations: Iterable[float], *, waiting: int, slots: int) -> int:
    """Return after how many seconds a refused caller may find a place, 1 to 30.

    Args:
        durations: How long the latest requests took, in seconds.
        waiting: How many requests wait now.
        slots: How many are served at once.

    Example:
        >>> retry_after([2.0, 4.0, 9.0], waiting=10, slots=5)
        8
    """
    known = list(durations)
    if not known:
        return 1
    return min(30, max(1, math.ceil(statistics.median(known) * waiting / slots)))


class Task(Protocol):
    """What waitress hands to a dispatcher: one connection with a request to serve."""

    requests: list[Any]

    def service(self) -> None:
        """Serve the first request."""

    def postpone(self) -> bool:
        """Tell whether the output of the last request has to leave first."""

    def client_gone(self) -> bool:
        """Tell whether the client has closed the connection."""

    def abort(self) -> None:
        """Close the connection."""

    def cancel(self) -> None:
        """Forget all requests and close."""


class LaneDispatcher:
    """Waitress's task dispatcher, with lanes and admission.

    Args:
        lanes: What the application says about its requests.
        slots: Most threads of the invoke lane, and of the read lane.
        max_queue: Most requests waiting for a thread of such a lane.
        max_connections: Bounds the express lane's queue: one request a connection.

    Attributes:
        inline: What the loop's thread may serve itself, while it is quick.

    Thread safety: thread-safe.
    """

    def __init__(
        self, lanes: Lanes, *, slots: int, max_queue: int, max_connections: int
    ) -> None:
        self._lanes = lanes
        self._slots = slots
        self._max_queue = max_queue
        load = Load()
        crews = {
            Lane.EXPRESS: (_EXPRESS_THREADS, max_connections),
            Lane.INVOKE: (slots, max_queue),
            Lane.READ: (slots, max_queue),
        }
        self._crews = {
            lane: Crew(
                f"ppio-web-{lane.value}",
                max_threads=threads,
                max_waiting=waiting,
                load=load,
            )
            for lane, (threads, waiting) in crews.items()
        }
        self.inline = Inline(self._crews[Lane.INVOKE])
        # Threads that answer requests whose own thread is inside user code: one a
        # connection at most.
        self._relays = WorkerPool("ppio-web-relay", max_threads=max_connections)
        # Guards _refused.
        self._lock = threading.Lock()
        self._refused: dict[str, int] = {}
        self._closed = False
        self.draining = False

    def start(self) -> None:
        """Make the express lane's threads, so that it never lacks them later."""
        all_there = threading.Barrier(_EXPRESS_THREADS)
        for _ in range(_EXPRESS_THREADS):
            self._crews[Lane.EXPRESS].submit(all_there.wait)

    def grow(self) -> bool:
        """Add threads where requests wait, if that helps; tell whether some wait."""
        waiting = [crew for crew in self._crews.values() if crew.waiting]
        for crew in waiting:
            crew.grow()
        self._crews[Lane.INVOKE].hand_over(_WAIT_INSIDE, self.relay)
        return bool(waiting)

    def add_task(self, task: Task) -> None:
        """Queue the first request of a connection on its lane, or its refusal."""
        if self._closed or task.postpone():
            return
        request = task.requests[0]
        request.arrived = time.monotonic()
        if request.error is not None:
            self._count(error_code(request.error.code))
            self._crews[Lane.EXPRESS].submit(partial(self._serve, task, request))
            return
        lane = self._lanes.classify(request.command, request.path, request.headers)
        queued = lane is Lane.QUEUED
        if queued:
            lane = Lane.INVOKE
        refusal = self._refuse(lane)
        if refusal is None:
            refusal = self._try(lane, task, request, queued=queued)
        if refusal is not None:
            self._count(refusal.error.code)
            request.error = refusal
            self._crews[Lane.EXPRESS].submit(partial(self._serve, task, request))

    def _count(self, reason: str) -> None:
        with self._lock:
            self._refused[reason] = self._refused.get(reason, 0) + 1

    def _try(
        self, lane: Lane, task: Task, request: Any, *, queued: bool
    ) -> Refusal | None:
        serve = self._serve
        if lane is Lane.INVOKE:
            if self.inline.offer(partial(serve, task, request), request.arrived):
                return None
            serve = self._serve_elsewhere
        crew = self._crews[lane]
        waiting = crew.waiting
        try:
            crew.submit(partial(serve, task, request), movable=queued)
        except PoolSaturatedError:
            return Refusal(self._busy_error(waiting))
        return None

    def _refuse(self, lane: Lane) -> Refusal | None:
        if lane is not Lane.INVOKE:
            return None
        if self.draining:
            error = ServerDrainingError("the server is shutting down", retry_after=1.0)
            return Refusal(error, close=True)
        inside = self._lanes.waiting()
        waiting = inside + self._crews[lane].waiting
        if inside and waiting >= self._max_queue:
            return Refusal(self._busy_error(waiting))
        return None

    def _busy_error(self, waiting: int) -> ServerBusyError:
        return ServerBusyError(
            f"all {self._slots} slots are taken and {waiting} requests wait;"
            " try again later",
            retry_after=retry_after(
                self._lanes.durations(), waiting=waiting, slots=self._slots
            ),
        )

    def _serve(self, task: Task, request: Any) -> None:
        waited = time.monotonic() - request.arrived
        gone = waited > _LOOK_AFTER and task.client_gone()
        served = False
        try:
            if not gone:
                task.service()
                served = True
        finally:
            if not served:
                task.cancel()
                task.abort()

    def _serve_elsewhere(self, task: Task, request: Any) -> None:
        """Serve on a thread of the invoke lane, and note how long that took."""
        started = time.monotonic()
        self._serve(task, request)
        self.inline.elsewhere(time.monotonic() - started)

    def relay(self, take_over: Callable[[], object]) -> bool:
        """Call `take_over()` on a further thread; see `Channel.relay`.

        Returns:
            Whether there is a thread for it.
        """
        try:
            self._relays.submit(take_over)
        except RuntimeError as error:
            _log.warning("no thread can take over a request: %s", error)
            return False
        return True

    @property
    def unfinished(self) -> int:
        """How many requests are being served or wait for a thread."""
        lanes = sum(crew.busy + crew.waiting for crew in self._crews.values())
        return lanes + self._relays.busy

    def stats(self) -> dict[str, Any]:
        """Return the numbers of threads and requests of each lane."""
        lanes = {
            lane.value: {
                "threads": crew.threads,
                "busy": crew.busy,
                "waiting": crew.waiting,
            }
            for lane, crew in self._crews.items()
        }
        return {"refused": self._refused.copy(), "lanes": lanes}

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:  # noqa: FBT001, FBT002 - waitress's signature
        """Drop what waits and end the threads; waitress calls it, too.

        Returns:
            Whether all threads have ended.
        """
        del cancel_pending
        self._closed = True
        ends = time.monotonic() + timeout
        closed = [
            crew.close(max(0.0, ends - time.monotonic()))
            for crew in self._crews.values()
        ]
        return self._relays.close(max(0.0, ends - time.monotonic())) and all(closed)
