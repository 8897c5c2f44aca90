"""Registration, life cycle, and what costs nothing."""

from __future__ import annotations

import atexit
import gc
import logging
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from ppio_agent.agent import RequestContext
from ppio_agent.hooks import hookimpl
from ppio_agent.serving import AgentRuntimeApp, PPIOAgentRuntimeApp
from tests.serving.support import Gate, in_background, make_app
from tests.support import wait_until


def test_the_agent_of_the_documents_works() -> None:
    """Word for word, but for the import."""
    app = PPIOAgentRuntimeApp(debug=True)

    @app.entrypoint
    async def my_agent(request: dict, context: RequestContext) -> dict:  # type: ignore[type-arg]
        query = request.get("query", "")
        result = f"Processed: {query}"
        return {
            "response": result,
            "session_id": context.session_id,
            "timestamp": context.timestamp.isoformat(),
        }

    @app.ping
    def health_check() -> dict:  # type: ignore[type-arg]
        return {"status": "healthy", "service": "My Agent"}

    client = app.test_client()
    result = client.invoke({"query": "q"}, headers={"X-PPIO-Session-Id": "s"}).result
    assert result["response"] == "Processed: q"
    assert result["session_id"] == "s"
    assert client.get("/ping").json["service"] == "My Agent"
    assert AgentRuntimeApp is PPIOAgentRuntimeApp


def test_decorators_return_the_function_itself() -> None:
    """It can still be called and tested."""
    app = make_app()

    def agent(request: Any) -> str:
        return "x"

    def ping() -> None: ...

    assert app.entrypoint(agent) is agent
    assert app.entrypoint(name="second", timeout=1.0)(agent) is agent
    assert app.ping(ping) is ping
    assert app.on_startup(agent) is agent
    assert app.on_shutdown(agent) is agent


def test_a_second_unnamed_entrypoint_or_a_name_twice_is_refused() -> None:
    """Nobody could say which one is meant."""
    app = make_app()
    app.entrypoint(lambda request: 1)
    with pytest.raises(RuntimeError, match="needs a name"):
        app.entrypoint(lambda request: 2)
    app.entrypoint(name="x")(lambda request: 3)
    with pytest.raises(RuntimeError, match="'x'"):
        app.entrypoint(name="x")(lambda request: 4)


def test_nothing_is_registered_after_the_first_request() -> None:
    """It would hold for some requests only."""
    app = make_app()
    app.test_client().get("/ping")

    def middleware(context: Any, request: Any) -> None: ...

    for register in (
        lambda: app.entrypoint(lambda request: 1),
        lambda: app.ping(lambda: "ok"),
        lambda: app.middleware(middleware),
        lambda: app.on_startup(lambda: None),
        lambda: app.on_shutdown(lambda: None),
        lambda: app.flask,
    ):
        with pytest.raises(RuntimeError, match="serves already"):
            register()


def test_start_up_and_shut_down_functions_run_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Down in reverse order; one that fails does not stop the others."""
    app = make_app()
    order = []
    app.on_startup(lambda: order.append("up"))
    app.on_shutdown(lambda: order.append("down 1"))

    @app.on_shutdown
    def fail() -> None:
        raise LookupError("broken")

    app.on_shutdown(lambda: order.append("down 2"))
    with app.test_client() as client, caplog.at_level(logging.ERROR, "ppio_agent"):
        for _ in range(2):
            client.get("/ping")
        assert order == ["up"]
    assert app.close()
    assert order == ["up", "down 2", "down 1"]


def test_a_start_up_function_may_call_the_app() -> None:
    """To warm it up; other requests wait until all of them have run."""
    app, order, go_on = make_app(), [], threading.Event()
    warm = threading.Event()

    @app.entrypoint
    def agent(request: Any) -> None:
        order.append(request["prompt"])

    @app.on_startup
    def warm_up() -> None:
        assert app.test_client().invoke("warm up").status_code == 200
        warm.set()
        go_on.wait(10)

    app.on_startup(lambda: order.append("second"))
    client = app.test_client()
    calls = [in_background(lambda: client.invoke("call")) for _ in range(3)]
    assert warm.wait(10)
    assert order == ["warm up"]
    go_on.set()
    assert [call().status_code for call in calls] == [200] * 3
    assert order == ["warm up", "second", "call", "call", "call"]
    assert app.close()


def test_a_start_up_that_failed_is_not_tried_again() -> None:
    """Every request fails as the first did; nothing is run or put in front twice."""

    class Plugin:
        @hookimpl
        def ppio_middleware(self, app: Any) -> list[Any]:
            order.append("middleware")
            return []

    app, order = make_app(plugins=[Plugin()]), []
    app.on_startup(lambda: order.append("first"))

    @app.on_startup
    def fail() -> None:
        raise LookupError("no model")

    app.on_shutdown(lambda: order.append("down"))
    client = app.test_client()
    assert [client.get("/ping").status_code for _ in range(3)] == [500] * 3
    with pytest.raises(LookupError, match="no model"):
        app.server(port=0).start()
    assert app.close()
    assert order == ["middleware", "first"]


def test_who_closes_second_gets_the_outcome_of_the_first(gate: Gate) -> None:
    """And not before there is one."""
    app = make_app()
    closing = threading.Event()
    app.on_shutdown(app.close)
    app.on_shutdown(lambda: (closing.set(), gate.stand()))
    app.entrypoint(lambda request: gate.stand())
    client = app.test_client()
    caller = in_background(lambda: client.invoke({}))
    gate.wait_reached()
    first = in_background(lambda: app.close(grace=0.05))
    assert closing.wait(10)
    outcomes: list[bool] = []
    second = start_thread("second", lambda: outcomes.append(app.close()))
    second.join(0.1)
    assert outcomes == []
    gate.open()
    assert first() is False
    second.join(10)
    assert outcomes == [False]
    caller()


def test_what_is_closed_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app by the interpreter's end, and the server by the app."""
    at_exit: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    monkeypatch.setattr(atexit, "unregister", at_exit.remove)
    app = make_app()
    app.entrypoint(lambda request: None)
    with app.server(port=0) as server:
        assert len(at_exit) == 1
    assert at_exit == []
    served = weakref.ref(server)
    del server
    wait_until(lambda: gc.collect() is not None and served() is None)
    assert app.close()


def test_a_closed_app_refuses() -> None:
    """503: another one may take it."""
    app = make_app()
    app.entrypoint(lambda request: 1)
    client = app.test_client()
    client.get("/ping")
    app.close()
    answer = client.invoke({})
    assert (answer.status_code, answer.json["code"]) == (503, "server_draining")


def test_closing_cancels_what_runs() -> None:
    """With the reason, and waits for user code to end."""
    app = make_app()
    reached = threading.Event()

    @app.entrypoint
    def agent(request: Any, context: RequestContext) -> None:
        reached.set()
        context.sleep(60)

    answers: list[Any] = []
    client = app.test_client()
    caller = threading.Thread(
        target=lambda: answers.append(client.invoke({})), daemon=True
    )
    caller.start()
    reached.wait(5)
    assert app.close()
    caller.join(5)
    assert answers[0].status_code == 503
    assert answers[0].json["metadata"]["code"] == "server_draining"


def test_closing_says_if_user_code_ignores_it(gate: Gate) -> None:
    """A thread cannot be killed."""
    app = make_app()
    app.entrypoint(lambda request: gate.stand())
    client = app.test_client()
    threading.Thread(target=client.invoke, args=({},), daemon=True).start()
    gate.wait_reached()
    assert not app.close(grace=0.05)


def test_importing_and_serving_needs_no_flask() -> None:
    """Nor an event loop, nor anything of a client."""
    script = """
import sys
from ppio_agent import PPIOAgentRuntimeApp
app = PPIOAgentRuntimeApp()
app.entrypoint(lambda request: request)
with app.server(port=0) as server:
    with app.test_client() as client:
        assert client.invoke({"a": 1}).result == {"a": 1}
heavy = {"flask", "werkzeug", "requests", "urllib3", "rich", "click", "asyncio"}
print(sorted(heavy & set(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_several_processes_are_warned_about_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each knows its own invocations only."""
    app = make_app()
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/ping",
        "HTTP_HOST": "localhost",
        "wsgi.multiprocess": True,
    }
    with caplog.at_level(logging.WARNING, "ppio_agent"):
        for _ in range(2):
            list(app(dict(environ), lambda *args: None))
    assert caplog.text.count("one process only") == 1


def test_the_test_client_leaves_like_a_browser_tab() -> None:
    """After so many events, or when it is closed."""
    app = make_app()
    ended = threading.Event()

    @app.entrypoint
    def agent(request: Any) -> Any:
        try:
            yield from range(100_000)
        finally:
            ended.set()

    with app.test_client(headers={"X-Request-Id": "r"}) as client:
        stream = client.stream({}, disconnect_after=3)
        assert [event.data for event in stream] == ["0", "1", "2"]
        assert (stream.status_code, stream.headers["x-request-id"]) == (200, "r")
        assert ended.wait(5)
        invocation_id = stream.headers["x-invocation-id"]
        path = f"/invocations/{invocation_id}"
        wait_until(lambda: client.get(path).json["state"] == "cancelled")
        assert client.cancel(invocation_id).status_code == 200
        last = client.get(path).json["events"]["last"]
        assert [e.event for e in client.events(invocation_id, last - 1)] == ["end"]
