"""The edge: what listens in front of the control plane and all sandboxes.

A small HTTP/1.1 proxy that decides per request where it goes. One thread runs all
connections, so that an open stream costs no thread; an event loop of its own, private
to it, does the waiting. Only what may block, opening a connection to what lies behind,
is done on other threads, few and bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import threading
from concurrent import futures

import attrs
import h11

from ppio_agent._util.closing import Closing
from ppio_agent._util.net import authority_of, listening_error
from ppio_agent._util.threads import start_thread

from .addressing import ControlPlane, SandboxPort, Target
from .connection import ClientConnection, Setting, serve_secure
from .crowd import Crowd
from .dialer import Dialer
from .pump import Peer
from .secure import SecureSocket
from .upstreams import EdgeRefusal, Upstreams

__all__ = ["ControlPlane", "Edge", "EdgeRefusal", "SandboxPort", "Target", "Upstreams"]

_log = logging.getLogger(__name__)

_BACKLOG = 512
# So few that those who have just come do not take the whole reserve.
_ACCEPTS_AT_ONCE = 16
# Clients beyond those whom sandboxes serve; the control plane alone allows 64 streams.
_RESERVE = 128
# Seconds without accepting while there is no room, or after it failed, as for want of
# descriptors.
_PAUSE = 0.1

# What the loop needs to stop is a few turns; this is for a machine that is busy.
_STOP_TIME = 2.0


class Edge(Closing):
    """The listeners, plain and TLS, their thread and their limits.

    Args:
        upstreams: What is behind it.
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        domain: Sandboxes have the host names `{port}-{id}[-{client}].{domain}`.
        max_connections: Most requests to sandboxes under way at once; one more is
            answered 503. Some more clients may be connected, for the control plane:
            for others those without a request are closed, the longest idle first.
        head_timeout: Seconds the head of a request may take, with a small body for the
            control plane.
        idle_timeout: Seconds a client may keep a connection without a request.
        tls: The server's side of TLS; None has no TLS listener, and no CONNECT.
        tls_port: TCP port of the TLS listener; 0 takes a free one.
        handshake_timeout: Seconds a client may take to agree on TLS.

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
        tls: ssl.SSLContext | None = None,
        tls_port: int = 0,
        handshake_timeout: float = 10.0,
    ) -> None:
        self._host = host
        self._port = port
        self._tls_port = tls_port
        self._loop = asyncio.SelectorEventLoop()
        self._crowd = Crowd(max_connections, self._loop, reserve=_RESERVE)
        self._dialer = Dialer(upstreams, self._loop, max_waiting=max_connections)
        self._setting = Setting(
            upstreams=upstreams,
            dialer=self._dialer,
            crowd=self._crowd,
            domain=domain,
            head_timeout=head_timeout,
            idle_timeout=idle_timeout,
            handshake_timeout=handshake_timeout,
            tls=tls,
            tls_authority=None,
        )
        if tls is not None:
            tls.sslsocket_class = SecureSocket
        self._closing = False
        self._pid = os.getpid()
        self._listeners: list[socket.socket] = []
        self._ports: list[int] = []
        self._thread: threading.Thread | None = None
        # Guards the start and the close.
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Take the addresses; who connects waits until `start`.

        Raises:
            OSError: The address cannot be listened at.
            RuntimeError: It was started or closed before.
        """
        with self._lock:
            if self._closing or self._listeners:
                raise RuntimeError("an edge is started once")
            secure = self._setting.tls is not None
            self._listeners = _listen(
                self._host, [self._port, *([self._tls_port] if secure else [])]
            )
            self._ports = [it.getsockname()[1] for it in self._listeners]
            if secure:
                place = authority_of(self._host, self.tls_port)
                self._setting = attrs.evolve(self._setting, tls_authority=place)

    def start(self) -> Edge:
        """Serve; listen first, unless that was done.

        Raises:
            OSError: The address cannot be listened at.
            RuntimeError: It was started or closed before.
        """
        if not self._listeners:
            self.listen()
        with self._lock:
            if self._closing or self._thread is not None:
                raise RuntimeError("an edge is started once")
            for listener in self._listeners:
                self._loop.add_reader(listener, self._accept, listener)
            self._thread = start_thread("ppio-edge-1", self._loop.run_forever)
        return self

    @property
    def port(self) -> int:
        """The port of the plain listener."""
        return self._port_of(0)

    @property
    def tls_port(self) -> int:
        """The port of the TLS listener."""
        return self._port_of(1)

    @property
    def tls_authority(self) -> str | None:
        """Where this machine reaches the TLS listener; None: there is none."""
        return self._setting.tls_authority

    @property
    def url(self) -> str:
        """Where this machine reaches the plain listener, without a slash at the end."""
        return f"http://{authority_of(self._host, self.port)}"

    def _port_of(self, which: int) -> int:
        if len(self._ports) <= which:
            raise RuntimeError("the edge has not been started, or has no TLS")
        return self._ports[which]

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
        else:
            for listener in self._listeners:
                listener.close()
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
            if not self._crowd.has_room:
                self._pause(listener)
                return
            try:
                sock, address = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                _log.warning("the edge cannot accept connections", exc_info=True)
                self._pause(listener)
                return
            self._take(sock, address[0], plain=listener is self._listeners[0])

    def _pause(self, listener: socket.socket) -> None:
        """Let those who connect wait in the system's queue for a moment."""
        self._loop.remove_reader(listener)
        self._loop.call_later(_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if not self._closing:
            self._loop.add_reader(listener, self._accept, listener)

    def _take(self, sock: socket.socket, address: str, *, plain: bool) -> None:
        tls = self._setting.tls
        if tls is not None and not plain:
            work = serve_secure(sock, address, self._setting, tls=tls)
            self._crowd.add(self._loop.create_task(work), sock.close)
            return
        peer = Peer(sock, h11.SERVER, self._loop)
        work = ClientConnection(peer, address, self._setting).serve()
        self._crowd.add(self._loop.create_task(work), peer.close)

    async def _shut(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._dialer.stop()
        await self._crowd.dismiss()


def _listen(host: str, ports: list[int]) -> list[socket.socket]:
    """Return a listener for each port; all of them or none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listeners = []
        for port in ports:
            try:
                listener = socket.create_server(
                    (host, port), family=family, backlog=_BACKLOG
                )
            except OSError as error:
                raise listening_error(error, host, port) from error
            stack.callback(listener.close)
            listener.settimeout(0)
            listeners.append(listener)
        stack.pop_all()
    return listeners
