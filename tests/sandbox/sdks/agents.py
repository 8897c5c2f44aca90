"""Agents that published clients call: one without a framework, one of `ppio-sandbox`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ECHO", "theirs"]

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


def theirs(python: Path) -> str:
    """Return an agent of `ppio-sandbox`, with the packages of its environment.

    It listens where it is told to: its own default is port 8080 of all addresses, which
    only one program of a machine can have.
    """
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    return f"""\
import os, site

site.addsitedir({str(packages)!r})

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


app.run(port=int(os.environ["PORT"]), host=os.environ["HOST"])
"""
