"""What tests of running sandboxes share: start one, speak with it, leave none behind."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from ppio_agent._util.ids import new_id
from ppio_agent.sandbox.backends.base import (
    AGENT_PORT,
    ENVD_PORT,
    AgentPhase,
    AgentStatus,
    LineAddress,
    LostReason,
    RunningSandbox,
    SandboxSpec,
)
from ppio_agent.sandbox.backends.process import ProcessBackend
from ppio_agent.sandbox.backends.zygote_client import ZygoteClient
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, FrameReader, encode_frame
from tests.support import processes_marked, wait_until

__all__ = ["SERVER", "Lab", "Sandbox", "StartStream", "no_zygote", "request"]

SERVER = """
import http.server, json, os, threading
NOTES = {"count": 0}

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        NOTES["count"] += 1
        facts = {"count": NOTES["count"], "pid": os.getpid(), "env": dict(os.environ)}
        body = json.dumps(facts).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

def serve(port=None):
    address = (os.environ["HOST"], port or int(os.environ["PORT"]))
    Server(address, Handler).serve_forever()
"""
"""An agent without a framework; a test adds `serve()` and what it wants besides."""

# Says which of `adoption`, `token` and `control` it finds in its own memory; the last
# is there.
_GREP = """
import os, re
control = b"control-" + str(10**7).encode() + b"-end"
known = set()
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for area, rights, *rest in map(str.split, maps):
        first, last = (int(end, 16) for end in area.split("-"))
        if "rw" in rights and not rest[-1].startswith("[v"):
            memory.seek(first)
            data = memory.read(last - first)
            known.update(re.findall(rb"([a-z]+)-[0-9]{8}-end", data))
print("known:", *sorted(word.decode() for word in known), flush=True)
"""


def request(
    sock: socket.socket,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, bytes]:
    """Make one HTTP request on a connected socket, which it closes."""
    connection = http.client.HTTPConnection("sandbox")
    connection.sock = sock
    sock.settimeout(10)
    try:
        connection.request(method, path, body, dict(headers or {}))
        with connection.getresponse() as response:
            return response.status, response.read()
    finally:
        connection.close()


class StartStream:
    """The events of one `Start` or `Connect`, read as they come."""

    def __init__(
        self,
        sock: socket.socket,
        message: Mapping[str, Any],
        headers: Mapping[str, str],
        *,
        call: str = "Start",
    ) -> None:
        self.begun = time.monotonic()
        self._connection = http.client.HTTPConnection("sandbox")
        self._connection.sock = self.sock = sock
        sock.settimeout(20)
        head = {"Content-Type": STREAM_CONTENT_TYPE, **headers}
        body = encode_frame(json.dumps(message).encode())
        self._connection.request("POST", f"/process.Process/{call}", body, head)
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self._reader = FrameReader()
        self.error: dict[str, str] | None = None
        self.over = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while not self.over:
            data = self._response.read1()
            assert data, "the stream was cut"
            for frame in self._reader.feed(data):
                value = json.loads(frame.payload)
                if frame.end:
                    self.error, self.over = value.get("error"), True
                    self.close()
                else:
                    yield value["event"]

    def event(self) -> dict[str, Any]:
        """Return the next event."""
        return next(iter(self))

    def output(self, stream: str = "stdout") -> str:
        """Read to the end and return what was written to one stream."""
        return self.rest()[stream].decode()

    def rest(self) -> dict[str, Any]:
        """Read to the end: both outputs and the `end` event, if there was one."""
        found: dict[str, Any] = {"stdout": b"", "stderr": b"", "end": None}
        for event in self:
            for stream, data in event.get("data", {}).items():
                found[stream] += base64.b64decode(data)
            found["end"] = event.get("end", found["end"])
        return found

    def close(self) -> None:
        """Leave."""
        self._response.close()
        self._connection.close()


class Sandbox:
    """A started sandbox and all that was said of it."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.statuses: list[AgentStatus] = []
        self.status_times: list[float] = []
        self.lost: list[LostReason] = []
        self.running: RunningSandbox

    def on_agent(self, status: AgentStatus) -> None:
        """Take note of a report."""
        self.status_times.append(time.monotonic())
        self.statuses.append(status)

    def wait_phase(self, phase: AgentPhase, timeout: float = 10.0) -> AgentStatus:
        """Return the newest report once it is this phase."""
        wait_until(
            lambda: self.statuses and self.statuses[-1].phase == phase,
            timeout=timeout,
            what=f"agent {phase}; it was said {self.statuses}",
        )
        return self.statuses[-1]

    def get(self, port: int = AGENT_PORT) -> dict[str, Any]:
        """Ask the agent, and return its JSON."""
        status, body = request(self.running.dial(port, 5.0))
        assert status == 200
        found: dict[str, Any] = json.loads(body)
        return found

    def envd(self, path: str, **options: Any) -> tuple[int, bytes]:
        """Make one request to envd."""
        return request(self.running.dial(ENVD_PORT, 5.0), path, **options)

    def start(
        self,
        cmd: str,
        *args: str,
        headers: Mapping[str, str] | None = None,
        stdin: bool | None = False,
        **process: Any,
    ) -> StartStream:
        """Start a program through envd."""
        message: dict[str, Any] = {"process": {"cmd": cmd, "args": args, **process}}
        if stdin is not None:
            message["stdin"] = stdin
        sock = self.running.dial(ENVD_PORT, 5.0)
        return StartStream(sock, message, headers or {})

    def follow(
        self, pid: int, *, headers: Mapping[str, str] | None = None
    ) -> StartStream:
        """Connect to a program through envd."""
        sock = self.running.dial(ENVD_PORT, 5.0)
        message = {"process": {"pid": pid}}
        return StartStream(sock, message, headers or {}, call="Connect")

    def rpc(self, call: str, **message: Any) -> tuple[int, dict[str, Any]]:
        """Make one unary call to envd, as in `process.Process/List`."""
        status, body = self.envd(
            f"/{call}",
            method="POST",
            body=json.dumps(message).encode(),
            headers={"Content-Type": "application/json"},
        )
        return status, json.loads(body)

    def sh(self, script: str, **options: Any) -> StartStream:
        """Start a script of the login shell through envd."""
        return self.start("/bin/bash", "-l", "-c", script, **options)

    def pids(self) -> set[int]:
        """Its living processes, the supervisor left out."""
        return set(processes_marked(self.spec.sandbox_id)) - {self.running.pid}


def no_zygote() -> ZygoteClient:
    """Return one that never has a zygote."""
    client = ZygoteClient()
    client.close()
    return client


class Lab:
    """A backend, folders for its sandboxes, and a check that none is left.

    Args:
        folder: Where sandboxes are.
        zygote: What their supervisors are forks of; None starts them by exec.
    """

    def __init__(self, folder: Path, zygote: ZygoteClient | None = None) -> None:
        self.folder = folder
        # Not below `folder`: the path of a socket is short.
        self.sockets = Path(tempfile.mkdtemp())
        self.backend = ProcessBackend(zygote or no_zygote())
        self.sandboxes: list[Sandbox] = []

    def start(self, source: str | None = None, **options: Any) -> Sandbox:
        """Start a sandbox; with `source`, it is the agent's program."""
        return self.begin(self.spec(source, **options))

    def begin(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox whose folder is made."""
        sandbox = Sandbox(spec)
        self.sandboxes.append(sandbox)
        sandbox.running = self.backend.start(
            spec, on_agent=sandbox.on_agent, on_lost=sandbox.lost.append
        )
        return sandbox

    def adopt(self, spec: SandboxSpec) -> Sandbox:
        """Take a sandbox over that another platform has started."""
        sandbox = Sandbox(spec)
        self.sandboxes.append(sandbox)
        sandbox.running = self.backend.adopt(
            spec, on_agent=sandbox.on_agent, on_lost=sandbox.lost.append
        )
        return sandbox

    def serve(self, source: str = "serve()", **options: Any) -> Sandbox:
        """Start a sandbox with `SERVER` as its agent and wait until it is ready."""
        sandbox = self.start(SERVER + textwrap.dedent(source), **options)
        sandbox.wait_phase("ready")
        return sandbox

    def known_secrets(self, **options: Any) -> str:
        """Return what an agent says of the secrets that are in its memory."""
        spec = self.spec(_GREP, access_token="token-12345678-end", **options)
        line = attrs.evolve(spec.line, secret="adoption-12345678-end")
        sandbox = self.begin(attrs.evolve(spec, line=line))
        return sandbox.wait_phase("exited").log_tail

    def spec(self, source: str | None = None, **options: Any) -> SandboxSpec:
        """Return the spec of a new sandbox, its folder made."""
        sandbox_id = new_id()[:20]
        root = self.folder / sandbox_id
        (root / "app").mkdir(parents=True)
        if source is not None:
            (root / "app" / "app.py").write_text(textwrap.dedent(source))
            options.setdefault("entrypoint", "app.py")
        line = LineAddress(path=str(self.sockets / sandbox_id), secret="s" * 32)
        return SandboxSpec(
            sandbox_id=sandbox_id, template_id="t" * 20, root=root, line=line, **options
        )

    def close(self) -> None:
        """End all and check that nothing is left."""
        self.backend.close()
        left = {
            sandbox.spec.sandbox_id: pids
            for sandbox in self.sandboxes
            if (pids := list(processes_marked(sandbox.spec.sandbox_id)))
        }
        assert left == {}
        self.sockets.rmdir()  # which fails if a socket is left in it
