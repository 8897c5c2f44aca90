"""A local platform in a process of its own, with the templates that are measured.

It prints, as one line of JSON, where it is, and ends when its input does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

ECHO = """
from ppio_agent.serving import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()

@app.entrypoint
def agent(request):
    return {"echo": request}

app.run()
"""

RAW = """
import http.server, json, os, socket, threading, time, urllib.parse

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self):
        where = urllib.parse.urlsplit(self.path)
        asked = {k: float(v) for k, v in urllib.parse.parse_qsl(where.query)}
        getattr(self, where.path.strip("/"))(asked)

    def small(self, asked):
        body = json.dumps({"port": int(os.environ["PORT"])}).encode()
        head = f"HTTP/1.1 200 OK\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n".encode()
        self.request.sendall(head + body)

    ping = small

    def bulk(self, asked):
        left, piece = int(asked["bytes"]), b"x" * 262144
        head = f"HTTP/1.1 200 OK\\r\\nContent-Length: {left}\\r\\n\\r\\n"
        self.request.sendall(head.encode())
        while left:
            self.request.sendall(piece[:left])
            left -= min(left, len(piece))

    def stamped(self, asked):
        head = "HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\n"
        self.request.sendall(f"{head}Transfer-Encoding: chunked\\r\\n\\r\\n".encode())
        tick = threading.Event()
        for _ in range(int(asked["events"])):
            tick.wait(asked["pause"])
            data = f"data: {time.monotonic()}\\n\\n".encode()
            self.request.sendall(b"%x\\r\\n%s\\r\\n" % (len(data), data))
        self.request.sendall(b"0\\r\\n\\r\\n")

    def log_message(self, *args):
        pass

address = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""

MANIFEST = """
apiVersion: v1
kind: Agent
metadata:
  name: {name}
  version: 1.0.0
  author: bench@example.com
spec:
  entrypoint: app.py
"""


def deploy(platform: SandboxPlatform, folder: Path, name: str, source: str) -> str:
    """Return the id of a template made of one program."""
    folder.mkdir()
    (folder / "app.py").write_text(source)
    (folder / ".ppio-agent.yaml").write_text(MANIFEST.format(name=name))
    return platform.deploy(folder).template_id


def main(backend: str) -> None:
    """Serve until the input ends."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        config = PlatformConfig(
            data_dir=folder / "data", backend=backend, keys={"k" * 20: "bench"}
        )
        with SandboxPlatform(config) as platform:
            took = time.monotonic() - began
            told = {
                "url": platform.url,
                "key": platform.api_key,
                "echo": deploy(platform, folder / "echo", "echo", ECHO),
                "raw": deploy(platform, folder / "raw", "raw", RAW),
                "program": str(folder / "echo" / "app.py"),
                "start_ms": took * 1000,
            }
            print(json.dumps(told), flush=True)
            sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
