"""Deadlines that are kept whatever user code does: one thread that watches them.

Only what runs now is watched, a few hundred at most, so each waking looks at all of
them; and since deadlines are mostly equally far away, setting one hardly ever wakes
the thread. Setting and clearing cost a lock and a dictionary entry.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from .fork import renew_in_child
from .threads import NoThreadError, start_thread

__all__ = ["Alarmed", "Alarms", "alarms"]

_log = logging.getLogger(__name__)

_NEVER = float("inf")
# Seconds between looks when no instant is set, and how many of them.
_LOOK_EVERY = 0.005
_LOOKS = 10


class Alarmed(Protocol):
    """Who is told when its instant has come."""

    def on_alarm(self) -> None:
        """React; runs on the thread `ppio-alarm` and must not block."""


class Alarms:
    """Calls `on_alarm` of whoever set an instant, once that has passed.

    The thread is made at first use and stays: there is one for the process.

    Thread safety: thread-safe. A forked child starts anew.
    """

    def __init__(self) -> None:
        self._reset()
        renew_in_child(self, Alarms._reset)

    def _reset(self) -> None:
        # Each step on it is one of the interpreter's own, so it needs no lock: every
        # invocation sets and clears an instant.
        self._due: dict[Alarmed, float] = {}
        # Guards everything below; signals that the next waking comes too late.
        self._sooner = threading.Condition(threading.Lock())
        self._next = _NEVER
        self._looks = 0  # in vain, since an instant was set
        self._thread: threading.Thread | None = None

    def set(self, owner: Alarmed, instant: float) -> None:
        """Call ``owner.on_alarm()`` at `instant` (of `time.monotonic`), not before.

        Raises:
            NoThreadError: It is the first, and the thread cannot be started; nothing
                is set then, and the next one tries again.
        """
        self._due[owner] = instant
        self._looks = 0
        # While the thread looks through them, `_next` is `_NEVER`: what it has not
        # seen waits for the lock here.
        if instant >= self._next:
            return
        with self._sooner:
            if instant >= self._next:
                return
            if self._thread is None:
                self._start_locked(owner)
            self._next = instant
            self._sooner.notify()

    def _start_locked(self, owner: Alarmed) -> None:
        try:
            self._thread = start_thread("ppio-alarm", self._watch)
        except NoThreadError:
            self._due.pop(owner, None)
            raise

    def clear(self, owner: Alarmed) -> None:
        """Forget the instant that `owner` set, if any."""
        self._due.pop(owner, None)

    def _watch(self) -> None:
        while True:
            for owner in self._wait_for_due():
                try:
                    owner.on_alarm()
                except Exception:  # noqa: BLE001 - the others' deadlines must be kept
                    _log.exception("an alarm failed")

    def _wait_for_due(self) -> list[Alarmed]:
        with self._sooner:
            now = time.monotonic()
            while now < self._next:
                wait = min(self._next - now, threading.TIMEOUT_MAX)
                self._sooner.wait(wait)
                now = time.monotonic()
            self._next = _NEVER
            all_set = list(self._due.items())
            due = [owner for owner, instant in all_set if instant <= now]
            for owner in due:
                self._forget(owner, now)
            later = [instant for _, instant in all_set if instant > now]
            self._next = min(later, default=self._next_look_locked(now))
            return due

    def _forget(self, owner: Alarmed, now: float) -> None:
        instant = self._due.pop(owner, now)
        if instant > now:  # set anew just now
            self._due.setdefault(owner, instant)

    def _next_look_locked(self, now: float) -> float:
        # Where instants come and go all the time, each would be the next one and wake
        # the thread: looking in vain a few times is cheaper.
        if self._looks == _LOOKS:
            return _NEVER
        self._looks += 1
        return now + _LOOK_EVERY


_alarms = Alarms()


def alarms() -> Alarms:
    """Return the alarms of this process."""
    return _alarms
