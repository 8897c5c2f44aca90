"""Logs of an app: ids in every record, and what `run()` does about logging."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent import RequestContext
from ppio_agent._util.threads import start_thread
from ppio_agent.serving import AgentConfig, JsonLogFormatter, log_filter
from ppio_agent.serving.logs import logging_of_run
from tests.serving.conftest import Serve
from tests.serving.support import SSE, Http, make_app

_log = logging.getLogger("agent")


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the agents of a test log, as the JSON that it becomes."""

    class Keeper(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.kept.append(self.format(record))

    keeper = Keeper()
    keeper.addFilter(log_filter())
    keeper.setFormatter(JsonLogFormatter())
    _log.addHandler(keeper)
    _log.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in keeper.kept]
    _log.removeHandler(keeper)
    _log.setLevel(logging.NOTSET)


def sync_agent(request: Any) -> str:
    _log.info("sync")
    return "done"


async def async_agent(request: Any) -> str:
    _log.info("async")
    return "done"


def threaded_agent(request: Any, context: RequestContext) -> str:
    start_thread("helper", context.wrap(lambda: _log.info("helper"))).join()
    return "done"


def stream_agent(request: Any) -> Iterator[str]:
    _log.info("begin")
    try:
        yield "a"
        _log.info("between")
        yield "b"
    finally:
        _log.info("end")


async def async_stream_agent(request: Any) -> AsyncIterator[str]:
    _log.info("begin")
    try:
        yield "a"
        _log.info("between")
        yield "b"
    finally:
        _log.info("end")


@pytest.mark.parametrize("accept", [{}, SSE], ids=["plain", "sse"])
@pytest.mark.parametrize(
    ("agent", "said"),
    [
        (sync_agent, ["sync"]),
        (async_agent, ["async"]),
        (threaded_agent, ["helper"]),
        (stream_agent, ["begin", "between", "end"]),
        (async_stream_agent, ["begin", "between", "end"]),
    ],
)
def test_records_of_an_agent_carry_the_ids_of_its_answer(
    agent: Any,
    said: list[str],
    accept: dict[str, str],
    serve: Serve,
    lines: Callable[[], list[dict[str, Any]]],
) -> None:
    """Wherever it logs: in threads of ours, of the loop, and of its own."""
    app = make_app()
    app.entrypoint(agent)
    answer = serve(app).invoke({"n": 1}, X_PPIO_Session_Id="s1", **accept)
    assert answer.status == 200
    assert [line["message"] for line in lines()] == said
    for line in lines():
        assert line["request_id"] == answer.headers["x-request-id"]
        assert line["invocation_id"] == answer.headers["x-invocation-id"]
        assert line["session_id"] == "s1"


def raw(http: Http, head: bytes) -> dict[str, str]:
    """Send bytes; return status and headers of the answer."""
    with socket.create_connection(("127.0.0.1", http.port), timeout=10) as it:
        it.sendall(head)
        text = b""
        while b"\r\n\r\n" not in text:
            piece = it.recv(65536)
            assert piece, text
            text += piece
    status, *fields = text.partition(b"\r\n\r\n")[0].decode().split("\r\n")
    found = {
        name.lower(): value for name, _, value in (f.partition(": ") for f in fields)
    }
    return {**found, "status": status.split()[1]}


def _request(line: str, *headers: str, body: str = "") -> bytes:
    fields = ["Host: localhost", *headers, "Connection: close"]
    if body:
        fields.append(f"Content-Length: {len(body)}")
    return "\r\n".join([f"{line} HTTP/1.1", *fields, "", body]).encode()


ANSWERS = {
    "root": (200, _request("GET /")),
    "page": (200, _request("GET /", "Accept: text/html")),
    "ping": (200, _request("GET /ping")),
    "metrics": (200, _request("GET /metrics")),
    "openapi": (200, _request("GET /openapi.json")),
    "head": (200, _request("HEAD /ping")),
    "success": (200, _request("POST /invocations", body='{"n":1}')),
    "stream": (
        200,
        _request("POST /invocations", "Accept: text/event-stream", body='{"n":1}'),
    ),
    "async": (202, _request("POST /invocations", "Prefer: respond-async", body="{}")),
    "failure": (500, _request("POST /invocations?entrypoint=fail", body="{}")),
    "timeout": (
        504,
        _request(
            "POST /invocations?entrypoint=slow", "X-PPIO-Timeout: 0.05", body="{}"
        ),
    ),
    "bad JSON": (400, _request("POST /invocations", body="{")),
    "bad header": (400, _request("POST /invocations", "X-PPIO-Timeout: x", body="{}")),
    "no entrypoint": (404, _request("POST /invocations?entrypoint=no", body="{}")),
    "no invocation": (404, _request("GET /invocations/inv_1")),
    "no events": (404, _request("GET /invocations/inv_1/events")),
    "no cancel": (404, _request("POST /invocations/inv_1/cancel", body="{}")),
    "no route": (404, _request("GET /nothing")),
    "method": (405, _request("PUT /ping")),
    "options": (200, _request("OPTIONS /ping")),
    "preflight": (
        403,
        _request(
            "OPTIONS /ping",
            "Origin: https://a.example",
            "Access-Control-Request-Method: GET",
        ),
    ),
    "origin": (
        403,
        _request("POST /invocations", "Origin: https://a.example", body="{}"),
    ),
    "form": (
        415,
        _request("POST /invocations", "Content-Type: multipart/form-data", body="{}"),
    ),
    "too large": (413, _request("POST /invocations", "Content-Length: 99999999")),
    "large chunk": (413, _request("POST /invocations", body="1" * 2000)),
    "malformed": (400, b"GET / HTTP/1.1\r\nbad header\r\n\r\n"),
    "length": (400, _request("POST /invocations", "Content-Length: x")),
    "head too large": (431, _request("GET /", "X-Long: " + "x" * 300_000)),
    "coding": (501, _request("POST /invocations", "Transfer-Encoding: gzip")),
}


@pytest.fixture(scope="module")
def everything() -> Iterator[Http]:
    """An app that gives every kind of answer."""
    app = make_app(max_request_size=1000)
    leave = threading.Event()

    @app.entrypoint
    def agent(request: Any) -> Any:
        return request

    @app.entrypoint(name="fail")
    def fail(request: Any) -> None:
        raise OSError("full")

    @app.entrypoint(name="slow")
    def slow(request: Any) -> None:
        leave.wait(10)

    with app.server(port=0) as server:
        yield Http(server)
        leave.set()


@pytest.mark.parametrize("case", ANSWERS)
def test_every_answer_carries_the_request_id(case: str, everything: Http) -> None:
    """Ours, refusals, and what the server finds itself; the caller's where it is one."""
    status, head = ANSWERS[case]
    answer = raw(everything, head)
    assert answer["status"] == str(status)
    assert len(answer["x-request-id"]) == 32
    if case in ("malformed", "head too large"):
        return  # the head is not read to its end
    chosen = raw(everything, head.replace(b"\r\n", b"\r\nX-Request-Id: mine.1\r\n", 1))
    assert chosen["status"] == str(status)
    assert chosen["x-request-id"] == "mine.1"


@contextlib.contextmanager
def root_with(*own: logging.Handler) -> Iterator[logging.Logger]:
    """Give the root logger these handlers, instead of those of the tests."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    logger.handlers[:] = own
    try:
        yield logger
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logging.getLogger("ppio_agent").setLevel(logging.NOTSET)


def test_nothing_is_set_up_unless_it_is_asked_for() -> None:
    """But the level of our own logger."""
    with root_with() as root, logging_of_run(AgentConfig(log_level="debug")):
        assert root.handlers == []
        assert logging.getLogger("ppio_agent").level == logging.DEBUG


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_format_gives_the_program_a_handler(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It writes to stderr while the app runs, records of the agent, too."""
    with root_with() as root:
        with logging_of_run(AgentConfig(log_format=log_format)):
            _log.info("hello", extra={"ppio_request_id": "r1"})
        _log.info("gone")
        assert root.handlers == []
    text = capsys.readouterr().err
    if log_format == "json":
        line = json.loads(text)
        assert (line["message"], line["request_id"]) == ("hello", "r1")
    else:
        assert text.endswith(" INFO agent: hello [request_id=r1]\n")


def test_a_programs_own_handlers_stay_as_they_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """They only get the ids; that the format is not used is said."""
    own = logging.NullHandler()
    settings = AgentConfig(log_format="json")
    with root_with(own, caplog.handler) as root, logging_of_run(settings):
        assert root.handlers == [own, caplog.handler]
        assert own.formatter is None
        assert len(own.filters) == 1
    assert own.filters == []
    assert "log_format is not used" in caplog.text


def at_a_terminal(script: str) -> str:
    """Run a program whose stderr is a terminal until it ends; return what that shows."""
    leader, follower = os.openpty()
    process = subprocess.Popen([sys.executable, "-c", script], stderr=follower)
    os.close(follower)
    shown = b""
    with process, contextlib.suppress(OSError):  # the terminal's other end is closed
        while piece := os.read(leader, 1 << 16):
            shown += piece
    os.close(leader)
    assert process.returncode == 0
    return shown.decode()


SERVES = """
import logging, os, signal, threading
from ppio_agent import PPIOAgentRuntimeApp
app = PPIOAgentRuntimeApp(port=0)
@app.on_startup
def end(): threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
"""


def test_who_sits_at_a_terminal_is_told_where_the_agent_listens() -> None:
    """Without having set anything, and the playground's address too."""
    shown = at_a_terminal(SERVES + "app.run()")
    assert "listening on http://127.0.0.1:" in shown
    assert "playground: open http://127.0.0.1:" in shown


@pytest.mark.parametrize("logger", ["", "ppio_agent"])
def test_a_program_at_a_terminal_that_has_set_up_logs_gets_no_others(
    logger: str,
) -> None:
    """Neither a second line of each, nor a warning."""
    own = f"logging.getLogger({logger!r}).addHandler(logging.StreamHandler())"
    shown = at_a_terminal(f"{SERVES}\n{own}\napp.run()")
    assert shown.count("listening on") == 1
    assert "log_format" not in shown


@pytest.mark.parametrize("command", [[], ["-m", "ppio_agent.cli", "run"]])
def test_a_served_app_writes_json_when_the_environment_says_so(
    command: list[str], tmp_path: Path
) -> None:
    """Every line on its stderr is an object, whoever runs it."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import logging\n"
        "from ppio_agent import PPIOAgentRuntimeApp\n"
        "app = PPIOAgentRuntimeApp(port=0)\n"
        "@app.entrypoint\n"
        "def agent(request): pass\n"
        "@app.on_startup\n"
        "def begin(): logging.getLogger('mine').info('begin')\n"
        "if __name__ == '__main__':\n"
        "    app.run()\n"
    )
    ready, told = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *command, str(script)],
        env={
            **os.environ,
            "PPIO_AGENT_LOG_FORMAT": "json",
            "PPIO_READY_FD": str(told),
        },
        pass_fds=[told],
        stderr=subprocess.PIPE,
    )
    os.close(told)
    with process:
        assert os.read(ready, 1) == b"1"
        os.close(ready)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        found = [json.loads(line) for line in process.stderr]
    assert found[0]["logger"] == "mine"
    assert any(line["message"].startswith("listening on") for line in found)
    assert {line["level"] for line in found} == {"INFO"}
