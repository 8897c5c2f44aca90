"""The edge's connections to what lies behind it: dialled, lent, kept for a moment."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import weakref
from collections.abc import Callable

import h11

from ppio_agent._util.clock import Deadline
from ppio_agent._util.threads import (
    NoThreadError,
    PoolClosedError,
    PoolSaturatedError,
    WorkerPool,
)

from .addressing import SandboxPort, Target
from .pump import Peer
from .upstreams import EdgeRefusal, Upstreams

__all__ = ["Dialer"]

_log = logging.getLogger(__name__)

_DIALS = 3
# So that one sandbox that is slow to answer does not take them all.
_DIALS_PER_TARGET = 2
_HELD = 100

# Shorter than the shortest time that servers in the field keep an idle connection, so
# that a request is hardly ever sent into one that the server is just closing.
_KEEP_SECONDS = 1.0
_SETTLED = 0.1
_KEEP_PER_TARGET = 32
_KEEP_MOST = 128

# `Upstreams.connect`, its target given.
_Connect = Callable[..., "socket.socket | None"]


class Dialer:
    """Opens connections on threads that may block, and keeps idle ones.

    A few threads dial; a request whose target is not there yet moves to threads of
    its own, so that waiting for one sandbox never delays another. Nor does dialling
    one, unless several are slow, and never the control plane, which has its own thread.

    Args:
        upstreams: What is behind the edge.
        loop: The edge's loop. All methods but `close` run on its thread.
        max_waiting: Most requests that wait for one of the dialling threads.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        loop: asyncio.AbstractEventLoop,
        *,
        max_waiting: int,
    ) -> None:
        self._upstreams = upstreams
        self._loop = loop
        self._closing = False
        self._dials = WorkerPool(
            "ppio-edge-dial", max_threads=_DIALS, max_waiting=max_waiting
        )
        self._control = WorkerPool(
            "ppio-edge-control", max_threads=1, max_waiting=max_waiting
        )
        self._holds = WorkerPool("ppio-edge-hold", max_threads=_HELD)
        self._turns: weakref.WeakValueDictionary[Target, asyncio.Semaphore] = (
            weakref.WeakValueDictionary()
        )
        self._kept: dict[Target, dict[Peer, asyncio.TimerHandle]] = {}
        # Connections that were once left open for as long as _SETTLED.
        self._proven: weakref.WeakSet[Peer] = weakref.WeakSet()

    async def dial(self, target: Target, *, wakes: bool) -> Peer:
        """Return a new connection, waiting until the target is there.

        Args:
            target: Where to.
            wakes: Whether a target that sleeps may be woken.

        Raises:
            EdgeRefusal: There is none, or too many requests wait.
        """
        connect = functools.partial(self._upstreams.connect, target, wakes=wakes)
        pool = self._dials if isinstance(target, SandboxPort) else self._control
        new = asyncio.Semaphore(_DIALS_PER_TARGET)
        async with self._turns.setdefault(target, new):
            sock = await self._connect(pool, connect, may_wait=False)
        if sock is None:
            sock = await self._connect(self._holds, connect, may_wait=True)
        if sock is None:
            raise EdgeRefusal.stopping()
        return Peer(sock, h11.CLIENT, self._loop)

    def kept(self, target: Target, *, repeatable: bool) -> Peer | None:
        """Return an idle connection to the target, or None.

        Args:
            target: Where to.
            repeatable: Whether the request may be sent again if the connection turns
                out to be closed. One that may not is given only connections whose
                server has shown that it does not close after each answer, unsaid.
        """
        now = self._loop.time()
        for peer, timer in reversed(list(self._kept.get(target, {}).items())):
            if now + _KEEP_SECONDS - timer.when() >= _SETTLED:
                self._proven.add(peer)
            if not repeatable and peer not in self._proven:
                continue
            self._release(target, peer)
            if peer.reusable():
                return peer
            peer.close()
        return None

    def give_back(self, target: Target, peer: Peer) -> None:
        """Keep a connection that another request may use, close any other."""
        if not self._worth_keeping(target, peer):
            peer.close()
            return
        peer.http.start_next_cycle()
        timer = self._loop.call_later(_KEEP_SECONDS, self._drop, target, peer)
        peer.on_end = functools.partial(self._drop, target, peer)
        self._kept.setdefault(target, {})[peer] = timer

    def stop(self) -> None:
        """Close every idle connection and keep no more; tell all who wait to end."""
        self._closing = True
        for target, peers in list(self._kept.items()):
            for peer in list(peers):
                self._drop(target, peer)

    def close(self, timeout: float) -> None:
        """Wait for the threads that dial, as long as `timeout`. From any thread."""
        self._closing = True
        deadline = Deadline.after(timeout)
        self._dials.close(deadline.left())
        self._control.close(deadline.left())
        self._holds.close(deadline.left())

    def _worth_keeping(self, target: Target, peer: Peer) -> bool:
        room = (
            len(self._kept.get(target, ())) < _KEEP_PER_TARGET
            and sum(map(len, self._kept.values())) < _KEEP_MOST
        )
        return room and peer.finished and not self._closing and peer.reusable()

    def _release(self, target: Target, peer: Peer) -> None:
        peers = self._kept[target]
        peers.pop(peer).cancel()
        if not peers:
            del self._kept[target]
        peer.on_end = None

    def _drop(self, target: Target, peer: Peer) -> None:
        self._release(target, peer)
        peer.close()

    async def _connect(
        self, pool: WorkerPool, connect: _Connect, *, may_wait: bool
    ) -> socket.socket | None:
        attempt = _Attempt(self._loop)

        def still_wanted() -> bool:
            return attempt.awaited and not self._closing

        def job() -> None:
            wanted = still_wanted if may_wait else None
            if attempt.awaited:
                attempt.report(*_try(lambda: connect(still_wanted=wanted)))

        try:
            pool.submit(job)
        except PoolSaturatedError as exc:
            message = "too many requests wait for a sandbox"
            raise EdgeRefusal.of(503, message, retry_after=1) from exc
        except NoThreadError as exc:
            message = "no thread can be started"
            raise EdgeRefusal.of(503, message, retry_after=1) from exc
        except PoolClosedError as exc:
            raise EdgeRefusal.stopping() from exc
        return await attempt.outcome()


class _Attempt:
    """One connection being opened: awaited on the loop, made on another thread.

    Whichever way the two cross, a socket that nobody waits for any more is closed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: asyncio.Future[socket.socket | None] = loop.create_future()

    @property
    def awaited(self) -> bool:
        """Whether somebody still waits; from any thread."""
        return not self._done.done()

    def report(self, sock: socket.socket | None, refusal: EdgeRefusal | None) -> None:
        """Say how it ended; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._settle, sock, refusal)
        except RuntimeError:  # the loop is closed
            _close(sock)

    async def outcome(self) -> socket.socket | None:
        try:
            return await self._done
        except asyncio.CancelledError:
            # It may have been settled in the same turn of the loop.
            done = self._done
            if done.done() and not done.cancelled() and done.exception() is None:
                _close(done.result())
            raise

    def _settle(self, sock: socket.socket | None, refusal: EdgeRefusal | None) -> None:
        if self._done.done():
            _close(sock)
        elif refusal is not None:
            self._done.set_exception(refusal)
        else:
            self._done.set_result(sock)


def _try(
    connect: Callable[[], socket.socket | None],
) -> tuple[socket.socket | None, EdgeRefusal | None]:
    try:
        return connect(), None
    except EdgeRefusal as refusal:
        return None, refusal
    except Exception:  # noqa: BLE001 - outermost frame of the request's thread
        _log.exception("a connection behind the edge failed")
        return None, EdgeRefusal.of(502, "the sandbox could not be reached")


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
