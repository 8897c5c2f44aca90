"""User code on the thread that serves its request, as long as it is quick."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from tests.serving.conftest import Serve
from tests.serving.support import Gate, Http, make_app
from tests.support import wait_until
from tests.web.raw import RawClient


def ask(client: RawClient, body: bytes, **headers: str) -> Any:
    return client.ask("/invocations", "POST", body, **headers)


def agent_of(gate: Gate) -> Callable[[Any], Any]:
    def agent(request: Any) -> Any:
        kind = request.get("kind")
        if kind == "slow":
            gate.stand()
        if kind == "stream":
            return iter("ab")
        return threading.current_thread().name

    return agent


def test_instant_code_runs_on_the_thread_of_its_request(
    serve: Serve, gate: Gate
) -> None:
    """A switch of threads would cost more than all the rest."""
    app = make_app()
    app.entrypoint(agent_of(gate))
    name = serve(app).invoke({}).json["result"]
    assert name.startswith("ppio-web-")


def test_slow_code_is_answered_by_another_thread_in_time(
    serve: Serve, gate: Gate
) -> None:
    """On a connection that goes on, while its own thread still stands somewhere."""
    app = make_app(allow_unauthenticated=True)
    app.entrypoint(agent_of(gate))
    http = serve(app)
    with RawClient(http.port) as client:
        late = ask(client, b'{"kind":"slow"}', X_PPIO_Timeout="0.2", X_Request_Id="r1")
        assert (late.status, late.headers["x-request-id"]) == (504, "r1")
        assert late.json()["metadata"]["request_id"] == "r1"
        assert ask(client, b"{}").status == 200
        stream = ask(client, b'{"kind":"stream"}')
        assert stream.body == b': open\n\ndata: "a"\n\ndata: "b"\n\n: end\n\n'
        gate.open()
        slow = ask(client, b'{"kind":"slow"}')
        assert slow.status == 200


def test_slots_are_shared_with_code_on_other_threads(serve: Serve, gate: Gate) -> None:
    """One slot: an asynchronous invocation waits for a plain one, and the next waits."""
    app = make_app(max_concurrency=1)
    app.entrypoint(agent_of(gate))
    http = serve(app)
    thread = start_thread("caller", http.invoke, {"kind": "slow"})
    gate.wait_reached()
    early = [http.request("POST", "/invocations/x/cancel").status]
    place = _promised(app)
    path = f"/invocations/{place}"
    assert http.get(path).json["state"] == "pending"
    gate.open()
    thread.join(10)
    wait_until(lambda: http.get(path).json["state"] == "succeeded")
    assert http.get(path).json["result"].startswith("ppio-invoke-")
    assert early == [404]


def _promised(app: Any) -> str:
    """Start an asynchronous invocation past the lanes, and return its id."""
    answer = app.test_client().invoke({}, headers={"Prefer": "respond-async"})
    found: str = answer.json["id"]
    return found


class Wrapped:
    """What a user has put around the app."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.calls = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self.calls += 1
        found: Iterable[bytes] = self.app(environ, start_response)
        return found


@pytest.mark.parametrize("through_flask", [False, True])
def test_what_stands_around_the_app_runs_once_for_a_request(
    through_flask: bool, serve: Serve, gate: Gate
) -> None:
    """Also for a slow one, whose user code then has a thread of its own."""
    app = make_app(through_flask=through_flask)
    app.entrypoint(agent_of(gate))
    calls = []
    if through_flask:
        app.flask.before_request(lambda: calls.append(1))
    else:
        app.wsgi_app = Wrapped(app.wsgi_app)
    http: Http = serve(app)
    answer = http.invoke({"kind": "slow"}, X_PPIO_Timeout="0.1", X_Request_Id="r1")
    assert (answer.status, answer.headers["x-request-id"]) == (504, "r1")
    gate.open()
    assert http.invoke({}).json["result"].startswith("ppio-invoke-")
    assert (len(calls) or app.wsgi_app.calls) == 2  # type: ignore[attr-defined]


def test_after_slow_code_the_next_has_a_thread_from_its_beginning(
    serve: Serve, gate: Gate
) -> None:
    """Until it was quick again: what is slow once is mostly slow."""
    app = make_app()
    app.entrypoint(agent_of(gate))
    http = serve(app)
    assert http.invoke({}).json["result"].startswith("ppio-web-")
    opener = threading.Timer(0.1, gate.open)
    opener.start()
    assert http.invoke({"kind": "slow"}).json["result"].startswith("ppio-web-")
    assert http.invoke({}).json["result"].startswith("ppio-invoke-")
    assert http.invoke({}).json["result"].startswith("ppio-web-")
    opener.join()
