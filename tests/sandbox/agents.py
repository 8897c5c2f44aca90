"""Small agents for tests, and folders with them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["HTTP_AGENT", "write_agent", "write_wheel"]

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


def write_wheel(folder: Path, name: str, text: str = "VALUE = 1\n") -> Path:
    """Write the wheel of a distribution with one module of its name and a command.

    Returns:
        A `requirements.txt` that asks for it, and for nothing from the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    tag = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        f"{name}.py": f"{text}\ndef main():\n    print(VALUE)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": tag,
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(path, content)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"--no-index\n--find-links {folder}\n{name}==1.0\n")
    return requirements
