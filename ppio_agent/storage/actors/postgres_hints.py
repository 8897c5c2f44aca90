"""Hints between the processes that share a PostgreSQL server, by its LISTEN and NOTIFY.

One thread with one connection tells and is told. Nothing is told in the transaction it
is about: there a NOTIFY makes all commits of the database wait for one another.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.exceptions import InvalidActorIdError
from ppio_agent.wire.actors import ActorId

from .records import Hint, HintKind, Subscription

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresHints"]

_log = logging.getLogger(__name__)

_MOST_WAITING = 10_000  # the oldest go: a hint may be lost
_MOST_AT_ONCE = 500
_REST = 1.0  # seconds between two attempts to connect
_CLOSE_SECONDS = 5.0

_Callback = Callable[[Hint], object]


class _Subscription:
    def __init__(self, hints: PostgresHints, callback: _Callback) -> None:
        self._hints = hints
        self._callback = callback

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        self._hints.unsubscribe(self._callback)


class PostgresHints:
    """Tells the other processes, and whoever subscribes here of what they tell.

    Args:
        connect: Opens a connection with autocommit.
        channel: What the processes have in common.

    Thread safety: thread-safe.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], channel: str) -> None:
        self._connect = connect
        self._channel = channel
        self._outgoing: deque[str] = deque(maxlen=_MOST_WAITING)
        self._lock = threading.Lock()  # Guards all below.
        self._callbacks: list[_Callback] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._ear, self._bell = socket.socketpair()
        self._rung = False

    def tell(self, hints: Iterable[Hint]) -> None:
        """Tell the other processes, soon; nobody waits for it."""
        self._outgoing.extend(_format(hint) for hint in hints)
        with suppress(NoThreadError):  # what it is about was done nevertheless
            self._ring()

    def subscribe(self, callback: _Callback) -> Subscription:
        """Call back on the thread of hints with what others tell."""
        with self._lock:
            self._callbacks.append(callback)
        self._ring()
        return _Subscription(self, callback)

    def unsubscribe(self, callback: _Callback) -> None:
        """Call back no more."""
        with self._lock, suppress(ValueError):
            self._callbacks.remove(callback)

    def _ring(self) -> None:
        with self._lock:
            if self._closed.is_set():
                return
            if self._thread is None:
                self._thread = start_thread("ppio-actor-hints-1", self._run)
            if not self._rung:
                self._rung = True
                self._bell.send(b"!")

    def close(self) -> None:
        """Send what is left, and end the thread. Idempotent."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._bell.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_CLOSE_SECONDS)
        self._ear.close()

    def _run(self) -> None:
        is_down = False
        while not self._closed.is_set():
            try:
                with closing(self._connect()) as connection:
                    is_down = False
                    self._exchange(connection)
            except Exception as error:  # noqa: BLE001 - whatever a driver has to say
                if not is_down:
                    about = str(error).partition("\n")[0]
                    _log.warning(
                        "hints about actors are not exchanged for now: %s", about
                    )
                is_down = True
                self._closed.wait(_REST)

    def _exchange(self, connection: psycopg.Connection) -> None:
        from psycopg import sql

        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._ear.fileno(), select.POLLIN)
        while True:
            closed = self._closed.is_set()  # before what is left is sent
            self._send(connection)
            self._receive(connection)
            if closed:
                return
            if any(fd == self._ear.fileno() for fd, _ in poll.poll()):
                self._hear()

    def _hear(self) -> None:
        # What is told from here on rings again.
        with self._lock:
            self._ear.recv(16)
            self._rung = False

    def _send(self, connection: psycopg.Connection) -> None:
        while self._outgoing:
            with suppress(IndexError):
                batch: list[str] = []
                while len(batch) < _MOST_AT_ONCE:
                    batch.append(self._outgoing.popleft())
            connection.execute(
                "SELECT pg_notify(%s, hint) FROM unnest(%s::text[]) AS hint",
                (self._channel, batch),
            )

    def _receive(self, connection: psycopg.Connection) -> None:
        ours = connection.info.backend_pid
        for notify in connection.notifies(timeout=0):
            hint = _parse(notify.payload)
            if hint is None or notify.pid == ours:
                continue
            for callback in list(self._callbacks):
                try:
                    callback(hint)
                except Exception:  # noqa: BLE001 - the thread's outermost frame
                    _log.exception("a subscriber to hints failed")


def _format(hint: Hint) -> str:
    return f"{hint.kind.value}\t{hint.message_id}\t{hint.actor_id}"


def _parse(payload: str) -> Hint | None:
    """Return what was told; None of what others say on the channel."""
    with suppress(ValueError, InvalidActorIdError):
        kind, message_id, actor_id = payload.split("\t")
        return Hint(HintKind(kind), ActorId.parse(actor_id), message_id)
    return None
