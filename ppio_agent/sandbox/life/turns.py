"""Who changes a sandbox, one after the other, and who waits for a change."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from ppio_agent.exceptions import SandboxStateError

from .values import not_found

__all__ = ["TURN_TIMEOUT", "Turns"]

TURN_TIMEOUT: Final = 10.0
"""Longest a request waits while the sandbox changes its state, in seconds."""


class Turns:
    """Lets one thread at a time change a sandbox, until it is doomed.

    What was doomed is changed by nobody any more but by who doomed it: so a kill that
    comes while a change is under way is carried out right after it, and is never lost.

    Args:
        sandbox_id: For messages.

    Thread safety: thread-safe.
    """

    def __init__(self, sandbox_id: str) -> None:
        self._id = sandbox_id
        # Held over the I/O of a change; readers never take it.
        self._turn = threading.Lock()
        # Guards _doomed; notified on each change.
        self._changed = threading.Condition()
        self._doomed = False

    @property
    def doomed(self) -> bool:
        """Whether it is being killed, or has been."""
        return self._doomed

    @property
    def changing(self) -> bool:
        """Whether somebody has the turn."""
        return self._turn.locked()

    def doom(self) -> bool:
        """Let nobody change it any more; return whether the caller is the first."""
        with self._changed:
            first, self._doomed = not self._doomed, True
            self._changed.notify_all()
        return first

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Have the turn, for a request.

        Raises:
            NotFoundError: It is being killed.
            SandboxStateError: Others have the turn for too long.
        """
        if not self._turn.acquire(timeout=TURN_TIMEOUT):
            raise SandboxStateError(f"sandbox {self._id} is changing state: try again")
        try:
            if self._doomed:
                raise not_found(self._id)
            yield
        finally:
            self._turn.release()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Have the turn, doomed or not, however long that takes."""
        with self._turn:
            yield

    def notify(self) -> None:
        """Have those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition holds; return whether it does."""
        with self._changed:
            return self._changed.wait_for(condition, timeout)
