"""What `/ping` says: the agent's own word, and what runs.

The decision is `judge`, a pure function; `Health` is its shell, which runs the agent's
health check beside the requests and knows when the status last changed.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from attrs import evolve, frozen

from ppio_agent._util.clock import utc_now
from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.threads import WorkerPool
from ppio_agent.agent import CancelToken
from ppio_agent.agent.handler import is_async_result
from ppio_agent.wire.models import PingResponse, PingStatus
from ppio_agent.wire.times import format_time

__all__ = ["BusyHandle", "Health", "Said", "judge", "read_check"]

_log = logging.getLogger(__name__)

_CHECK_TIMEOUT = 1.0
_CHECK_EVERY = 1.0
_WORDS = {
    **dict.fromkeys(("healthy", "ok", "up"), PingStatus.HEALTHY),
    **dict.fromkeys(("healthybusy", "busy", "working"), PingStatus.HEALTHY_BUSY),
    **dict.fromkeys(("unhealthy", "down", "error"), PingStatus.UNHEALTHY),
}
_BADNESS = (PingStatus.HEALTHY, PingStatus.HEALTHY_BUSY, PingStatus.UNHEALTHY)
_OURS = frozenset({"status", "message", "timestamp", "time_of_last_update"})
_NO_EXTRA: Mapping[str, Any] = {}
_Verdict = tuple[PingStatus, str | None]


@frozen(kw_only=True)
class Said:
    """What a health check came to.

    Attributes:
        status: The status it named; None leaves it to what runs.
        exact: Whether that holds whatever runs.
        message: For a person, or None.
        extra: Further members of a dict.
        failed: Why its word cannot be taken, or None.
    """

    status: PingStatus | None = None
    exact: bool = False
    message: str | None = None
    extra: Mapping[str, Any] = _NO_EXTRA
    failed: str | None = None


def read_check(value: Any) -> Said:
    """Return what the value of a health check says."""
    if isinstance(value, PingResponse):
        return Said(status=value.status, exact=True, message=value.message)
    if isinstance(value, PingStatus):
        return Said(status=value, exact=True)
    if value is None or isinstance(value, bool):
        return Said(status=PingStatus.UNHEALTHY if value is False else None)
    if isinstance(value, str):
        status = _WORDS.get(value.strip().lower())
        return Said(status=status, failed=None if status else "unknown status")
    if isinstance(value, Mapping):
        return _read_members(value)
    return Said(failed=type(value).__name__)


def _read_members(members: Mapping[Any, Any]) -> Said:
    message = members.get("message")
    said = read_check(members.get("status"))
    return evolve(
        said,
        exact=False,
        message=message if isinstance(message, str) else said.message,
        extra={
            name: value
            for name, value in members.items()
            if name not in _OURS and isinstance(name, str)
        },
    )


def judge(
    *, draining: bool, forced: PingStatus | None, said: Said, busy: bool
) -> _Verdict:
    """Return the status to tell, and a message for a person.

    Args:
        draining: Whether the app is being stopped.
        forced: What `force_ping_status` set, or None.
        said: What the agent's own check says.
        busy: Whether a handler runs, or work was marked as such.
    """
    automatic = PingStatus.HEALTHY_BUSY if busy else PingStatus.HEALTHY
    if draining:
        return PingStatus.UNHEALTHY, "draining"
    if forced is not None:
        return forced, None
    if said.failed is not None:
        return automatic, f"health check failed: {said.failed}"
    if said.status is None:
        return automatic, said.message
    if said.exact or said.status not in _BADNESS:
        return said.status, said.message
    return max(said.status, automatic, key=_BADNESS.index), said.message


class BusyHandle:
    """Marks background work; `done` ends it, from any thread. Twice is harmless."""

    def __init__(self, name: str, end: Callable[[BusyHandle], None]) -> None:
        self.name = name
        self._end = end

    def done(self) -> None:
        """Say that the work is over."""
        self._end(self)

    def __enter__(self) -> BusyHandle:
        return self

    def __exit__(self, *_: object) -> Literal[False]:
        self.done()
        return False


class Health:
    """Knows the status of one app, and since when it is so.

    Args:
        live: How many invocations run or wait.
        live_changed_at: Unix time at which there were none last, or any last.
        clock: Unix time.

    Thread safety: thread-safe. In a forked child nothing of its parent's work runs.
    """

    def __init__(
        self,
        live: Callable[[], int],
        live_changed_at: Callable[[], float],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._live = live
        self._live_changed_at = live_changed_at
        self._clock = clock
        self._check: Callable[[], Any] | None = None
        # The check may hang: it has a thread of its own, and only one.
        self._pool = WorkerPool("ppio-ping", max_threads=1, max_waiting=1)
        self._forget_work()
        self._forced: PingStatus | None = None
        self._draining = False
        self._said = Said()
        self._began_at = float("-inf")
        self._checked_at = float("-inf")
        # What is told while nothing runs, and while something does.
        self._verdicts: tuple[_Verdict, _Verdict] = (
            (PingStatus.HEALTHY, None),
            (PingStatus.HEALTHY_BUSY, None),
        )
        self._changed_at = int(clock())
        renew_in_child(self, Health._renew)

    def _forget_work(self) -> None:
        # Guards all that changes; signals the end of a check.
        self._checked = threading.Condition(threading.Lock())
        self._busy: set[BusyHandle] = set()
        self._checking = False

    def _renew(self) -> None:
        self._forget_work()
        with self._checked:
            self._judge_locked()

    @property
    def busy_tasks(self) -> int:
        """How many pieces of background work are marked."""
        return len(self._busy)

    def set_check(self, check: Callable[[], Any]) -> None:
        """Take the agent's own check, which gets no arguments.

        Raises:
            TypeError: It is no function, or needs arguments.
        """
        try:
            inspect.signature(check).bind()
        except TypeError as error:
            raise TypeError(
                "a health check is a function that can be called without arguments:"
                f" {check!r} is not ({error})"
            ) from None
        except ValueError:  # a built-in one that does not tell
            pass
        self._check = check

    def busy(self, name: str) -> BusyHandle:
        """Mark the begin of background work."""
        handle = BusyHandle(name, self._end_busy)
        with self._checked:
            self._busy.add(handle)
            self._judge_locked()
        return handle

    def _end_busy(self, handle: BusyHandle) -> None:
        with self._checked:
            self._busy.discard(handle)
            self._judge_locked()

    def force(self, status: PingStatus | None) -> None:
        """Tell this status, whatever else is the case; None ends that."""
        with self._checked:
            self._forced = status
            self._judge_locked()

    def drain(self) -> None:
        """Tell from now on that the app is being stopped."""
        with self._checked:
            self._draining = True
            self._judge_locked()

    def _verdict_locked(self) -> _Verdict:
        """Return what is told now, having seen since when."""
        # Invocations come and go much more often than anybody asks.
        idle, busy = self._verdicts
        if idle[0] != busy[0]:
            self._changed_at = max(self._changed_at, int(self._live_changed_at()))
        return busy if self._live() else idle

    def _judge_locked(self) -> None:
        """Prepare what is told from now on."""
        before = self._verdict_locked()[0]
        idle, busy = (
            judge(
                draining=self._draining,
                forced=self._forced,
                said=self._said,
                busy=live or bool(self._busy),
            )
            for live in (False, True)
        )
        self._verdicts = (idle, busy)
        if self._verdict_locked()[0] != before:
            self._changed_at = int(self._clock())

    def ping(self) -> tuple[int, dict[str, Any]]:
        """Return HTTP status and body of an answer to `/ping`.

        Blocking: at most until the agent's own check has run for 1 s.
        """
        check = self._check
        in_time = check is None or self._run_check(check)
        with self._checked:
            status, message = self._verdict_locked()
            body = {
                **self._said.extra,
                "status": status.value,
                "message": message if in_time else "health check timed out",
                "timestamp": format_time(utc_now()),
                "time_of_last_update": self._changed_at,
            }
            unhealthy = status is PingStatus.UNHEALTHY
        return (503 if unhealthy else 200), body

    def _run_check(self, check: Callable[[], Any]) -> bool:
        """Run the check unless that was done lately; return whether it ended in time."""
        with self._checked:
            now = time.monotonic()
            if now - self._checked_at < _CHECK_EVERY and not self._checking:
                return True
            start = not self._checking
            if start:
                self._checking, self._began_at = True, now
            # All wait for one second of the check together, not each for its own.
            ends = self._began_at + _CHECK_TIMEOUT
        if start:
            self._pool.submit(lambda: self._do_check(check))
        with self._checked:
            while self._checking:
                left = ends - time.monotonic()
                if left <= 0:
                    return False
                self._checked.wait(left)
        return True

    def _do_check(self, check: Callable[[], Any]) -> None:
        said = Said()
        error: BaseException | None = None
        try:
            value = check()
            if is_async_result(value):
                from ppio_agent.agent.loop import AsyncCall

                value = AsyncCall(CancelToken()).result(value)
            said = read_check(value)
        except BaseException as exc:  # noqa: BLE001 - user code; it fails, not the app
            error = exc
            said = Said(failed=type(exc).__name__)
        if said.failed is not None and said.failed != self._said.failed:
            _log.warning("health check failed: %s", said.failed, exc_info=error)
        with self._checked:
            self._said = said
            self._checking = False
            self._checked_at = time.monotonic()
            self._judge_locked()
            self._checked.notify_all()

    def close(self) -> None:
        """End the thread of the check, if it lets itself be ended."""
        self._pool.close(0.1)
