"""Making connections: name, address, proxy, TLS, all before one deadline.

Every step can be aborted and none lasts beyond the deadline. The general clients give
each address its own timeout and the answer of a proxy none.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import weakref
from functools import cached_property
from typing import Any

from ppio_agent._util.clock import Deadline
from ppio_agent._util.net import is_loopback
from ppio_agent._util.threads import PoolSaturatedError, WorkerPool

from .calls import CallHandle
from .http1 import FramingError, encode_head, find_head, parse_head
from .messages import TransportConfig
from .route import Origin, Proxy, proxy_for

__all__ = ["Connection", "Connector", "ProxyRefusedError"]

_READ_BYTES = 64 * 1024


class ProxyRefusedError(OSError):
    """The proxy does not let us through."""


class Connection:
    """A connection to an origin; used by one call at a time.

    Attributes:
        origin: What it is kept for.
        proxy: The proxy that requests are addressed to, where there is no tunnel.
        served: How many exchanges it has served.
    """

    __slots__ = ("_io", "_socket", "origin", "proxy", "served")

    def __init__(
        self, origin: Origin, sock: socket.socket, io: Any, proxy: Proxy | None
    ) -> None:
        self.origin = origin
        self.proxy = proxy
        self.served = 0
        self._socket = sock
        # What bytes go through: the socket, or TLS within the TLS of a proxy.
        self._io: Any = io

    def attach_to(self, call: CallHandle) -> None:
        """Let `call` be able to end what this connection does."""
        call.attach(self._socket)

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send all of `data`.

        Raises:
            TimeoutError: The deadline passed.
        """
        view = memoryview(data)
        while view:
            self._io.settimeout(_seconds(deadline.left()))
            view = view[self._io.send(view) :]

    def receive(self, timeout: float | None) -> bytes:
        """Return what comes next; nothing at the end.

        Raises:
            TimeoutError: Nothing came.
        """
        self._io.settimeout(_seconds(timeout))
        data: bytes = self._io.recv(_READ_BYTES)
        return data

    def is_stale(self) -> bool:
        """Whether the peer has closed it, or sent what nobody asked for."""
        poller = select.poll()
        try:
            poller.register(self._socket, select.POLLIN)
        except (ValueError, OSError):
            return True
        return bool(poller.poll(0))

    def close(self) -> None:
        """Close it, without the farewell of TLS: a forked child must not send one."""
        with contextlib.suppress(OSError):
            self._io.close()
        with contextlib.suppress(OSError):
            self._socket.close()


def _seconds(timeout: float | None) -> float | None:
    if timeout is not None and timeout <= 0:
        raise TimeoutError("the deadline has passed")
    return timeout


class Connector:
    """Opens connections as the configuration says.

    Thread safety: thread-safe.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._proxies: dict[Origin, Proxy | None] = {}
        self._names = WorkerPool("ppio-transport-dns", max_threads=8, max_waiting=256)
        # Of a transport that nobody closed, no thread stays behind.
        weakref.finalize(self, self._names.abandon).atexit = False

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        # Looks at SSL_CERT_FILE and the system's certificates if no file is given.
        return ssl.create_default_context(cafile=self._config.ca_bundle)

    def open(self, origin: Origin, call: CallHandle, deadline: Deadline) -> Connection:
        """Return a new connection to `origin`.

        Raises:
            OSError: It could not be made; `TimeoutError` if the time ran out.
        """
        deadline = deadline.earlier(self._config.connect_timeout)
        proxy = self._proxy(origin)
        first = origin if proxy is None else proxy.origin
        sock = self._dial(first, call, deadline)
        try:
            if first.scheme == "https":
                sock = self._secure(sock, first.host, call, deadline)
            if proxy is None or origin.scheme == "http":
                return Connection(origin, sock, sock, proxy)
            _tunnel(Connection(origin, sock, sock, proxy), deadline)
            if first.scheme == "https":
                return Connection(
                    origin, sock, self._nest(sock, origin, deadline), None
                )
            sock = self._secure(sock, origin.host, call, deadline)
            return Connection(origin, sock, sock, None)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """End the threads that look up names."""
        self._names.close(timeout=0.0)

    def _proxy(self, origin: Origin) -> Proxy | None:
        try:
            return self._proxies[origin]
        except KeyError:
            found = proxy_for(origin, self._config.proxy)
            self._proxies[origin] = found
            return found

    def _dial(self, origin: Origin, call: CallHandle, deadline: Deadline) -> Any:
        addresses = self._look_up(origin, call, deadline)
        failure: OSError = OSError(f"{origin.host} has no address")
        for index, (family, kind, proto, _name, address) in enumerate(addresses):
            left = _seconds(deadline.left())
            sock = socket.socket(family, kind, proto)
            try:
                call.attach(sock)
                # One address that swallows everything must not use up the time.
                share = len(addresses) - index
                sock.settimeout(None if left is None else left / share)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.connect(address)
            except OSError as error:
                sock.close()
                call.check()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise failure

    def _look_up(self, origin: Origin, call: CallHandle, deadline: Deadline) -> Any:
        """Return the addresses of a host; on a thread, since nothing can stop that."""

        def look() -> Any:
            return socket.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)

        if is_loopback(origin.host) or ":" in origin.host:
            return look()
        found: list[Any] = []

        def run() -> None:
            try:
                found.append(look())
            except OSError as error:
                found.append(error)
            call.wake()

        try:
            self._names.submit(run)
        except PoolSaturatedError as error:
            raise OSError("too many names are being looked up") from error
        while not found:
            call.wait(_seconds(deadline.left()))
        if isinstance(found[0], OSError):
            raise found[0]
        return found[0]

    def _secure(
        self, sock: socket.socket, host: str, call: CallHandle, deadline: Deadline
    ) -> ssl.SSLSocket:
        sock.settimeout(_seconds(deadline.left()))
        secured = self._tls.wrap_socket(
            sock, server_hostname=host, do_handshake_on_connect=False
        )
        try:
            call.attach(secured)
            secured.do_handshake()
        except BaseException:
            secured.close()
            raise
        return secured

    def _nest(self, sock: ssl.SSLSocket, origin: Origin, deadline: Deadline) -> Any:
        from urllib3.util.ssltransport import SSLTransport

        sock.settimeout(_seconds(deadline.left()))
        return SSLTransport(sock, self._tls, server_hostname=origin.host)


def _tunnel(connection: Connection, deadline: Deadline) -> None:
    """Let the proxy at the other end connect us to the origin."""
    origin, proxy = connection.origin, connection.proxy
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    target = f"{host}:{origin.port}"
    headers = [("Host", target)]
    if proxy is not None and proxy.authorization is not None:
        headers.append(("Proxy-Authorization", proxy.authorization))
    connection.send(encode_head("CONNECT", target, headers), deadline)
    try:
        status = _read_status(connection, deadline)
    except FramingError as error:
        raise ProxyRefusedError(f"the proxy does not speak HTTP: {error}") from error
    if not 200 <= status < 300:
        raise ProxyRefusedError(f"the proxy answered {status}")


def _read_status(connection: Connection, deadline: Deadline) -> int:
    answer = bytearray()
    end = -1
    while end < 0:
        data = connection.receive(deadline.left())
        if not data:
            raise ProxyRefusedError("the proxy closed the connection")
        searched = len(answer)
        answer += data
        end = find_head(answer, searched)
    return parse_head(answer[:end]).status
