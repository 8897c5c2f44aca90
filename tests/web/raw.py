"""A client that does exactly what a test says, byte for byte."""

from __future__ import annotations

import json
import socket
from types import TracebackType
from typing import Any

from attrs import frozen

__all__ = ["Answer", "RawClient"]


@frozen
class Answer:
    """One whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class RawClient:
    """One connection; the answers are read as HTTP/1.1 says, and no further."""

    def __init__(self, address: int | str, *, timeout: float = 10.0) -> None:
        if isinstance(address, int):
            self.socket = socket.create_connection(("127.0.0.1", address), timeout)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        self._data = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes | None = None,
        **headers: str,
    ) -> Answer:
        """Send one request and read its answer; `X_Y=` becomes the header X-Y."""
        self.send_request(path, method, body, **headers)
        return self.answer(head_only=method == "HEAD")

    def send_request(
        self,
        path: str = "/",
        method: str = "GET",
        body: bytes | None = None,
        **headers: str,
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", "Host: test"]
        lines += [
            f"{name.replace('_', '-')}: {value}" for name, value in headers.items()
        ]
        if body is not None and "Transfer_Encoding" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join([*lines, "", ""]).encode() + (body or b""))

    def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of the next answer."""
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, self._data = self._data.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split()[1]), {k.lower(): v for k, v in headers.items()}

    def answer(self, *, head_only: bool = False) -> Answer:
        """Read the next answer, all of it."""
        status, headers = self.head()
        if head_only or status in {204, 304}:
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(status, headers, b"".join(self.chunks()))
        if "content-length" in headers:
            return Answer(status, headers, self._take(int(headers["content-length"])))
        return Answer(status, headers, self.rest())

    def chunks(self) -> list[bytes]:
        """Read a chunked body up to its end."""
        found = []
        while True:
            chunk = self.chunk()
            if not chunk:
                return found
            found.append(chunk)

    def chunk(self) -> bytes:
        """Read one chunk; empty is the last."""
        while b"\r\n" not in self._data:
            self._more()
        size, self._data = self._data.split(b"\r\n", 1)
        return self._take(int(size, 16) + 2)[:-2]

    def rest(self) -> bytes:
        """Read until the server closes."""
        while True:
            data = self.socket.recv(1 << 16)
            if not data:
                rest, self._data = self._data, b""
                return rest
            self._data += data

    def closed(self) -> bool:
        """Whether the server has closed, waiting for it."""
        try:
            return not self._data and not self.socket.recv(1)
        except ConnectionResetError:
            return True

    def _take(self, size: int) -> bytes:
        while len(self._data) < size:
            self._more()
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError(f"the server closed after {self._data!r}")
        self._data += data
