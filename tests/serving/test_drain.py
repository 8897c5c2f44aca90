"""How a served agent ends: real processes, real signals."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.exceptions import ServerDrainingError
from tests.serving.conftest import Serve
from tests.serving.support import Gate, hang_up, in_background, live, make_app
from tests.serving.support_process import Process, listens, run_script
from tests.support import SLOW, wait_until

AGENT = """
import os, pathlib, threading
from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp()
log = pathlib.Path(os.environ["AGENT_LOG"])

def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")

app.on_shutdown(lambda: note("first"))
app.on_shutdown(lambda: note("last"))

@app.entrypoint
def agent(request, context: RequestContext):
    kind = request["kind"]
    note(f"began {kind}")
    if kind == "stuck":
        threading.Event().wait(60)
    if kind == "stream":
        return stream(context)
    if kind == "patient":
        context.sleep(60)
    threading.Event().wait(request.get("seconds", 0))
    note(f"ended {kind}")
    return kind

def stream(context):
    yield "one"
    context.sleep(60)

app.run()
"""


class Agent:
    """The process and what it wrote."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self._log = log

    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def invoke(self, kind: str, seconds: float = 0.0, **headers: str) -> Any:
        return self.process.invoke({"kind": kind, "seconds": seconds}, **headers)

    def wait_began(self, kind: str) -> None:
        wait_until(lambda: f"began {kind}" in self.log())


@contextmanager
def agent(folder: Path, **settings: str) -> Iterator[Agent]:
    script, log = folder / "drained_agent.py", folder / "log"
    script.write_text(textwrap.dedent(AGENT))
    environ = {f"PPIO_AGENT_{name.upper()}": text for name, text in settings.items()}
    with run_script(script, AGENT_LOG=str(log), **environ) as process:
        yield Agent(process, log)


def connect(process: Process) -> http.client.HTTPConnection:
    """Return a connection that has served a request and is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    connection.request("GET", "/ping")
    assert connection.getresponse().read()
    return connection


def ask(
    connection: http.client.HTTPConnection, method: str, path: str
) -> tuple[int, str | None, Any]:
    connection.request(method, path, b'{"kind":"echo"}' if method == "POST" else None)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Connection"), json.loads(answer.read())


def test_what_runs_is_finished_and_nothing_else_begins(tmp_path: Path) -> None:
    """SIGTERM: the call is 200, connections are refused, the process ends with 0."""
    with agent(tmp_path) as it:
        process = it.process
        call = in_background(lambda: it.invoke("slow", 1.5))
        it.wait_began("slow")
        pinger, caller = connect(process), connect(process)
        process.signal()
        wait_until(lambda: not listens(process.port), timeout=1.0)
        status, closing, body = ask(pinger, "GET", "/ping")
        assert (status, body["status"], body["message"]) == (
            503,
            "Unhealthy",
            "draining",
        )
        assert closing == "close"
        status, closing, body = ask(caller, "POST", "/invocations")
        assert (status, body["code"], closing) == (503, "server_draining", "close")
        assert call().status == 200
        exit_status, seconds = process.wait_ended()
        assert exit_status == 0
        assert seconds < 2.0 * SLOW
        assert it.log() == ["began slow", "ended slow", "last", "first"]


def test_what_waits_for_a_slot_is_told_to_go_elsewhere(tmp_path: Path) -> None:
    """Asynchronous or not; only what runs is waited for."""
    with agent(tmp_path, max_concurrency="1") as it:
        process = it.process
        slow = in_background(lambda: it.invoke("slow", 1.5))
        it.wait_began("slow")
        assert it.invoke("never", Prefer="respond-async").status == 202
        queued = in_background(lambda: it.invoke("never"))
        wait_until(lambda: process.get("/ping").json["status"] == "HealthyBusy")
        process.signal()
        refused = queued()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "ended slow" not in it.log(), "it was not told at once"
        assert slow().status == 200
        assert process.wait_ended()[0] == 0
        assert "began never" not in it.log()


def test_an_invocation_that_nobody_waits_for_is_waited_for(tmp_path: Path) -> None:
    """Its request had its answer long ago."""
    with agent(tmp_path) as it:
        assert it.invoke("slow", 0.5, Prefer="respond-async").status == 202
        it.wait_began("slow")
        it.process.signal()
        assert it.process.wait_ended()[0] == 0
        assert it.log() == ["began slow", "ended slow", "last", "first"]


def test_a_stream_is_told_that_the_server_ends(tmp_path: Path) -> None:
    """After `drain_timeout` it has its `error`, which may be tried again, and `end`."""
    with agent(tmp_path, drain_timeout="0.3") as it:
        connection, lines = it.process.stream({"kind": "stream"})
        while b"one" not in next(lines):
            pass
        it.process.signal()
        rest = b"".join(lines).decode()
        connection.close()
        error = json.loads(rest.split("event: error\ndata: ")[1].split("\n")[0])
        assert (error["code"], error["retryable"]) == ("server_draining", True)
        assert "event: end" in rest
        assert '"status":"cancelled"' in rest
        assert it.process.wait_ended()[0] == 0
        assert it.log()[-2:] == ["last", "first"]


def test_a_second_signal_cancels_at_once(tmp_path: Path) -> None:
    """Ctrl-C twice: callers are told, and the process ends with 0."""
    with agent(tmp_path, drain_timeout="60") as it:
        process = it.process
        call = in_background(lambda: it.invoke("patient"))
        it.wait_began("patient")
        process.signal(signal.SIGINT)
        wait_until(lambda: not listens(process.port))
        process.signal(signal.SIGINT)
        answer = call()
        assert answer.status == 503
        assert answer.json["metadata"]["code"] == "server_draining"
        exit_status, seconds = process.wait_ended()
        assert exit_status == 0
        assert seconds < 2.0 * SLOW


def test_code_that_ignores_everything_is_left_behind(tmp_path: Path) -> None:
    """Its caller has an answer all the same; the exit status is 1."""
    with agent(tmp_path, drain_timeout="0.3") as it:
        call = in_background(lambda: it.invoke("stuck"))
        it.wait_began("stuck")
        it.process.signal()
        exit_status, seconds = it.process.wait_ended()
        assert exit_status == 1
        assert seconds < 0.3 + 8.0 * SLOW
        assert call().json["metadata"] | {"confirmed": False} == call().json["metadata"]
        assert it.log() == ["began stuck", "last", "first"]


def test_a_kept_connection_does_not_keep_the_process(tmp_path: Path) -> None:
    """Whoever holds an idle one sees its end, and does not wait."""
    with agent(tmp_path) as it:
        connection = connect(it.process)
        it.process.signal()
        assert isinstance(connection.sock, socket.socket)
        assert connection.sock.recv(1) == b""
        connection.close()
        exit_status, seconds = it.process.wait_ended()
        assert exit_status == 0
        assert seconds < 1.0 * SLOW


def test_a_server_in_a_thread_drains_likewise(serve: Serve, gate: Gate) -> None:
    """It says whether everything ended in time."""
    app = make_app()
    app.entrypoint(lambda request: gate.stand())
    http_ = serve(app)
    http_.invoke({}, Prefer="respond-async")
    gate.wait_reached()
    assert not http_.server.drain(0.05)
    gate.open()
    assert http_.server.drain(5.0)
    with pytest.raises(ConnectionRefusedError):
        http_.get("/ping")
    with pytest.raises(ServerDrainingError):
        app._engine.begin(None)  # type: ignore[arg-type] # it is not looked at


def test_a_close_ends_what_a_lost_client_left(serve: Serve, gate: Gate) -> None:
    """Nobody is there to be told; the slot is free all the same."""
    app = make_app(detect_disconnect=False)
    app.entrypoint(lambda request, context: (gate.stand(), context.sleep(60)))
    http_ = serve(app)
    lost = http.client.HTTPConnection("127.0.0.1", http_.port)
    lost.request("POST", "/invocations", b"{}")
    gate.wait_reached()
    gate.open()
    hang_up(lost)
    assert http_.server.close()
    assert live(app) == 0
