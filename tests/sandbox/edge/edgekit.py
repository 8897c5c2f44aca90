"""Scripted upstreams and raw clients for the tests of the edge."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from ppio_agent.sandbox.edge.addressing import ControlPlane, SandboxPort, Target
from ppio_agent.sandbox.edge.server import Edge, EdgeRefusal
from ppio_agent.sandbox.edge.upstreams import Admission
from tests.support import SLOW

ID = "a" * 20
OTHER_ID = "b" * 20
SHORT = "5" * 32
AGENT = SandboxPort(ID, 8080)

Script = Callable[[socket.socket], object]


def host(port: int = 8080, sandbox_id: str = ID) -> bytes:
    """Return the Host line of a sandbox's port."""
    return f"Host: {port}-{sandbox_id}.sandbox.test\r\n".encode()


def get(path: str = "/", *, to: bytes | None = None, more: bytes = b"") -> bytes:
    """Return a GET request; to the agent unless told otherwise."""
    line = host() if to is None else to
    return f"GET {path} HTTP/1.1\r\n".encode() + line + more + b"\r\n"


def answer(body: bytes = b"ok", more: bytes = b"") -> bytes:
    """Return a plain 200."""
    length = f"Content-Length: {len(body)}\r\n".encode()
    return b"HTTP/1.1 200 OK\r\n" + length + more + b"\r\n" + body


class Upstream:
    """A listener that runs `script(connection)` on a thread for each connection."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.address = self._listener.getsockname()

    def connect(self) -> socket.socket:
        """Return the near end of a new connection whose far end runs the script."""
        near = socket.create_connection(self.address)
        far, _ = self._listener.accept()
        self.connections.append(far)
        thread = threading.Thread(target=self._run, args=(far,), daemon=True)
        self._threads.append(thread)
        thread.start()
        return near

    def _run(self, far: socket.socket) -> None:
        with suppress(OSError):
            self.script(far)
        far.close()

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for far in self.connections:
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)


class Scripted:
    """`Upstreams` whose targets are scripts; what a test wants otherwise, it sets."""

    def __init__(self) -> None:
        self.servers: dict[Target, Upstream] = {}
        self.refusals: dict[Target, EdgeRefusal] = {}
        self.not_yet: set[Target] = set()
        self.slow: set[Target] = set()
        self.secrets: set[str] = set()
        self.tokens: dict[str, str] = {}
        self.reuse = True
        self.wakes = False
        self.woken = 0
        self.headers: list[Callable[[str], str | None]] = []
        self.asked: list[str] = []
        self.under_way: Counter[Target] = Counter()
        self.dials: list[Target] = []
        self.ready = threading.Event()
        self.given_up = threading.Event()
        # Guards the dials, which the edge makes on several threads.
        self._lock = threading.Lock()

    def serve(self, target: Target, script: Script) -> Upstream:
        """Run `script` behind a target."""
        server = self.servers[target] = Upstream(script)
        return server

    @contextmanager
    def admit(
        self, target: Target, header: Callable[[str], str | None], asked: str
    ) -> Iterator[Admission]:
        """Refuse what the test refuses; count the others while they are under way."""
        if target in self.refusals:
            raise self.refusals[target]
        self.headers.append(header)
        self.asked.append(asked)
        self.under_way[target] += 1
        try:
            yield Admission(reuse=self.reuse, wakes=self.wakes)
        finally:
            self.under_way[target] -= 1

    def connect(
        self,
        target: Target,
        *,
        wakes: bool,
        still_wanted: Callable[[], bool] | None,
    ) -> socket.socket | None:
        """Dial; what is not yet there is waited for."""
        with self._lock:
            self.dials.append(target)
            self.woken += wakes
        if target in self.slow:
            self.ready.wait(60 * SLOW)
        if target in self.not_yet:
            if still_wanted is None:
                return None
            while not self.ready.wait(0.02):
                if not still_wanted():
                    self.given_up.set()
                    return None
        if target not in self.servers:
            raise EdgeRefusal(502, {"sandboxId": ID, "message": "none", "code": 502})
        with self._lock:
            return self.servers[target].connect()

    def strip(self, name: str, value: str) -> bool:
        """Drop the test's secrets."""
        return value in self.secrets

    def is_short_key(self, text: str) -> bool:
        """Know one."""
        return text == SHORT

    def sandbox_of(self, access_token: str) -> str | None:
        """Look a token up."""
        return self.tokens.get(access_token)

    def close(self) -> None:
        """Close every server."""
        for server in self.servers.values():
            server.close()


class Client:
    """A raw client of an edge, or of a port: bytes out, messages in."""

    def __init__(self, edge: Edge | int) -> None:
        port = edge if isinstance(edge, int) else edge.port
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.settimeout(10 * SLOW)
        self._file = self.sock.makefile("rb")

    def send(self, data: bytes) -> Client:
        """Send it all."""
        self.sock.sendall(data)
        return self

    def head(self) -> tuple[int, dict[str, str]]:
        """Read a head; header names in lower case."""
        status = int(self._file.readline().split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    def chunk(self) -> bytes:
        """Read one chunk; empty at the end."""
        size = int(self._file.readline(), 16)
        data = self._file.read(size)
        if size:
            self._file.readline()
        return data

    def line(self) -> bytes:
        """Read a line."""
        return self._file.readline()

    def message(self) -> tuple[int, dict[str, str], bytes]:
        """Read a whole answer."""
        status, headers = self.head()
        if "chunked" in headers.get("transfer-encoding", ""):
            body = b"".join(iter(self.chunk, b""))
            while self._file.readline().strip():
                pass
        elif "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
        else:
            body = b""
        return status, headers, body

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or to the end."""
        return self._file.read(size)

    def close(self) -> None:
        """Close."""
        self._file.close()
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_request(sock: socket.socket) -> tuple[bytes, dict[str, str], bytes]:
    """Read one request whole: its first line, headers and body."""
    line, headers = read_head(sock)
    length = int(headers.get("content-length", 0))
    body = b""
    while len(body) < length:
        data = sock.recv(65536)
        if not data:
            raise ConnectionResetError
        body += data
    return line, headers, body


def read_head(sock: socket.socket) -> tuple[bytes, dict[str, str]]:
    """Read a head byte by byte, so that nothing behind it is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = sock.recv(1)
        if not data:
            raise ConnectionResetError
        head += data
    line, *rest = head.strip().split(b"\r\n")
    pairs = (item.decode("latin-1").partition(":") for item in rest)
    return line, {name.lower(): value.strip() for name, _, value in pairs}


def replying(reply: bytes) -> Script:
    """Return a script that answers every request of a connection so."""

    def script(sock: socket.socket) -> None:
        while True:
            read_request(sock)
            sock.sendall(reply)

    return script


def blocked_at(sock: socket.socket, most: int) -> int:
    """Send until nothing moves for a second; how many bytes went."""
    sock.settimeout(1.0)
    sent = 0
    try:
        while sent < most:
            sent += sock.send(b"x" * 65536)
    except TimeoutError:
        pass
    return sent


@contextmanager
def serving(upstreams: Scripted | None = None, **setting: object) -> Iterator[Edge]:
    """Run an edge over the upstreams; both are closed at the end."""
    upstreams = upstreams or Scripted()
    edge = Edge(upstreams, **setting)  # type: ignore[arg-type] # the tests' own names
    try:
        yield edge.start()
    finally:
        edge.close()
        upstreams.close()


__all__ = [
    "AGENT",
    "ID",
    "OTHER_ID",
    "SHORT",
    "Client",
    "ControlPlane",
    "Scripted",
    "Upstream",
    "answer",
    "blocked_at",
    "get",
    "host",
    "read_head",
    "read_request",
    "replying",
    "serving",
]
