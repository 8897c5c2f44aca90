"""The app that `create_app` returns, and how it is served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flask
import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.actors import ActorId, EchoAgent, InProcessActorRuntime, http_api
from ppio_agent.actors.http import requests as requests_module
from ppio_agent.actors.http import runs as runs_module
from ppio_agent.actors.http import server as server_module
from ppio_agent.actors.http.server import ActorServer
from ppio_agent.actors.http.waits import wait_for
from ppio_agent.actors.http_api import create_app, server_of
from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import hookimpl
from ppio_agent.wire.models import Principal
from tests.actors.http.conftest import Serve
from tests.actors.http.support import Gate, Http, said
from tests.serving.support import HttpAt, in_background
from tests.support import SLOW, wait_until

BODY = {"method": "run", "params": said()}


def test_an_app_starts_its_runtime_with_the_first_request() -> None:
    """Unless it runs; and not again once it was stopped."""
    runtime = InProcessActorRuntime()
    client = create_app(runtime, agents={"echo": EchoAgent()}).test_client()
    assert not runtime.running
    answer = client.post("/agents/echo/run", json=said())
    assert answer.json is not None
    assert answer.json["messages"][0]["content"] == "Echo: hi"
    assert runtime.running
    runtime.stop()
    assert client.get("/health").status_code == 503
    assert not runtime.running


@pytest.mark.parametrize("around", [False, True])
def test_it_is_a_flask_app(around: bool) -> None:
    """Routes of the user's are served; what runs around views runs around ours."""
    runtime = InProcessActorRuntime()
    app = create_app(runtime, agents={"echo": EchoAgent()})
    seen = []

    @app.get("/own")
    def own() -> str:
        return "mine"

    if around:
        app.before_request(lambda: seen.append(flask.request.path))
    client = app.test_client()
    assert client.get("/own").text == "mine"
    answer = client.post("/agents/echo/run", json=said())
    assert answer.status_code == 200
    assert answer.headers["X-Request-Id"]
    missing = client.post("/agents/nope/run", json=said())
    assert missing.json is not None
    assert (missing.status_code, missing.json["code"]) == (404, "agent_not_found")
    cancel = client.post("/actors/v1/echo/a/m-1:cancel")
    assert cancel.json is not None
    assert cancel.json["code"] == "request_not_found"
    wrong = client.put("/agents/echo/run")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "OPTIONS, POST")
    assert len(seen) == (5 if around else 0)
    runtime.stop()


def test_middleware_around_it_is_served(serve: Serve) -> None:
    """What a user puts around `wsgi_app`, the server calls."""
    app = create_app(agents={"echo": EchoAgent()})
    inner = app.wsgi_app

    def outer(environ: Any, start_response: Any) -> Any:
        return inner(
            {**environ, "HTTP_IDEMPOTENCY_KEY": "from-outside-0123"}, start_response
        )

    app.wsgi_app = outer  # type: ignore[method-assign] # as Flask says it is done
    with server_of(app, port=0) as server:
        body = json.dumps(said()).encode()
        headers = {"Content-Type": "application/json"}
        answer = HttpAt(server.port).request("POST", "/agents/echo/run", body, headers)
    assert answer.headers["x-invocation-id"] == "from-outside-0123"


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    """With a word on what to do."""
    with pytest.raises(ConfigurationError, match="has a store"):
        create_app(InProcessActorRuntime(), store="memory://")
    with pytest.raises(ConfigurationError, match="create_app"):
        server_of(flask.Flask("other"))
    with pytest.raises(ConfigurationError, match="auth="):
        server_of(create_app(), host="0.0.0.0", port=0)
    with pytest.raises(TypeError, match="call it"):
        create_app(auth=EchoAgent)


def test_a_server_that_is_stopped_lets_turns_end(serve: Serve, gate: Gate) -> None:
    """Whoever waits for one gets the answer; nothing more is begun."""
    http = serve()
    answers: list[Any] = []
    caller = start_thread("caller", lambda: answers.append(http.run("slow", said())))
    gate.wait_reached()
    stopper = start_thread("stopper", lambda: http.server.drain(20.0))
    wait_until(lambda: not http.runtime.running)
    gate.open()
    for thread in (caller, stopper):
        thread.join(20)
    assert answers[0].json["messages"][0]["content"] == "at last"
    assert http.server.close()


def test_a_server_that_is_closed_cancels_turns(serve: Serve, gate: Gate) -> None:
    """Whoever waits for one is told so, and that it may be sent again."""
    http = serve()
    answers: list[Any] = []
    caller = start_thread("caller", lambda: answers.append(http.run("slow", said())))
    gate.wait_reached()
    assert http.server.close()
    caller.join(20)
    assert (answers[0].status, answers[0].json["code"]) == (503, "runtime_stopped")
    assert int(answers[0].headers["retry-after"]) >= 1


@pytest.mark.parametrize("drained", [False, True])
def test_whoever_waits_for_a_runtime_that_goes_on_is_answered(
    serve: Serve, gate: Gate, drained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the server; what they wait for goes on in the user's runtime."""
    monkeypatch.setattr(server_module, "_SETTLING", 0.01)
    monkeypatch.setattr(server_module, "_LAST_ANSWERS", 1.0 * SLOW)
    waits: list[object] = []

    def counted(*arguments: Any) -> Any:
        waits.append(arguments)
        return wait_for(*arguments)

    for module in (runs_module, requests_module):
        monkeypatch.setattr(module, "wait_for", counted)
    with InProcessActorRuntime() as runtime:
        http = serve(runtime)
        body, place = said(conversation_id="c"), "/actors/v1/stubborn/c/m-1"
        http.post(place, {"method": "run", "params": said()})
        gate.wait_reached()
        connection, events = http.events("GET", f"{place}?streaming=true")
        waiting = [
            in_background(lambda: http.run("stubborn", body)),
            in_background(lambda: http.get(f"{place}?blocking=true")),
            in_background(lambda: http.post(place, BODY, Prefer="wait=60")),
        ]
        wait_until(lambda: len(waits) == 4)  # the first of them has its answer
        assert http.server.drain(0.01) if drained else http.server.close()
        run, looked, sent = (wait() for wait in waiting)
        assert (run.status, run.json["status"]) == (202, "pending")
        assert run.headers["location"].startswith("/actors/v1/stubborn/c/")
        assert (looked.status, looked.json["status"]) == (200, "pending")
        assert (sent.status, sent.json["status"]) == (202, "pending")
        *_, error, end = events
        connection.close()
        assert json.loads(error["data"])["code"] == "server_draining"
        assert [error["id"], end["id"]] == ["0", "0"]  # where it is gone on from
        assert runtime.running
        gate.open()
        handle = runtime.client().get_request(ActorId("stubborn", "c"), "m-1")
        assert handle.result(20)["status"] == "completed"


@pytest.mark.parametrize("own", [False, True])
def test_a_turn_that_does_not_listen_keeps_no_answer(
    serve: Serve, gate: Gate, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On whose thread it runs is told by another one that the server ended."""
    monkeypatch.setattr(server_module, "_SETTLING", 0.01)
    monkeypatch.setattr(server_module, "_LAST_ANSWERS", 0.5)
    runtime = InProcessActorRuntime()
    if own:
        runtime.start()
    http = serve(runtime)
    answer = in_background(lambda: http.run("stubborn", said()))
    gate.wait_reached()
    assert not http.server.close()
    refused = answer()
    assert (refused.status, refused.json["code"]) == (503, "server_draining")
    assert int(refused.headers["retry-after"]) >= 1
    gate.open()
    runtime.stop()


def test_plugins_are_asked_who_calls_and_what_an_agent_is() -> None:
    """Those of `create_app`, for the agents that are given to it."""

    class Plugin:
        @hookimpl
        def ppio_authenticate(self, request: Any) -> Principal | None:
            return Principal("ann") if request.headers.get("x-ann") else None

        @hookimpl
        def ppio_adapt_agent(self, obj: object) -> Any:
            return (lambda request: "adapted") if obj == "crew" else None

    runtime = InProcessActorRuntime()
    app = create_app(runtime, agents={"crew": "crew"}, plugins=[Plugin()])
    client = app.test_client()
    assert client.post("/agents/crew/run", json=said()).status_code == 401
    answer = client.post("/agents/crew/run", json=said(), headers={"X-Ann": "1"})
    assert answer.json is not None
    assert answer.json["messages"][0]["content"] == "adapted"
    runtime.stop()


def test_a_store_that_cannot_be_opened_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise what the environment says of models; status 2."""
    monkeypatch.setattr(
        "ppio_agent.actors.openai_agent.agents_from_env", _no_such_models
    )
    with pytest.raises(SystemExit) as ended:
        http_api.main(["--port", "0"])
    assert ended.value.code == 2
    assert "no such models" in capsys.readouterr().err


def _no_such_models(**_: Any) -> Any:
    raise ConfigurationError("no such models")


PROGRAM = """
from ppio_agent.actors import EchoAgent, InProcessActorRuntime
from ppio_agent.actors.http.server import ActorServer
from ppio_agent.actors.http_api import create_app

runtime = InProcessActorRuntime("sqlite:///{folder}/actors.db")
runtime.register_agent("parrot", lambda request: request["prompt"])
other = create_app(agents={{"echo": EchoAgent()}})
"""
_CLI = (sys.executable, "-m", "ppio_agent.cli", "actors", "serve")


@pytest.mark.parametrize(
    ("command", "agent"),
    [
        ((sys.executable, "-m", "ppio_agent.actors.http_api"), "mock-ai"),
        ((*_CLI, "FILE"), "parrot"),
    ],
)
def test_it_is_served_till_a_signal(
    tmp_path: Path, command: tuple[str, ...], agent: str
) -> None:
    """The flow of the docs: list the agents, say something, go on."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(folder=tmp_path))
    named = [str(program) if part == "FILE" else part for part in command]
    environ = {**os.environ, "OPENAI_API_KEY": "", "AZURE_OPENAI_API_KEY": ""}
    process = subprocess.Popen(
        [*named, "--port", "0"], env=environ, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        address = process.stderr.readline()
        assert address.startswith("listening on http://127.0.0.1:")
        assert process.stderr.readline().startswith("docs: open http://127.0.0.1:")
        http = HttpAt(int(address.rpartition(":")[2]))
        assert agent in [one["name"] for one in http.get("/agents").json]
        body = json.dumps(said(conversation_id="test-conversation")).encode()
        said_to = [
            http.request(
                "POST", f"/agents/{agent}/run", body,
                {"Content-Type": "application/json"},
            ).json["messages"][0]["content"]
            for _ in range(2)
        ]  # fmt: skip
        mock = ["Hello! How can I help you today?", "That is an interesting question."]
        expected = mock if agent == "mock-ai" else ["hi", "hi"]
        assert all(map(str.startswith, said_to, expected))
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "said_so"),
    [
        (("--host", "0.0.0.0"), "auth="),
        (("nowhere.py",), "there is no file"),
        (("{program}:nothing",), "'nothing'"),
        (("{program}", "--store", "memory://"), "itself"),
        (("{program}:other", "--allow-unauthenticated"), "create_app"),
    ],
)
def test_the_command_refuses_what_it_cannot_serve(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said_so: str,
) -> None:
    """Status 2, and a sentence."""
    from ppio_agent.cli.program import main

    program = tmp_path / "served_program.py"
    program.write_text(PROGRAM.format(folder=tmp_path))
    with pytest.raises(SystemExit) as ended:
        main(["actors", "serve", *(a.format(program=program) for a in arguments)])
    assert ended.value.code == 2
    assert said_so in capsys.readouterr().err


def test_a_close_hurries_a_drain(serve: Serve, gate: Gate) -> None:
    """As a second signal does; nobody waits for the first one's time."""
    http = serve()
    assert http.run("slow", said(), Prefer="respond-async").status == 202
    gate.wait_reached()
    drain = start_thread("drain", lambda: http.server.drain(60.0))
    wait_until(lambda: not http.runtime.running)
    began = time.monotonic()
    assert http.server.close()
    drain.join(20)
    assert time.monotonic() - began < 10 * SLOW


def test_an_app_can_be_served_again(serve: Serve) -> None:
    """By another server, with its runtime begun anew."""
    http = serve()
    api = http.server._api
    assert http.run("echo", said()).status == 200
    http.server.close()
    with ActorServer(api, port=0) as server:
        assert Http(server, http.runtime).run("echo", said()).status == 200
