"""A server of raw sockets that does to its clients what networks do to them.

A script says what happens to each request; `FaultServer` runs it, one thread a
connection, and remembers what was asked. Nothing of HTTP is left to a library, which
would never send what a broken peer sends.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from attrs import define, field, frozen

from ppio_agent._util.closing import Closing
from ppio_agent._util.threads import WorkerPool, start_thread
from ppio_agent.wire.json import decode_json

__all__ = ["FaultServer", "Peer", "Received", "Script"]

_KEPT_REQUESTS = 10_000
_MAX_HEAD = 1_048_576


@frozen
class Received:
    """A request as it came.

    Attributes:
        method: Its method.
        target: Path and query, or what CONNECT names.
        headers: Lower-case names.
        body: All of it.
        connection: Number of the connection it came on, from 1.
    """

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    def json(self) -> Any:
        """Return the body's JSON value."""
        return decode_json(self.body)


@define(eq=False)
class Peer:
    """The server's end of one connection: what a script acts with.

    Attributes:
        sock: The socket.
        number: Number of the connection, from 1.
        stop: Set when the server closes; wait on it instead of sleeping.
        open: Whether the next request is read when the script is done.
    """

    sock: socket.socket
    number: int
    stop: threading.Event
    open: bool = True
    _rest: bytes = field(default=b"", init=False, repr=False)
    _reset: bool = field(default=False, init=False, repr=False)

    def read_request(self) -> Received | None:
        """Return the next request, or None once the client has closed.

        Raises:
            ValueError: What came is no HTTP/1.1 request.
        """
        while b"\r\n\r\n" not in self._rest:
            # A TLS hello on a plain port ends the connection, as what is no HTTP does.
            if not self._more() or self._rest.startswith(b"\x16"):
                return None
            if len(self._rest) > _MAX_HEAD:
                raise ValueError("the request's head has no end")
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            if not self._more():
                return None
        body, self._rest = self._rest[:length], self._rest[length:]
        return Received(method, target, headers, body, self.number)

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except OSError:
            return False
        self._rest += data
        return bool(data)

    def send(self, data: bytes) -> None:
        """Send; a client that has gone is no error here."""
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def close(self, *, reset: bool = False) -> None:
        """End the connection, politely or with a reset."""
        # Once a reset, always one: its own thread wakes from reading and closes, too.
        self._reset = reset = reset or self._reset
        self.open = False
        with contextlib.suppress(OSError):
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            # Wakes a thread that reads. Of the plain socket, since the one of TLS
            # would first say good-bye; and of a reset the client learns by close().
            how = socket.SHUT_RD if reset else socket.SHUT_RDWR
            socket.socket.shutdown(self.sock, how)
        self.sock.close()

    def wait_closed(self) -> None:
        """Block until the client closes or the server is stopped."""
        while not self.stop.is_set() and self._more():
            self._rest = b""
        self.open = False


Script = Callable[[Peer, Received], object]
"""What happens to a request; it may keep the connection open, close it, or block."""


class FaultServer(Closing):
    """Serves each request of each connection on 127.0.0.1 by a script.

    Args:
        script: What to do with a request. It may be replaced at any time.
        tls: Serve TLS with this context.
        max_connections: Most connections at once; further ones are reset.

    Attributes:
        script: The script in use.
        url: Where it listens, on a port of its own.
        port: That port.
        requests: What was asked so far, the first 10,000 of it.
        connections: How many connections were made so far.
        stop: Set when the server closes.

    Thread safety: thread-safe; scripts run on the thread of their connection.

    Example:
        >>> from ppio_agent.testing import cut, in_turn, reply
        >>> with FaultServer(in_turn(cut(), reply(200, b"{}"))) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        script: Script,
        *,
        tls: ssl.SSLContext | None = None,
        max_connections: int = 256,
    ) -> None:
        self.script = script
        self.requests: list[Received] = []
        self.connections = 0
        self.stop = threading.Event()
        self._tls = tls
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards _peers, and requests as it grows
        self._peers: set[Peer] = set()
        self._pool = WorkerPool("ppio-faults", max_threads=max_connections)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        self.url = f"{scheme}://{host}:{self.port}"
        self._acceptor = start_thread("ppio-faults-accept", self._accept)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            peer = Peer(sock, self.connections + 1, self.stop)
            with self._lock:
                self._peers.add(peer)
            self.connections += 1
            try:
                self._pool.submit(partial(self._serve, peer))
            except RuntimeError:
                self._end(peer, reset=True)  # too many at once, or closing

    def _serve(self, peer: Peer) -> None:
        try:
            if self._agree_on_tls(peer):
                self._converse(peer)
        finally:
            self._end(peer)

    def _agree_on_tls(self, peer: Peer) -> bool:
        if self._tls is None:
            return True
        try:
            # In two steps, so that `peer` holds the socket that close() is to wake.
            peer.sock = self._tls.wrap_socket(
                peer.sock, server_side=True, do_handshake_on_connect=False
            )
            if peer.open:
                peer.sock.do_handshake()
        except OSError:
            return False
        return peer.open

    def _converse(self, peer: Peer) -> None:
        while peer.open:
            try:
                received = peer.read_request()
            except ValueError:
                peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                return
            if received is None:
                return
            with self._lock:
                if len(self.requests) < _KEPT_REQUESTS:
                    self.requests.append(received)
            self.script(peer, received)

    def _end(self, peer: Peer, *, reset: bool = False) -> None:
        peer.close(reset=reset)
        with self._lock:
            self._peers.discard(peer)

    def drop_connections(self, *, reset: bool = False) -> None:
        """End every connection that is open now, idle ones included.

        Args:
            reset: By a reset and not politely.
        """
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            peer.close(reset=reset)

    def close(self) -> None:
        """End every connection and wait for the threads; idempotent.

        Does nothing in a forked child, whose parent goes on serving.
        """
        if self._pid != os.getpid():
            return
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join(5.0)
        self.drop_connections()
        self._pool.close(5.0)
