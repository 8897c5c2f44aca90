"""Agents that published clients call: one without a framework, one of `ppio-sandbox`."""

from __future__ import annotations

import tarfile
from pathlib import Path

from tests.peers import needs_peer
from tests.sandbox.agents import write_agent

__all__ = ["ECHO", "write_theirs", "write_theirs_whole"]

ECHO = """\
import http.server, json, os

COUNT = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"status": "Healthy"})

    def do_POST(self):
        global COUNT
        COUNT += 1
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "words" in request:
            return self.stream(request["words"])
        self.answer({
            "request": request,
            "count": COUNT,
            "pid": os.getpid(),
            "headers": dict(self.headers),
            "greeting": os.environ.get("GREETING"),
        })

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, words):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for word in words:
            self.wfile.write(f"data: {json.dumps(word)}\\n\\n".encode())
            self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass

address = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""
"""Answers with what it was sent, or streams the `words` of a request."""


_THEIRS = """\
import os, shutil, sys, tempfile

{find_packages}

from ppio_sandbox.agent_runtime import AgentRuntimeApp

app = AgentRuntimeApp()


@app.entrypoint
async def answer(request, context):
    if "words" in request:
        return words(request["words"])
    return {{"request": request, "headers": context.headers, "pid": os.getpid()}}


async def words(asked):
    for word in asked:
        yield {{"word": word}}


{run}
"""

_UNPACK = """\
sys.path.append(tempfile.mkdtemp())
shutil.unpack_archive("packages.tar", sys.path[-1])
"""


def write_theirs(parent: Path) -> Path:
    """Write the folder of an agent of `ppio-sandbox` 2.1.0 for the process backend.

    It finds its packages on the host, and has to be told where to listen: by itself it
    takes port 8080, which only one program of a machine can.
    """
    source = _THEIRS.format(
        find_packages=f"sys.path.append({str(_packages())!r})",
        run='app.run(port=int(os.environ["PORT"]), host=os.environ["HOST"])',
    )
    return write_agent(parent, "theirs", {"app.py": source})


def write_theirs_whole(parent: Path) -> Path:
    """Write the folder of one as it is in the cloud: its packages are in it."""
    source = _THEIRS.format(find_packages=_UNPACK, run="app.run()")
    folder = write_agent(parent, "theirs", {"app.py": source})
    # As one file: two thousand take seconds to deploy.
    with tarfile.open(folder / "packages.tar", "w") as archive:
        archive.add(_packages(), ".", filter=_needed)
    return folder


def _packages() -> Path:
    (found,) = needs_peer("ppio-2").parents[1].glob("lib/python*/site-packages")
    return found


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    unused = {"__pycache__", "tests", "tzdata", "markdown_it"}
    return None if unused & set(Path(member.name).parts) else member
