"""The one thread of a client: extends busy sandboxes, has abandoned ones ended.

A sandbox lives for its time to live; while a call runs in it that time is extended,
an idle one is left to expire. A stream with a sandbox of its own that nobody read to
the end leaves the sandbox here, since a finaliser must not wait for the network.
"""

from __future__ import annotations

import enum
import logging
import math
import queue
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ppio_agent._util.aside import run_aside
from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import PPIOAgentError

__all__ = ["Caretaker", "Tended"]

_log = logging.getLogger(__name__)


class _Word(enum.Enum):
    """What the thread is told, besides which session to close."""

    LOOK = enum.auto()
    END = enum.auto()


class Tended(Protocol):
    """What is looked after: a session."""

    @property
    def busy(self) -> bool:
        """Whether a call runs in it."""

    @property
    def extend_at(self) -> float:
        """Monotonic instant from which its time to live should be extended."""

    @property
    def sandbox_id(self) -> str:
        """Its sandbox."""

    def extend(self) -> None:
        """Extend its time to live; `extend_at` is later then, also after a failure."""

    def close(self) -> None:
        """End its sandbox."""


class Caretaker:
    """Looks after the sessions of one client, with one thread that starts on demand.

    Args:
        clock: Monotonic clock.

    Thread safety: thread-safe; `abandon` takes no lock and may run in a finaliser. A
    forked child begins without a thread and without sessions.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin_idle()
        renew_in_child(self, Caretaker._begin_idle)

    def _begin_idle(self) -> None:
        # Guards _watched, _next_at and _thread.
        self._lock = threading.Lock()
        self._watched: set[Tended] = set()
        self._next_at = math.inf
        self._thread: threading.Thread | None = None
        # Sessions to be closed, and words. At most one entry a sandbox and one a call
        # are in it. Unlike a Queue it may be put to by a finaliser that runs while the
        # same thread is inside it.
        self._mail: queue.SimpleQueue[Tended | _Word] = queue.SimpleQueue()

    def watch(self, session: Tended) -> None:
        """Extend the session's time to live for as long as it is busy."""
        with self._lock:
            self._watched.add(session)
            if self._thread is None:
                self._start_locked()
            sooner = session.extend_at < self._next_at
            if sooner:
                self._next_at = session.extend_at
        if sooner:
            self._mail.put(_Word.LOOK)

    def abandon(self, session: Tended) -> None:
        """Have the session closed, soon; it must be watched."""
        self._mail.put(session)

    def close(self, timeout: float | None = 5.0) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._watched.clear()
        if thread is not None:
            self._mail.put(_Word.END)
            if thread is not threading.current_thread():
                thread.join(timeout)

    def _start_locked(self) -> None:
        # The thread does not keep the caretaker: that of a client which nobody closed
        # would stay for ever, with its connections.
        weakref.finalize(self, self._mail.put, _Word.END).atexit = False
        self._thread = start_thread(
            "ppio-client-keepalive", _serve, weakref.ref(self), self._mail
        )

    def take(self, mail: Tended | _Word) -> float | None:
        """Have a session closed that was abandoned, and extend all that are due.

        Returns:
            Seconds until the next is due; None if none is watched.
        """
        if not isinstance(mail, _Word):
            # Not here: one that takes its time would let busy ones expire.
            run_aside(partial(self._guarded, mail, mail.close))
        for session in self._due():
            self._guarded(session, session.extend)
        return self._wait()

    def _wait(self) -> float | None:
        with self._lock:
            if math.isinf(self._next_at):
                return None
            return max(0.0, self._next_at - self._clock())

    def _due(self) -> list[Tended]:
        """Return the sessions to extend now, and plan when to look again."""
        now = self._clock()
        due = []
        with self._lock:
            self._watched = {s for s in self._watched if s.busy}
            self._next_at = math.inf
            for session in self._watched:
                at = session.extend_at
                if at <= now:
                    due.append(session)
                else:
                    self._next_at = min(self._next_at, at)
        return due

    def _guarded(self, session: Tended, action: Callable[[], None]) -> None:
        try:
            action()
        except PPIOAgentError as error:
            _log.warning(
                "the sandbox %s could not be looked after: %s",
                session.sandbox_id,
                error,
            )
        except Exception:  # noqa: BLE001 - one session must not end the care of others
            _log.exception("looking after the sandbox %s failed", session.sandbox_id)
        finally:
            with self._lock:
                if session in self._watched:
                    self._next_at = min(self._next_at, session.extend_at)


def _serve(
    owner: weakref.ref[Caretaker], letters: queue.SimpleQueue[Tended | _Word]
) -> None:
    """Hand each letter to the caretaker, and wake it when something is due."""
    mail: Tended | _Word = _Word.LOOK
    while mail is not _Word.END:
        caretaker = owner()
        if caretaker is None:
            return
        wait = caretaker.take(mail)
        del caretaker, mail
        try:
            mail = letters.get(timeout=wait)
        except queue.Empty:
            mail = _Word.LOOK
