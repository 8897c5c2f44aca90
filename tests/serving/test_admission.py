"""Requests that find every slot taken."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import flask
import pytest
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from ppio_agent.serving import PPIOAgentRuntimeApp
from tests.serving.conftest import Serve
from tests.serving.support import (
    Gate,
    Http,
    hang_up,
    in_background,
    live,
    make_app,
    waiting_inside,
)
from tests.support import SLOW, wait_until


def full(gate: Gate, **settings: Any) -> tuple[PPIOAgentRuntimeApp, list[Any]]:
    """Return an app of one slot, and what its handler was called with."""
    app = make_app(max_concurrency=1, **settings)
    calls: list[Any] = []

    @app.entrypoint
    def agent(request: Any) -> None:
        calls.append(request)
        gate.stand()

    return app, calls


def inside(app: PPIOAgentRuntimeApp, count: int) -> None:
    """Wait until so many requests wait where their deadline is kept."""
    wait_until(lambda: waiting_inside(app) == count)


@pytest.mark.parametrize(
    ("payload", "headers", "through_flask"),
    [
        ({}, {"X-PPIO-Timeout": "0.6"}, False),
        ({"timeout": 0.6}, {}, False),
        ({}, {"X-PPIO-Timeout": "0.6"}, True),
    ],
    ids=["header", "body", "flask"],
)
def test_who_waits_has_its_504_at_its_deadline(
    payload: Any,
    headers: Mapping[str, str],
    through_flask: bool,
    serve: Serve,
    gate: Gate,
) -> None:
    """Although no thread came free for it, and its code never ran."""
    app, calls = full(gate, through_flask=through_flask)
    http_ = serve(app)
    first = in_background(lambda: http_.invoke({"n": 1}))
    gate.wait_reached()
    began = time.monotonic()
    late = http_.invoke(payload, **{k.replace("-", "_"): v for k, v in headers.items()})
    assert 0.6 <= time.monotonic() - began < 0.6 + 0.2 * SLOW
    assert late.status == 504
    assert late.json["metadata"]["confirmed"] is True
    gate.open()
    assert first().status == 200
    assert calls == [{"n": 1}]


def test_who_waits_can_be_looked_up_and_cancelled(serve: Serve, gate: Gate) -> None:
    """It is pending, and then it never runs."""
    app, calls = full(gate)
    http_ = serve(app)
    first = in_background(lambda: http_.invoke({"n": 1}))
    gate.wait_reached()
    second = in_background(lambda: http_.invoke({"n": 2}, X_Invocation_Id="i"))
    inside(app, 1)
    assert http_.get("/invocations/i").json["state"] == "pending"
    cancelled = http_.request("POST", "/invocations/i/cancel")
    assert cancelled.json == {"id": "i", "state": "cancelled", "confirmed": True}
    assert second().status == 499
    gate.open()
    assert first().status == 200
    assert calls == [{"n": 1}]


def test_who_waits_and_leaves_is_dropped(serve: Serve, gate: Gate) -> None:
    """Nobody would read the answer."""
    app, calls = full(gate)
    http_ = serve(app)
    first = in_background(lambda: http_.invoke({"n": 1}))
    gate.wait_reached()
    leaver = http.client.HTTPConnection("127.0.0.1", http_.port)
    leaver.request("POST", "/invocations", b'{"n":2}')
    inside(app, 1)
    hang_up(leaver)
    wait_until(lambda: live(app) == 1)
    gate.open()
    assert first().status == 200
    wait_until(lambda: live(app) == 0)
    assert calls == [{"n": 1}]


def test_all_that_wait_are_counted_together(serve: Serve, gate: Gate) -> None:
    """Asynchronous ones, those inside the application and those before it."""
    app, calls = full(gate, max_queue=3)
    http_ = serve(app)
    calling = [in_background(lambda: http_.invoke({"n": 1}))]
    gate.wait_reached()
    assert http_.invoke({}, Prefer="respond-async").status == 202
    calling += [in_background(lambda: http_.invoke({"n": 2})) for _ in range(2)]
    wait_until(lambda: waiting(app, http_) == 3)
    began = time.monotonic()
    refused = http_.invoke({"n": 3})
    assert time.monotonic() - began < 0.2 * SLOW
    assert (refused.status, refused.json["code"]) == (503, "server_busy")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    inside(app, 3)  # and where they wait makes no difference
    assert http_.invoke({"n": 3}).status == 503
    gate.open()
    assert [call().status for call in calling] == [200] * 3
    wait_until(lambda: live(app) == 0)
    assert len(calls) == 4


def waiting(app: PPIOAgentRuntimeApp, http_: Http) -> int:
    return waiting_inside(app) + http_.lane("invoke")["waiting"]


def site_of(page: Any) -> Any:
    """Return a site with one page."""
    site = flask.Flask(__name__)
    site.add_url_rule("/page", view_func=page)
    return site.wsgi_app


@pytest.mark.parametrize("where", ["a route", "a page of the site", "around the app"])
def test_code_in_front_of_the_app_is_bounded_likewise(
    where: str, serve: Serve, gate: Gate
) -> None:
    """However long it takes: two run, one waits, nine are told to come back."""
    app = make_app(max_concurrency=2, max_queue=1)
    app.entrypoint(lambda request: None)
    inside = []

    def page() -> str:
        inside.append(threading.get_ident())
        gate.stand()
        return "stood"

    def around(environ: Any, start_response: Any) -> Any:
        page()
        return agent(environ, start_response)

    agent, call = app.wsgi_app, lambda: http_.get("/page")
    if where == "a route":
        app.flask.add_url_rule("/page", view_func=page)
    elif where == "a page of the site":
        app.wsgi_app = DispatcherMiddleware(site_of(page), {"/agent": agent})
    else:
        app.wsgi_app, call = around, lambda: http_.invoke({})
    http_ = serve(app)
    calling = [in_background(lambda: call().status) for _ in range(12)]
    wait_until(lambda: len(inside) == 2 and http_.lane("invoke")["waiting"] == 1)
    # For longer than an invocation waits for a thread before it waits for a slot.
    for _ in range(10):
        assert (len(inside), http_.lane("invoke")["waiting"]) == (2, 1)
        threading.Event().wait(0.05)
    gate.open()
    assert sorted(wait() for wait in calling) == [200] * 3 + [503] * 9


def test_readers_are_bounded_likewise(serve: Serve, gate: Gate) -> None:
    """One reads, and without a queue the next is told to come back."""
    app, _ = full(gate, max_queue=0)
    http_ = serve(app)
    http_.invoke({}, Prefer="respond-async", X_Invocation_Id="i")
    gate.wait_reached()
    connection, _ = http_.open("GET", "/invocations/i/events")
    refused = http_.get("/invocations/i/events")
    assert (refused.status, refused.json["code"]) == (503, "server_busy")
    assert int(refused.headers["retry-after"]) >= 1
    assert http_.get("/invocations/i").status == 200
    hang_up(connection)


def test_callers_are_told_how_long_slots_are_held(serve: Serve) -> None:
    """Time spent waiting for one does not count."""
    app = make_app(max_concurrency=1)

    @app.entrypoint
    def agent(request: Any) -> Iterator[int]:
        yield 1

    http_ = serve(app)
    for _ in range(40):
        http_.invoke({})
    durations = app._engine.durations
    wait_until(lambda: len(durations()) == 32)
    assert max(durations()) < 1.0 * SLOW
