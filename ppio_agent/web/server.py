"""The server: waitress with lanes, on a loop thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from waitress import create_server, wasyncore
from waitress.server import BaseWSGIServer

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent._util.net import listening_error
from ppio_agent._util.threads import WorkerPool

from .channel import Channel
from .config import ServerConfig
from .kit import RequestKit
from .lanes import LaneDispatcher, Lanes
from .loop import new_loop

__all__ = ["Server"]

_log = logging.getLogger(__name__)

# How often a drain looks whether requests and output are through, in seconds.
_DRAIN_LOOK = 0.02
_FLUSH_TIMEOUT = 2.0
# What the system holds for a reader, in bytes: by itself it would take 4 MiB, and a
# producer would be so much ahead of a reader that takes nothing.
_SEND_BUFFER = 1 << 18
# Nothing that the loop does takes longer; if it hangs, we go on without it.
_CALL_TIMEOUT = 5.0


class Server(Closing):
    """Serves one WSGI application on a TCP address or a Unix socket.

    Args:
        wsgi_app: The application; wrapped in a `RequestKit` unless it is one.
        host: Address or name to listen on; of a name, all its addresses.
        port: 0 takes a free one, see `port`.
        unix_socket: Path of a Unix socket to listen on instead; removed on close.
        config: Limits.
        lanes: Which requests must never wait, and which are refused.
        on_drain: Called once when a drain or a close begins, before anything is closed.
        on_broken: Called when it is broken.

    Attributes:
        broken: Whether the loop has failed, so that nobody is served any more; why is
            in the log.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        wsgi_app: Callable[..., Iterable[bytes]],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix_socket: str | None = None,
        config: ServerConfig | None = None,
        lanes: Lanes | None = None,
        on_drain: Callable[[], object] | None = None,
        on_broken: Callable[[], object] | None = None,
    ) -> None:
        self._app = (
            wsgi_app if isinstance(wsgi_app, RequestKit) else RequestKit(wsgi_app)
        )
        self._host = host
        self._port = port
        self._unix_socket = unix_socket
        self._config = config or ServerConfig()
        self._on_drain = on_drain
        self._on_broken = on_broken
        limit = self._config.connection_limit()
        self._dispatcher = LaneDispatcher(
            lanes or Lanes(),
            slots=self._config.max_concurrency,
            max_queue=self._config.max_queue,
            max_connections=limit,
        )
        # Guards the life cycle: start, stop_listening, drain and close take turns.
        self._lock = threading.RLock()
        self._listeners: list[Any] = []
        # A request that holds up the loop keeps its thread, and another goes on.
        self._threads = WorkerPool("ppio-web-loop", max_threads=limit + 1)
        self._loop = new_loop(
            self._dispatcher.grow,
            self._dispatcher.inline,
            lambda: self._threads.submit(self._run),
        )
        self.broken = False
        self._running = False
        self._loop_over = threading.Event()
        self._stopping = False
        self._closed = threading.Event()

    def start(self) -> Server:
        """Listen, and serve on a thread of its own.

        Raises:
            OSError: The address is taken or cannot be listened on.
            RuntimeError: It was started before.
        """
        with self._lock:
            if self._running or self._stopping:
                raise RuntimeError("the server was started before")
            try:
                self._listen()
            except OSError:
                self._stopping = True
                self._loop.close()
                raise
            self._dispatcher.start()
            self._running = True
            self._threads.submit(self._run)
        return self

    def serve_forever(self) -> None:
        """Serve until `close` is called, or it is broken, starting first if need be."""
        if not self._running:
            self.start()
        self._closed.wait()

    @property
    def port(self) -> int:
        """The real port once started; 0 for a Unix socket."""
        return 0 if self._unix_socket else self._port

    @property
    def url(self) -> str:
        """Where a client of this machine reaches it."""
        if self._unix_socket:
            return f"unix:{self._unix_socket}"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(
            self._host, self._host
        )
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    def stats(self) -> dict[str, Any]:
        """Return the numbers of connections, threads and requests.

        `{"connections": int, "refused": {code: int}, "lanes": {name: {"threads",
        "busy", "waiting"}}}`
        """
        return {"connections": len(self._channels()), **self._dispatcher.stats()}

    def stop_listening(self) -> None:
        """Close the listening sockets, and refuse invocations. Idempotent.

        Open connections go on, but each ends with its next answer.

        Blocking: until the loop thread has closed the sockets.
        """
        first = not self._dispatcher.draining
        self._dispatcher.draining = True
        if first and self._on_drain is not None:
            self._on_drain()
        with self._lock:
            listeners, self._listeners = self._listeners, []
            if not listeners:
                return
            self._call_and_wait(partial(_stop_accepting, listeners))
            if self._unix_socket:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._unix_socket)

    def drain(self, timeout: float | None = 30.0) -> bool:
        """Stop listening, refuse new invocations, and wait for what runs.

        Args:
            timeout: Seconds to wait for running requests; None means no limit. If
                they end in it, their output has up to 2 s more to leave.

        Returns:
            Whether all requests have ended and all output has left.
        """
        self.stop_listening()
        served = self._wait_until(lambda: self._dispatcher.unfinished == 0, timeout)
        return served and self.flush()

    def flush(self) -> bool:
        """Wait, 2 s at most, until all output has left; return whether it has."""
        return self._wait_until(
            lambda: not any(c.total_outbufs_len for c in self._channels()),
            _FLUSH_TIMEOUT,
        )

    def close(self, timeout: float = 5.0) -> bool:
        """Close everything at once and join the threads. Idempotent.

        Args:
            timeout: Seconds to wait for threads that are inside the application.

        Returns:
            Whether all threads have ended.
        """
        deadline = Deadline.after(timeout)
        self.stop_listening()
        with self._lock:
            self._stopping = True
        if self._running:
            self._loop.stop()
            self._loop_over.wait(deadline.left())
        ended = self._dispatcher.shutdown(timeout=deadline.left() or 0.0)
        joined = self._threads.close(deadline.left() or 0.0)
        self._closed.set()
        return ended and joined

    def __enter__(self) -> Server:
        return self if self._running else self.start()

    def _listen(self) -> None:
        settings = self._config.waitress_settings()
        if self._unix_socket:
            settings["unix_socket"] = self._unix_socket
        else:
            settings["sockets"] = _bind(self._host, self._port)
        create_server(
            self._app, map=self._loop.sockets, _dispatcher=self._dispatcher, **settings
        )
        if not self._unix_socket:
            # Only now: whoever reads the port may connect to it.
            self._port = settings["sockets"][0].getsockname()[1]
        self._listeners = [
            one
            for one in self._loop.sockets.values()
            if isinstance(one, BaseWSGIServer)
        ]
        for listener in self._listeners:
            listener.channel_class = Channel
            listener.ppio_config = self._config
            listener.adj.ppio_max_request_size = self._config.max_request_size
        self._loop.attach(tuple(self._listeners))

    def _run(self) -> None:
        try:
            if not self._loop.run():
                return
        except Exception:  # noqa: BLE001 - outermost frame of the loop thread
            _log.exception("the server's loop failed")
            self.broken = True
        try:
            self._loop.close()
        finally:
            self._loop_over.set()
            if self.broken:
                self._closed.set()
                if self._on_broken is not None:
                    self._on_broken()

    def _channels(self) -> list[Any]:
        return [
            one for one in list(self._loop.sockets.values()) if isinstance(one, Channel)
        ]

    def _call_and_wait(self, function: Callable[[], object]) -> None:
        """Run `function` on the loop thread, or here if that has ended."""
        done = threading.Event()
        if self._running and not self._loop_over.is_set():
            self._loop.call(function)
            self._loop.call(done.set)
            deadline = Deadline.after(_CALL_TIMEOUT)
            while not (self._loop_over.is_set() or deadline.expired):
                if done.wait(_DRAIN_LOOK):
                    return
        function()

    def _wait_until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        deadline = Deadline.after(timeout)
        while not ready():
            if deadline.expired or self._closed.wait(deadline.bound(_DRAIN_LOOK)):
                return ready()
        return True


def _stop_accepting(listeners: Iterable[Any]) -> None:
    for listener in listeners:
        listener.accepting = False
        # Not its own `close`, which closes the pipe that wakes the loop as well.
        wasyncore.dispatcher.close(listener)


def _bind(host: str, port: int) -> list[socket.socket]:
    """Return bound sockets for all addresses of `host`, on one port."""
    found = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    bound: list[socket.socket] = []
    try:
        for family, kind, proto, _, address in dict.fromkeys(found):
            one = socket.socket(family, kind, proto)
            bound.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Each connection has it from its listener.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address[0], port, *address[2:]))
            port = one.getsockname()[1]
    except OSError as error:
        for one in bound:
            one.close()
        raise listening_error(error, host, port) from error
    return bound
