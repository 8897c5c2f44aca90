"""A server of raw sockets that does to its clients what the network does to them.

A script says what happens to each request; `FaultServer` runs it, one thread a
connection, and remembers what was asked.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from attrs import define, field, frozen

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "FaultServer",
    "Peer",
    "Received",
    "Script",
    "certificate",
    "chunks",
    "cut",
    "deaf_address",
    "drip",
    "in_turn",
    "reply",
    "reset",
    "silence",
    "tunnel",
]


@frozen
class Received:
    """A request as it came; header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: int

    def json(self) -> object:
        """Return the body's value."""
        return json.loads(self.body)


@define(eq=False)
class Peer:
    """The server's end of one connection."""

    sock: socket.socket
    number: int
    stop: threading.Event
    open: bool = True
    _rest: bytes = field(default=b"", init=False)

    def read_request(self) -> Received | None:
        """Return the next request, or None once the client has closed."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more() or self._rest.startswith(b"\x16"):
                return None  # the client has closed, or speaks TLS to a plain port
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(": ", 1) for line in lines)
        headers = {name.lower(): value for name, value in pairs}
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
        self.open = False
        with contextlib.suppress(OSError):
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        self.sock.close()

    def wait_closed(self) -> None:
        """Block until the client closes or the server is stopped."""
        while not self.stop.is_set() and self._more():
            pass
        self.open = False


Script = Callable[[Peer, Received], None]


class FaultServer:
    """Serves each request of each connection by a script.

    Args:
        script: What to do; it may keep the connection open, close it, or block.
        tls: Serve TLS with this context.
    """

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.requests: list[Received] = []
        self.connections = 0
        self.stop = threading.Event()
        self._tls = tls
        self._peers: list[Peer] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        scheme, host = ("https", "localhost") if tls else ("http", "127.0.0.1")
        self.url = f"{scheme}://{host}:{self.port}"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            peer = Peer(sock, self.connections, self.stop)
            self._peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer: Peer) -> None:
        if self._tls is not None:
            try:
                peer.sock = self._tls.wrap_socket(peer.sock, server_side=True)
            except OSError:
                peer.close()
                return
        while peer.open:
            received = peer.read_request()
            if received is None:
                break
            self.requests.append(received)
            self.script(peer, received)
        peer.close()

    def close(self) -> None:
        """End every connection and wait for the threads."""
        self.stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            peer.close()
        for thread in self._threads:
            thread.join(5.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def reply(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    zipped: bool = False,
) -> Script:
    """Return a script that answers at once and keeps the connection."""
    extra = dict(headers or {})
    if zipped:
        body = gzip.compress(body)
        extra["Content-Encoding"] = "gzip"
    extra["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
    data = f"HTTP/1.1 {status} Told\r\n{lines}\r\n".encode() + body
    return lambda peer, _request: peer.send(data)


def in_turn(*scripts: Script) -> Script:
    """Return a script that uses these one after another, and then the last."""
    left: Iterator[Script] = iter(scripts)
    lock = threading.Lock()

    def script(peer: Peer, request: Received) -> None:
        with lock:
            chosen = next(left, scripts[-1])
        chosen(peer, request)

    return script


def silence(peer: Peer, _request: Received) -> None:
    """Never answer."""
    peer.wait_closed()


def cut(data: bytes = b"") -> Script:
    """Return a script that sends `data` and closes."""

    def script(peer: Peer, _request: Received) -> None:
        peer.send(data)
        peer.close()

    return script


def reset(data: bytes = b"") -> Script:
    """Return a script that sends `data` and resets the connection."""

    def script(peer: Peer, _request: Received) -> None:
        peer.send(data)
        peer.close(reset=True)

    return script


def drip(data: bytes, *, every: float) -> Script:
    """Return a script that sends one byte after another."""

    def script(peer: Peer, _request: Received) -> None:
        for byte in data:
            if peer.stop.wait(every):
                return
            peer.send(bytes([byte]))

    return script


def chunks(
    *pieces: bytes,
    chunked: bool = True,
    then: Callable[[Peer], None] | None = None,
    headers: str = "",
) -> Script:
    """Return a script that streams: in chunks, or until the connection is closed.

    Args:
        pieces: Sent one by one.
        chunked: Whether in chunks.
        then: What to do instead of ending the body.
        headers: Further header lines, each with its line break.
    """

    def script(peer: Peer, _request: Received) -> None:
        coding = (
            "Transfer-Encoding: chunked\r\n" if chunked else "Connection: close\r\n"
        )
        peer.send(
            f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}{headers}\r\n".encode()
        )
        for piece in pieces:
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if then is not None:
            then(peer)
        elif chunked:
            peer.send(b"0\r\n\r\n")
        else:
            peer.close()

    return script


def tunnel(peer: Peer, request: Received) -> None:
    """Be a proxy: connect where CONNECT says and pass bytes both ways."""
    host, _, port = request.target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5.0) as upstream:
        peer.send(b"HTTP/1.1 200 Connected\r\n\r\n")
        back = threading.Thread(target=_pass, args=(upstream, peer.sock), daemon=True)
        back.start()
        _pass(peer.sock, upstream)
        back.join(5.0)
    peer.close()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def deaf_address() -> Iterator[tuple[str, int]]:
    """Give an address whose host neither takes a connection nor refuses it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # Linux drops what comes once the line of those that wait is full.
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield address


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path] | None:
    """Make a throw-away certificate for the name localhost, not for its address.

    Returns:
        A server's context and the certificate's file; None without `openssl`.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = [
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-keyout", key, "-out", cert, "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context, cert
