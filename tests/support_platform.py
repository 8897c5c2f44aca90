"""A small platform for tests of the client: real HTTP, scripted, every request kept.

It is control plane, edge and agent in one server, routed by header as the local one
or by host name as the cloud, which it plays as the proxy on the way there.
A test says what the agent does, or answers single routes itself.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from attrs import define, field, frozen

from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, encode_frame

__all__ = ["Exchange", "FakePlatform", "FakeSandbox", "envd_event", "template_record"]

KEY = "sk-test-0123456789abcdef"

# What an agent may say, of a sandbox that it uses itself, or to mislead.
LIKE_A_DEAD_SANDBOX = [
    (404, {"code": "session_not_found", "message": "the inner sandbox is gone"}),
    (502, {"sandboxId": "inner", "message": "The sandbox was not found", "code": 502}),
]


@frozen(kw_only=True)
class Recorded:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    port: int | None

    @property
    def to_agent(self) -> bool:
        """Whether it is for a port of a sandbox."""
        return self.port is not None

    def json(self) -> Any:
        return json.loads(self.body)


@define(eq=False)
class FakeSandbox:
    sandbox_id: str
    template_id: str
    body: Mapping[str, Any]
    state: str = "running"
    counter: int = 0
    port_open: bool = True
    exit_code: int | None = None
    log_tail: str = ""


@define(eq=False)
class Exchange:
    """One request and the ways to answer it."""

    request: Recorded
    sandbox: FakeSandbox | None
    _handler: BaseHTTPRequestHandler = field(repr=False)
    answered: bool = False

    def reply(
        self,
        status: int = 200,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        *,
        raw: bytes | None = None,
        content_type: str = "application/json",
    ) -> None:
        data = raw if raw is not None else b"" if body is None else encode(body)
        self.answered = True
        self._handler.send_response(status)
        if data:
            self._handler.send_header("Content-Type", content_type)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        if status != 204:
            self._handler.send_header("Content-Length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def start_stream(
        self,
        *,
        invocation_id: str | None = None,
        content_type: str = "text/event-stream",
    ) -> None:
        self.answered = True
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", content_type)
        if invocation_id is not None:
            self._handler.send_header("X-Invocation-Id", invocation_id)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()
        self._handler.wfile.flush()

    def send(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def end_stream(self) -> None:
        self._handler.wfile.write(b"0\r\n\r\n")

    def await_client_gone(self) -> None:
        """Return when the client has closed the connection."""
        with contextlib.suppress(OSError):
            self._handler.rfile.read(1)
        self._handler.close_connection = True

    def cut(self) -> None:
        """Drop the connection as it is."""
        self.answered = True
        self._handler.close_connection = True


class _Deaf:
    """An exchange whose answer is never sent."""

    def __init__(self, exchange: Exchange) -> None:
        self.request = exchange.request

    def reply(self, *_: object) -> None:
        """Drop it."""


def encode(body: Any) -> bytes:
    return json.dumps(body).encode()


def template_record(template_id: str = "tpl1", **fields: Any) -> dict[str, Any]:
    document = {
        "apiVersion": "v1",
        "kind": "Agent",
        "metadata": {"name": f"agent-{template_id}", "version": "1.0.0"},
        "spec": {"entrypoint": "app.py", "runtime": {"timeout": 5}},
    }
    return {
        "templateID": template_id,
        "aliases": [f"alias-{template_id}"],
        "tags": ["ai"],
        "buildStatus": "ready",
        "metadata": {"agent_runtime": json.dumps(document)},
        **fields,
    }


def echo_agent(exchange: Exchange) -> None:
    """Answer as our own app would: ping, and an envelope with what was sent."""
    if exchange.request.path == "/ping":
        exchange.reply(200, {"status": "Healthy"}, {"X-PPIO-Agent": "1.0.0"})
        return
    sandbox = exchange.sandbox
    assert sandbox is not None
    sandbox.counter += 1
    envelope = {
        "result": {"echo": exchange.request.json(), "count": sandbox.counter,
                   "sandbox": sandbox.sandbox_id},
        "status": "success",
        "duration": 0.01,
        "metadata": {"invocation_id": "inv_1"},
        "error": None,
    }  # fmt: skip
    headers = {"X-PPIO-Agent": "1.0.0", "X-Invocation-Id": "inv_1"}
    exchange.reply(200, envelope, headers)


def patient_envd(exchange: Exchange) -> None:
    """Say that the agent was started, and nothing more."""
    exchange.start_stream(content_type=STREAM_CONTENT_TYPE)
    exchange.send(envd_event({"start": {"pid": 42}}))
    exchange.await_client_gone()


def envd_event(event: Any) -> bytes:
    """Return the frame of an event of a controller's stream."""
    return encode_frame(encode({"event": event}))


_Answer = Callable[[Exchange], None]


class FakePlatform:
    """Serves on 127.0.0.1 while it is entered.

    Args:
        agent: Answers for every agent.
        domain: Of the sandboxes' host names, if it does not route by header.
        tls: What it serves those with, as a proxy that tunnels to itself.
    """

    def __init__(
        self,
        agent: _Answer = echo_agent,
        *,
        domain: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.agent = agent
        self.domain = domain
        self.tls = tls
        self.traffic_token: str | None = None
        self.envd: _Answer = patient_envd
        self.templates: list[Any] = [template_record()]
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.killed: list[str] = []
        self.requests: list[Recorded] = []
        self.tunnels: list[Mapping[str, str]] = []
        self.fixed: list[tuple[str, re.Pattern[str], _Answer]] = []
        self._ids = itertools.count(1)
        self._lock = threading.Lock()

    def __enter__(self) -> FakePlatform:
        self._server = _Server(("127.0.0.1", 0), _handler_class(self))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def on(self, method: str, path: str, answer: _Answer) -> None:
        """Answer requests for a path (a pattern) by `answer`; it may decline."""
        self.fixed.insert(0, (method, re.compile(path), answer))

    @contextmanager
    def overriding(self, method: str, path: str, answer: _Answer) -> Iterator[None]:
        self.on(method, path, answer)
        try:
            yield
        finally:
            self.fixed.pop(0)

    def seen(self, method: str, path: str) -> list[Recorded]:
        """Return the requests of a method whose path (a pattern) matches."""
        pattern = re.compile(path)
        return [
            r for r in self.requests if r.method == method and pattern.match(r.path)
        ]

    @property
    def alive(self) -> list[str]:
        return [i for i in list(self.sandboxes) if i not in self.killed]

    def answer(self, exchange: Exchange) -> None:
        request = exchange.request
        self.requests.append(request)
        for method, pattern, answer in self.fixed:
            if request.method == method and pattern.match(request.path):
                answer(exchange)
                if exchange.answered:
                    return
        if request.to_agent:
            self._edge(exchange)
        else:
            self._control(exchange)

    def _edge(self, exchange: Exchange) -> None:
        sandbox = exchange.sandbox
        if sandbox is None or sandbox.state != "running":
            exchange.reply(502, {
                "sandboxId": "?", "message": "The sandbox was not found", "code": 502,
            })  # fmt: skip
        elif exchange.request.port == 49983:
            self.envd(exchange)
        elif not sandbox.port_open:
            body: dict[str, Any] = {
                "sandboxId": sandbox.sandbox_id,
                "message": "The sandbox is running but port is not open",
                "port": 8080,
                "code": 502,
            }
            if sandbox.exit_code is not None:
                body["exitCode"] = sandbox.exit_code
            exchange.reply(502, body)
        else:
            self.agent(exchange)

    def _control(self, exchange: Exchange) -> None:
        request = exchange.request
        parts = [p for p in urlsplit(request.path).path.split("/") if p]
        if parts[:1] == ["v2"]:
            parts = parts[1:]
        if parts == ["templates"]:
            exchange.reply(200, self.templates)
        elif parts == ["sandboxes"] and request.method == "POST":
            self.create(exchange)
        elif parts == ["sandboxes"]:
            self._list(exchange)
        else:
            self._sandbox_call(exchange, parts[1], *parts[2:])

    def create_unanswered(self, exchange: Exchange) -> None:
        """Create the sandbox that is asked for, but lose the answer."""
        self.create(_Deaf(exchange))
        exchange.cut()

    def create(self, exchange: Exchange | _Deaf) -> None:
        """Create the sandbox that is asked for."""
        body = exchange.request.json()
        key = exchange.request.headers.get("idempotency-key")
        with self._lock:
            for sandbox in list(self.sandboxes.values()):
                if key and sandbox.body.get("key") == key:
                    break
            else:
                sandbox = FakeSandbox(
                    f"sb{next(self._ids)}", body["templateID"], {**body, "key": key}
                )
                self.sandboxes[sandbox.sandbox_id] = sandbox
        exchange.reply(201, self.sandbox_body(sandbox))

    def sandbox_body(self, sandbox: FakeSandbox) -> dict[str, Any]:
        where: dict[str, Any] = {"domain": "sandbox.test", "edgeURL": self.url}
        if self.domain is not None:
            where = {"domain": self.domain}
        if self.traffic_token is not None:
            where["trafficAccessToken"] = self.traffic_token
        return {
            "sandboxID": sandbox.sandbox_id,
            "templateID": sandbox.template_id,
            "clientID": "local",
            "envdVersion": "0.5.7",
            "envdAccessToken": "envd-token-of-this-sandbox",
            **where,
        }

    def _detail(self, sandbox: FakeSandbox) -> dict[str, Any]:
        return {
            **self.sandbox_body(sandbox),
            "state": sandbox.state,
            "startedAt": "2026-01-02T03:04:05.678Z",
            "endAt": "2026-01-02T03:09:05.678Z",
            "metadata": sandbox.body.get("metadata"),
            "agent": {
                "phase": "ready" if sandbox.port_open else "exited",
                "exitCode": sandbox.exit_code,
                "logTail": sandbox.log_tail,
            },
        }

    def _list(self, exchange: Exchange) -> None:
        query = dict(parse_qsl(urlsplit(exchange.request.path).query))
        wanted = {
            unquote(k): unquote(v) for k, v in parse_qsl(query.get("metadata", ""))
        }
        found = [
            self._detail(s)
            for i, s in list(self.sandboxes.items())
            if i not in self.killed
            and wanted.items() <= (s.body.get("metadata") or {}).items()
        ]
        exchange.reply(200, found)

    def _sandbox_call(self, exchange: Exchange, ref: str, action: str = "") -> None:
        sandbox_id = ref.partition("-")[0]
        sandbox = self.sandboxes.get(sandbox_id)
        if sandbox is None or sandbox_id in self.killed:
            exchange.reply(404, {"code": 404, "message": f"no sandbox {ref}"})
        elif exchange.request.method == "DELETE":
            self.killed.append(sandbox_id)
            sandbox.state = "killed"
            exchange.reply(204)
        elif action == "":
            exchange.reply(200, self._detail(sandbox))
        elif action == "pause":
            already = sandbox.state == "paused"
            sandbox.state = "paused"
            exchange.reply(409 if already else 204, *(
                [{"code": 409, "message": "paused already"}] if already else []
            ))  # fmt: skip
        elif action in {"connect", "resume"}:
            status = 201 if sandbox.state == "paused" else 200
            sandbox.state = "running"
            exchange.reply(status, self.sandbox_body(sandbox))
        elif action == "timeout":
            exchange.reply(204)
        else:
            exchange.reply(404, {"code": 404, "message": "no such route"})


def _target(headers: Mapping[str, str]) -> tuple[int | None, str]:
    """Return the port and the sandbox that a request is for; None: control plane."""
    if "ppio-sandbox-id" in headers:
        return int(headers["ppio-sandbox-port"]), headers["ppio-sandbox-id"]
    named = re.match(r"([0-9]+)-([^.]+)\.", headers.get("host", ""))
    return (int(named[1]), named[2]) if named else (None, "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that leave early are part of the tests."""


def _handler_class(platform: FakePlatform) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def _serve(self) -> None:
            headers = {k.lower(): v for k, v in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            port, sandbox_id = _target(headers)
            request = Recorded(
                method=self.command,
                path=self.path,
                headers=headers,
                body=body,
                port=port,
            )
            sandbox = platform.sandboxes.get(sandbox_id.partition("-")[0])
            platform.answer(Exchange(request, sandbox, self))
            self.wfile.flush()

        do_GET = do_POST = do_DELETE = _serve

        def do_CONNECT(self) -> None:
            assert platform.tls is not None
            platform.tunnels.append(dict(self.headers.items()))
            self.send_response_only(200)
            self.end_headers()
            self.wfile.flush()
            self.request = platform.tls.wrap_socket(self.connection, server_side=True)
            self.setup()
            self.close_connection = False

        def finish(self) -> None:
            super().finish()
            if isinstance(self.request, ssl.SSLSocket):
                self.request.close()  # the server knows of the socket below alone

        def log_message(self, *_: object) -> None:
            """Keep the output of the tests clean."""

    return Handler
