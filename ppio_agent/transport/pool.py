"""Connections, kept and bounded over all hosts; who finds none waits in line.

A connection that becomes free goes straight to whoever waits longest, so nobody who
comes later is served before.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import PoolTimeoutError

from .calls import CallHandle
from .connect import Connection, Connector
from .messages import TransportConfig
from .route import Origin

__all__ = ["ConnectionPool"]


class _Waiter:
    """One call in line. Written under the pool's lock, except for `call`."""

    __slots__ = ("call", "connection", "fresh", "origin", "served")

    def __init__(self, origin: Origin, call: CallHandle, *, fresh: bool) -> None:
        self.origin = origin
        self.call = call
        self.fresh = fresh
        self.served = False  # True: it has a place, and a connection if not None
        self.connection: Connection | None = None


class ConnectionPool:
    """All connections of a transport, or of several, in one process.

    Thread safety: thread-safe. A forked child makes a new one and `forget`s the old.

    Blocking: `acquire` waits for a place, then for the connection, until the deadline.
    """

    def __init__(self, config: TransportConfig) -> None:
        # Guards all below but _returned and the connector. Never waited for
        # by what a signal handler or a finalizer may do, since either may run on top
        # of a thread that holds it: see `release`.
        self._lock = threading.Lock()
        self._limit = config.max_connections
        self._most_idle = config.max_keepalive_connections
        self._open = 0  # places taken, by connections in use or idle
        # The oldest first, as a whole and for each origin.
        self._idle: OrderedDict[Connection, None] = OrderedDict()
        self._idle_of: dict[Origin, list[Connection]] = {}
        self._waiting: deque[_Waiter] = deque()
        self._closed = False
        # Given back and not yet seen to: (connection, whether it may be kept).
        self._returned: deque[tuple[Connection | None, bool]] = deque()
        self._connector = Connector(config)

    def acquire(
        self,
        origin: Origin,
        call: CallHandle,
        deadline: Deadline,
        *,
        fresh: bool = False,
    ) -> Connection:
        """Return a connection to `origin`, attached to `call`.

        Args:
            origin: Where to.
            call: For whom.
            deadline: Bounds the waiting.
            fresh: Do not take a kept one.

        Raises:
            PoolTimeoutError: No place became free in time.
            OSError: The connection could not be made.
        """
        connection = self._take(origin, call, deadline, fresh=fresh)
        try:
            if connection is not None:
                if not connection.is_stale():
                    connection.attach_to(call)
                    return connection
                connection.close()
            return self._connector.open(origin, call, deadline)
        except BaseException:
            call.detach()
            self.release(connection, keep=False)
            raise

    def release(self, connection: Connection | None, *, keep: bool) -> None:
        """Give a place back, and with it the connection if it can serve again.

        Never blocks: whoever holds the lock sees to it after letting go.
        """
        self._returned.append((connection, keep))
        self._see_to_returned()

    def _see_to_returned(self) -> None:
        while self._returned and self._lock.acquire(blocking=False):
            waiter = surplus = None
            try:
                if self._returned:
                    waiter, surplus = self._put_back_locked(self._returned.popleft())
            finally:
                self._lock.release()
            if waiter is not None:
                waiter.call.wake()
            if surplus is not None:
                surplus.close()

    def _put_back_locked(
        self, returned: tuple[Connection | None, bool]
    ) -> tuple[_Waiter | None, Connection | None]:
        """Return who gets the place, and the connection to be closed."""
        connection, keep = returned
        if self._waiting:
            waiter = self._waiting.popleft()
            waiter.served = True
            if keep and connection is not None and _fits(connection, waiter):
                waiter.connection = connection
                return waiter, None
            return waiter, connection
        if not keep or connection is None or self._closed:
            self._open -= 1
            return None, connection
        self._idle[connection] = None
        self._idle_of.setdefault(connection.origin, []).append(connection)
        if len(self._idle) <= self._most_idle:
            return None, None
        self._open -= 1
        return None, self._drop_oldest_locked()

    def allow(self, connections: int) -> None:
        """Raise the limit of connections to at least this many."""
        served = []
        with self._lock:
            self._limit = max(self._limit, connections)
            while self._waiting and self._open < self._limit:
                self._open += 1
                waiter = self._waiting.popleft()
                waiter.served = True
                served.append(waiter)
        self._see_to_returned()
        for waiter in served:
            waiter.call.wake()

    @property
    def size(self) -> int:
        """How many connections there are, idle ones included."""
        return self._open

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    def close(self) -> None:
        """Close what is idle now, and the rest when it comes back. Idempotent."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._open -= len(idle)
            self._idle.clear()
            self._idle_of.clear()
        self._see_to_returned()
        for connection in idle:
            connection.close()
        self._connector.close()

    def forget(self) -> None:
        """Let go of a parent's connections in a forked child, untouched.

        The lock may be held for ever by a thread that exists no more.
        """
        for connection in list(self._idle):
            connection.close()

    def _take(
        self, origin: Origin, call: CallHandle, deadline: Deadline, *, fresh: bool
    ) -> Connection | None:
        """Take a place; return the connection that came with it, if one did."""
        surplus = waiter = None
        with self._lock:
            kept = None if fresh else self._take_idle_locked(origin)
            if kept is None and self._open < self._limit:
                self._open += 1
            elif kept is None and self._idle:
                surplus = self._drop_oldest_locked()
            elif kept is None:
                waiter = _Waiter(origin, call, fresh=fresh)
                self._waiting.append(waiter)
        self._see_to_returned()
        if surplus is not None:
            surplus.close()
        return kept if waiter is None else self._wait(waiter, deadline)

    def _wait(self, waiter: _Waiter, deadline: Deadline) -> Connection | None:
        try:
            while not waiter.served and not deadline.expired:
                waiter.call.wait(deadline.left())
        except BaseException:
            if not self._give_up(waiter):
                self.release(waiter.connection, keep=True)
            raise
        if not waiter.served and self._give_up(waiter):
            raise PoolTimeoutError(
                f"no connection became free in time: all {self._limit} are in use;"
                " close streams, or raise max_connections",
                phase="pool",
            )
        return waiter.connection

    def _give_up(self, waiter: _Waiter) -> bool:
        """Leave the line; False if the waiter was served meanwhile."""
        with self._lock:
            served = waiter.served
            if not served:
                self._waiting.remove(waiter)
        self._see_to_returned()
        return not served

    def _take_idle_locked(self, origin: Origin) -> Connection | None:
        kept = self._idle_of.get(origin)
        if not kept:
            return None
        connection = kept.pop()
        if not kept:
            del self._idle_of[origin]
        del self._idle[connection]
        return connection

    def _drop_oldest_locked(self) -> Connection:
        connection, _ = self._idle.popitem(last=False)
        kept = self._idle_of[connection.origin]
        kept.remove(connection)
        if not kept:
            del self._idle_of[connection.origin]
        return connection


def _fits(connection: Connection, waiter: _Waiter) -> bool:
    return connection.origin == waiter.origin and not waiter.fresh
