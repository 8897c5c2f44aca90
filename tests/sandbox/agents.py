"""Small agents for tests, and folders with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["HTTP_AGENT", "write_agent"]

MANIFEST = """\
apiVersion: v1
kind: Agent
metadata:
  name: {name}
  version: {version}
  author: tests@example.com
spec:
  entrypoint: app.py
  runtime:
    timeout: {timeout}
"""

HTTP_AGENT = """\
import http.server, json, os, threading

COUNT = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global COUNT
        COUNT += 1
        self.answer({
            "status": "Healthy",
            "count": COUNT,
            "pid": os.getpid(),
            "env": dict(os.environ),
            "headers": dict(self.headers),
        })

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"result": json.loads(body), "status": "success"})

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

print("agent is up", flush=True)
address = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def write_agent(
    parent: Path,
    name: str = "echo",
    files: Mapping[str, str] | None = None,
    *,
    version: str = "1.0.0",
    timeout: int = 20,
) -> Path:
    """Write an agent's folder below `parent` and return it."""
    folder = parent / name
    folder.mkdir(parents=True, exist_ok=True)
    manifest = MANIFEST.format(name=name, version=version, timeout=timeout)
    (folder / ".ppio-agent.yaml").write_text(manifest)
    for path, text in (files or {"app.py": HTTP_AGENT}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
