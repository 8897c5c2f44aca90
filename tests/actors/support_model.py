"""A server that speaks the wire of OpenAI's chat completions, as far as it is used."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field


@define(eq=False)
class Asked:
    """One request: its path, headers with lower-case names, and JSON body."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@define(eq=False)
class ModelServer:
    """Answers by `answer(reply)`; notes what it was asked, and who hung up."""

    url: str
    asked: list[Asked] = field(factory=list)
    hung_up: threading.Event = field(factory=threading.Event)
    answer: Callable[[Reply], None] = field(default=lambda reply: reply.say("Hi"))


class Reply(BaseHTTPRequestHandler):
    """The answer to one request."""

    protocol_version = "HTTP/1.1"
    model: ModelServer

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        headers = {name.lower(): text for name, text in self.headers.items()}
        body = json.loads(self.rfile.read(length))
        self.model.asked.append(Asked(self.path, headers, body))
        try:
            self.model.answer(self)
        except OSError:
            self.close_connection = True

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, as the provider tells it."""
        body = json.dumps({"error": {"message": message, "code": "x"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def say(self, *texts: str, finish: str | None = "stop") -> None:
        """Stream texts; without `finish` the answer breaks off."""
        self.open()
        for text in texts:
            self.piece({"content": text})
        if finish is not None:
            self.piece({}, finish)
            self.event("[DONE]")
        self._chunk(b"")

    def open(self) -> None:
        """Send the head, and the first piece as Azure does, without a choice."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        self.event(json.dumps({**_HEAD, "choices": []}))

    def piece(self, delta: dict[str, str], finish: str | None = None) -> None:
        """Send one piece of the answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.event(json.dumps({**_HEAD, "choices": [choice]}))

    def event(self, data: str) -> None:
        """Send one event."""
        self._chunk(f"data: {data}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def wait_for_the_end(self) -> None:
        """Send nothing more, and note when the other side is gone."""
        self.connection.settimeout(20)
        if self.rfile.read(1) == b"":
            self.model.hung_up.set()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


_HEAD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Serve on a free port of 127.0.0.1."""
    handler = type("BoundReply", (Reply,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False
        handler.model = ModelServer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield handler.model
        finally:
            server.shutdown()
            thread.join()
