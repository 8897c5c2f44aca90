"""The routes of an agent app; see `ppio_agent.web.routes`."""

from __future__ import annotations

from ppio_agent._util.clock import utc_now
from ppio_agent.agent import Invocation
from ppio_agent.web import Lane, Reply, json_reply
from ppio_agent.web.exchange import Exchange
from ppio_agent.web.routes import Route
from ppio_agent.wire.headers import Accept
from ppio_agent.wire.times import format_time

from .engine import Engine
from .metrics import METRICS_TYPE, collect, exposition
from .respond import events, respond

__all__ = ["ROUTES"]


def _root(engine: Engine, exchange: Exchange) -> Reply:
    if (
        engine.shows_playground
        and Accept.parse(exchange.environ.get("HTTP_ACCEPT")).prefers_html
    ):
        from .playground import playground

        return playground()
    served, default = engine.entrypoints, engine.default
    mounted_at = exchange.place("")
    endpoints = {r.name: mounted_at + r.template for r in ROUTES if r.path != "/"}
    return json_reply(
        200,
        {
            "service": "ppio-agent",
            "name": engine.name,
            "version": engine.version,
            "status": "running",
            "timestamp": format_time(utc_now()),
            # The one that is called without a name comes first.
            "entrypoints": sorted(served, key=lambda n: (served[n] is not default, n)),
            "endpoints": endpoints,
        },
        [("Vary", "Accept")],
    )


def _ping(engine: Engine, exchange: Exchange) -> Reply:
    del exchange
    status, body = engine.health.ping()
    return json_reply(status, body)


def _metrics(engine: Engine, exchange: Exchange) -> Reply:
    del exchange
    text = exposition(collect(engine))
    return Reply(200, [("Content-Type", METRICS_TYPE)], text)


def _openapi(engine: Engine, exchange: Exchange) -> Reply:
    servers = [{"url": exchange.place("") or "/"}]
    return json_reply(200, {**engine.openapi, "servers": servers})


def _invoke(engine: Engine, exchange: Exchange) -> Reply:
    admission, call = engine.begin(exchange)
    return respond(engine, exchange, admission, call)


def _find(engine: Engine, exchange: Exchange, invocation_id: str) -> Invocation:
    principal = exchange.principal
    return engine.registry.get(
        invocation_id, principal=None if principal is None else principal.id
    )


def _record(engine: Engine, exchange: Exchange, id: str) -> Reply:
    return json_reply(200, _find(engine, exchange, id).record().to_dict())


def _events(engine: Engine, exchange: Exchange, id: str) -> Reply:
    return events(engine, exchange, _find(engine, exchange, id))


def _cancel(engine: Engine, exchange: Exchange, id: str) -> Reply:
    invocation = _find(engine, exchange, id)
    asked = invocation.cancel("client")
    terminal = invocation.state.terminal and not asked
    body = {
        "id": invocation.id,
        "state": invocation.state.value,
        "confirmed": invocation.confirmed,
    }
    return json_reply(200 if terminal else 202, body)


ROUTES: tuple[Route, ...] = (
    Route("root", "GET", "/", _root, public=True),
    Route("ping", "GET", "/ping", _ping, public=True),
    Route("metrics", "GET", "/metrics", _metrics),
    Route("openapi", "GET", "/openapi.json", _openapi),
    Route("invocations", "POST", "/invocations", _invoke, Lane.QUEUED),
    Route("invocation", "GET", "/invocations/<id>", _record),
    Route("events", "GET", "/invocations/<id>/events", _events, Lane.READ),
    Route("cancel", "POST", "/invocations/<id>/cancel", _cancel),
)
