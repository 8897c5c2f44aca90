"""The edge: the one listener in front of the control plane and all sandboxes.

A small HTTP/1.1 proxy that decides per request where it goes. One thread runs all
connections, so that an open stream costs no thread; an event loop of its own, private
to it, does the waiting. Only what may block, opening a connection to what lies behind,
is done on other threads, few and bounded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Coroutine
from concurrent import futures

import h11

from ppio_agent._util.closing import Closing
from ppio_agent._util.threads import start_thread

from .addressing import ControlPlane, SandboxPort, Target
from .connection import ClientConnection, Setting
from .dialer import Dialer
from .pump import Peer
from .upstreams import EdgeRefusal, Upstreams

__all__ = ["ControlPlane", "Edge", "EdgeRefusal", "SandboxPort", "Target", "Upstreams"]

_log = logging.getLogger(__name__)

_BACKLOG = 512
_ACCEPTS_AT_ONCE = 64
# Connections above the limit that are told so; further ones are closed unheard.
_REFUSALS_AT_ONCE = 64
# Seconds without accepting after it failed, as for want of descriptors.
_PAUSE = 0.1

# What the loop needs to stop is a few turns; this is for a machine that is busy.
_STOP_TIME = 2.0


class Edge(Closing):
    """The listener, its thread and its limits.

    Args:
        upstreams: What is behind it.
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        domain: Sandboxes have the host names `{port}-{id}[-{client}].{domain}`.
        max_connections: Most clients connected at once; more are answered 503.
        head_timeout: Seconds the head of a request may take.
        idle_timeout: Seconds a client may keep a connection without a request.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        domain: str = "sandbox.test",
        max_connections: int = 1000,
        head_timeout: float = 30.0,
        idle_timeout: float = 75.0,
    ) -> None:
        self._address = (host, port)
        self._max_connections = max_connections
        self._loop = asyncio.SelectorEventLoop()
        self._dialer = Dialer(upstreams, self._loop, max_waiting=max_connections)
        self._setting = Setting(
            upstreams=upstreams,
            dialer=self._dialer,
            domain=domain,
            head_timeout=head_timeout,
            idle_timeout=idle_timeout,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False
        self._pid = os.getpid()
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        # Guards the start and the close.
        self._lock = threading.Lock()

    def start(self) -> Edge:
        """Listen and serve.

        Raises:
            OSError: The address cannot be listened at.
            RuntimeError: It was started or closed before.
        """
        with self._lock:
            if self._closing or self._listener is not None:
                raise RuntimeError("an edge is started once")
            family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
            listener = socket.create_server(
                self._address, family=family, backlog=_BACKLOG
            )
            listener.settimeout(0)
            self._listener = listener
            self._address = listener.getsockname()[:2]
            self._loop.add_reader(listener, self._accept, listener)
            self._thread = start_thread("ppio-edge-1", self._loop.run_forever)
        return self

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._listener is None:
            raise RuntimeError("the edge has not been started")
        return self._address[1]

    @property
    def url(self) -> str:
        """Where it is reached, without a slash at the end."""
        host = f"[{self._address[0]}]" if ":" in self._address[0] else self._address[0]
        return f"http://{host}:{self.port}"

    def close(self, timeout: float = 5.0) -> None:
        """Stop listening, cut what is under way, and end every thread. Idempotent.

        Args:
            timeout: Most seconds to wait for connections that are just being opened.
        """
        with self._lock:
            if self._closing or self._pid != os.getpid():
                return
            self._closing = True
        if self._thread is not None:
            shut = asyncio.run_coroutine_threadsafe(self._shut(), self._loop)
            futures.wait([shut], _STOP_TIME)
        self._dialer.close(timeout)
        if self._thread is not None:
            # Only now, since the loop closes the sockets that were just being opened.
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_STOP_TIME)
            if self._thread.is_alive():
                _log.error("the edge's thread did not end")
                return
        self._loop.close()

    def __enter__(self) -> Edge:
        """Start."""
        return self.start()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                _log.warning("the edge cannot accept connections", exc_info=True)
                self._loop.remove_reader(listener)
                self._loop.call_later(_PAUSE, self._resume, listener)
                return
            self._take(sock, address[0])

    def _resume(self, listener: socket.socket) -> None:
        if not self._closing:
            self._loop.add_reader(listener, self._accept, listener)

    def _take(self, sock: socket.socket, address: str) -> None:
        peer = Peer(sock, h11.SERVER, self._loop)
        connection = ClientConnection(peer, address, self._setting)
        count = len(self._tasks)
        if count < self._max_connections:
            self._run(connection.serve(), peer)
        elif count < self._max_connections + _REFUSALS_AT_ONCE:
            message = "too many connections are open"
            refusal = EdgeRefusal.of(503, message, retry_after=1)
            self._run(connection.refuse(refusal), peer)
        else:
            peer.close()

    def _run(self, work: Coroutine[object, object, None], peer: Peer) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            # Here and not in the task: one cancelled before its start runs nothing.
            peer.close()

        task.add_done_callback(done)

    async def _shut(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        self._dialer.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
