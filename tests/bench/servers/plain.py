"""A bare Flask route under waitress: health checks share the threads with handlers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import flask
import waitress
from handlers import asked

port, handler, settings = asked()
app = flask.Flask(__name__)


def _events(items: Iterator[Any]) -> Iterator[bytes]:
    for item in items:
        yield b"data: %b\n\n" % json.dumps(item).encode()


@app.post("/invocations")
def invoke() -> flask.Response:
    """Return, or stream, what the handler gives."""
    result = handler(flask.request.get_json())
    if inspect.isgenerator(result):
        return flask.Response(_events(result), mimetype="text/event-stream")
    return flask.jsonify(result)


@app.get("/ping")
def ping() -> flask.Response:
    """Say that the process is alive."""
    return flask.jsonify(status="Healthy")


# At its own limit of 100 connections it would not even accept a health check.
waitress.serve(
    app, host="127.0.0.1", port=port, connection_limit=2000, threads=settings["threads"]
)
