"""What happened to a sandbox, kept for those who listen, and come back."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from ppio_agent.sandbox.life.changes import Change
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import State
from ppio_agent.wire.json import Json
from ppio_agent.wire.times import format_time

from .streams import Note
from .views import agent_view

__all__ = ["Journal", "Journals"]

_KEPT: Final = 100


class Journal:
    """The newest changes of one sandbox, as events with numbers.

    Args:
        sandbox_id: Whose.
        wall_clock: Seconds since the epoch; where the numbers begin, so that those of
            another platform, before a crash, are smaller.

    Thread safety: thread-safe.
    """

    def __init__(
        self, sandbox_id: str, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._sandbox_id = sandbox_id
        # Guards everything below; notified when an event is added.
        self._changed = threading.Condition()
        self._seq = int(wall_clock() * 1000)
        self._notes: deque[Note] = deque(maxlen=_KEPT)
        self._over = False

    @property
    def over(self) -> bool:
        """Whether the sandbox is gone."""
        return self._over

    @property
    def newest(self) -> int:
        """Number of the newest event; those to come have larger ones."""
        with self._changed:
            return self._seq

    def read(self, after: int, timeout: float | None) -> Sequence[Note]:
        """Return the events after number `after`; see `Feed.read`.

        A journal that is over has its end for whoever asks.
        """

        def there() -> bool:
            return self._over or bool(self._notes and self._seq > after)

        with self._changed:
            if not self._changed.wait_for(there, timeout):
                return []
            later = [note for note in self._notes if note.seq > after]
            return later or [self._notes[-1]]

    def close(self) -> None:
        """Do nothing: the next reader goes on with it."""

    def add(self, change: Change) -> None:
        """Note a change; after the end nothing more."""
        event, value = _event(self._sandbox_id, change)
        with self._changed:
            if self._over:
                return
            self._append_locked(Note.of(self._seq + 1, event, value))
            # Of its agent more may come while its processes are being ended.
            if change.kind == "state" and change.state is State.KILLED:
                self._over = True
                self._append_locked(Note.end(self._seq + 1, _reason(change)))
            self._changed.notify_all()

    def _append_locked(self, note: Note) -> None:
        self._notes.append(note)
        self._seq = note.seq


class Journals:
    """The journals of live sandboxes that somebody has listened to.

    One begins with how the sandbox is, when it is first asked for, and is kept until
    the sandbox is gone.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards _journals.
        self._journals: dict[str, Journal] = {}

    def of(self, sandbox: LiveSandbox) -> Journal:
        """Return the journal of a sandbox, begun now if it has none."""
        with self._lock:
            found = self._journals.get(sandbox.id)
            if found is not None:
                return found
            journal = self._journals[sandbox.id] = Journal(sandbox.id)

        def listen(change: Change) -> None:
            journal.add(change)
            if journal.over:
                self._forget(sandbox.id)

        sandbox.subscribe(listen, present=True)
        return journal

    def _forget(self, sandbox_id: str) -> None:
        with self._lock:
            self._journals.pop(sandbox_id, None)


def _event(sandbox_id: str, change: Change) -> tuple[str, dict[str, Json]]:
    about: dict[str, Json] = {"sandboxID": sandbox_id, "at": format_time(change.at)}
    if change.kind == "agent":
        return "agent", {**about, "agent": agent_view(change.agent)}
    return "state", {**about, "state": change.state.wire, **_reason(change)}


def _reason(change: Change) -> dict[str, Json]:
    return {"reason": None if change.reason is None else change.reason.value}
