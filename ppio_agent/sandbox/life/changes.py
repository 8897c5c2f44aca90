"""What happens to a sandbox, told to whoever wants to know."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal

from attrs import frozen

from ppio_agent.sandbox.backends.base import AgentStatus

from .machine import EndReason, State

__all__ = ["Change", "Changes", "Kind", "Listener"]

_log = logging.getLogger(__name__)

Kind = Literal["state", "agent"]


@frozen(kw_only=True)
class Change:
    """One thing that happened to a sandbox, and how it was right after.

    Attributes:
        kind: `state` for a transition, `agent` for a report of its agent.
        state: Its state.
        reason: Why it was killed; None while it lives.
        agent: Its agent.
        at: When that was.
    """

    kind: Kind
    state: State
    reason: EndReason | None
    agent: AgentStatus
    at: datetime


Listener = Callable[[Change], None]


class Changes:
    """Tells listeners of changes in the order in which they were noted.

    Noting and telling are apart, so that a change is noted where its order is known,
    under a lock, and told where no lock is held.

    Thread safety: thread-safe. Listeners are called one at a time.
    """

    def __init__(self) -> None:
        # Guards changes of _listeners, and what is added to _untold.
        self._lock = threading.Lock()
        self._telling = threading.Lock()  # Held by the thread that calls listeners.
        self._listeners: tuple[Listener, ...] = ()
        # Each with those who listened when it was noted.
        self._untold: deque[tuple[Change, tuple[Listener, ...]]] = deque()

    def subscribe(
        self, listener: Listener, *, present: Callable[[], Sequence[Change]] = tuple
    ) -> Callable[[], None]:
        """Have `listener` called for each change from now on.

        Args:
            listener: Called on the thread that made a change; quick, and it waits for
                nothing. An error of it is logged.
            present: Gives what the listener alone is told first, by the next `tell`.
                It is asked when no change can be noted, and must not wait: so what
                it says is never older than a change that is told before it.

        Returns:
            Ends that; a call that is under way is not waited for.
        """
        with self._lock:
            self._untold.extend((change, (listener,)) for change in present())
            self._listeners += (listener,)
        return lambda: self._unsubscribe(listener)

    def _unsubscribe(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = tuple(
                other for other in self._listeners if other is not listener
            )

    def note(self, change: Change) -> None:
        """Put a change in its place in the order."""
        with self._lock:
            if self._listeners:
                self._untold.append((change, self._listeners))

    def tell(self) -> None:
        """Tell what was noted, unless another thread is at it: then that one does."""
        # Asked again after each release: what was noted just before it is not left.
        while self._untold and self._telling.acquire(blocking=False):
            try:
                self._tell_all()
            finally:
                self._telling.release()

    def _tell_all(self) -> None:
        while self._untold:
            change, listeners = self._untold.popleft()
            for listener in listeners:
                if listener in self._listeners:
                    self._tell_one(listener, change)

    def _tell_one(self, listener: Listener, change: Change) -> None:
        try:
            listener(change)
        except Exception:  # noqa: BLE001 - the others are told nevertheless
            _log.exception("a listener to a sandbox failed")
