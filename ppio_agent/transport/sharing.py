"""What a transport has of a pool: its own calls, and connections that others may share.

Programs that make a client for each request would connect for each request. So clients
of the same platform, key and settings use the same connections, while each ends only
its own calls.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

from attrs import field, frozen

from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import ClientClosedError, PPIOAgentError

from .calls import CallHandle
from .messages import TransportConfig
from .pool import ConnectionPool

__all__ = ["PoolShare", "SharedPools", "shared_pools"]

# Pools that nobody uses any more and nobody closed, kept for who comes next.
_MOST_UNUSED = 8


class PoolShare:
    """One transport's part in a pool: the calls it has under way there.

    Args:
        pool: The connections.
        on_close: Sees to the pool when this part of it is closed.

    Attributes:
        acquire: As `ConnectionPool.acquire`.
        release: As `ConnectionPool.release`.

    Thread safety: thread-safe. In a forked child its calls are ended, and the parent's
    connections are not touched.
    """

    def __init__(
        self, pool: ConnectionPool, on_close: Callable[[PoolShare], None]
    ) -> None:
        self._pool = pool
        self._on_close = on_close
        self._calls: set[CallHandle] = set()
        self._closed = False
        # The pool's own, without a step in between: every call comes by.
        self.acquire = pool.acquire
        self.release = pool.release
        renew_in_child(self, PoolShare._disown)

    def _disown(self) -> None:
        for call in self._calls:
            call.disown()
        self._calls = set()

    @property
    def pool(self) -> ConnectionPool:
        """The connections."""
        return self._pool

    @property
    def size(self) -> int:
        """How many connections the pool has, idle ones included."""
        return self._pool.size

    @property
    def idle(self) -> int:
        """How many connections of the pool are idle."""
        return self._pool.idle

    def enter(self, call: CallHandle) -> None:
        """Count a call among those that `abort_all` ends.

        Raises:
            ClientClosedError: This part of the pool is closed.
        """
        call.begin()
        self._calls.add(call)
        # In this order, so that `close` ends every call that it does not refuse.
        if self._closed:
            self.leave(call)
            raise ClientClosedError("the transport is closed; make a new one")

    def leave(self, call: CallHandle) -> None:
        """Say that a call is over."""
        self._calls.discard(call)
        call.end()

    def abort_all(self, error: type[PPIOAgentError], message: str) -> None:
        """End all calls with an error of their own."""
        for call in list(self._calls):
            call.abort(error(message))

    def close(self) -> None:
        """Refuse new calls, end those under way, let go of the pool. Idempotent."""
        if not self._closed:
            self._closed = True
            self.abort_all(
                ClientClosedError, "the transport was closed during the call"
            )
            self._on_close(self)


@frozen
class _Shared:
    pool: ConnectionPool
    # Those that were neither closed nor collected.
    shares: weakref.WeakSet[PoolShare] = field(factory=weakref.WeakSet)


class SharedPools:
    """The pools of one process that several transports may use.

    A pool is closed with the last of its transports. If that was collected without
    being closed, the pool waits for the next one, the last 8 of such pools do.

    Thread safety: thread-safe. A forked child drops its parent's connections at once.
    """

    def __init__(self) -> None:
        self._pools: OrderedDict[Hashable, _Shared] = OrderedDict()
        self._renew()
        renew_in_child(self, SharedPools._renew)

    def _renew(self) -> None:
        for shared in self._pools.values():
            shared.pool.forget()
        # Guards _pools.
        self._lock = threading.Lock()
        self._pools = OrderedDict()

    def join(self, key: Hashable, config: TransportConfig) -> PoolShare:
        """Return a part in the pool of this key, which is made if there is none.

        Args:
            key: What those who share a pool have in common; None shares with nobody.
            config: Of the pool.
        """
        if key is None:
            return PoolShare(ConnectionPool(config), lambda share: share.pool.close())
        with self._lock:
            shared = self._pools.get(key)
            if shared is None:
                shared = self._pools[key] = _Shared(ConnectionPool(config))
            self._pools.move_to_end(key)
            share = PoolShare(shared.pool, lambda share: self._leave(key, share))
            shared.shares.add(share)
            surplus = self._take_surplus_locked()
        for pool in surplus:
            pool.close()
        return share

    def _take_surplus_locked(self) -> list[ConnectionPool]:
        unused = [key for key, shared in self._pools.items() if not shared.shares]
        return [self._pools.pop(key).pool for key in unused[:-_MOST_UNUSED]]

    def _leave(self, key: Hashable, share: PoolShare) -> None:
        with self._lock:
            shared = self._pools.get(key)
            if shared is None or shared.pool is not share.pool:
                return  # of a parent, before a fork
            shared.shares.discard(share)
            last = not shared.shares
            if last:
                del self._pools[key]
        if last:
            share.pool.close()


shared_pools = SharedPools()
"""Those of this process."""
