"""What the service says of itself: name, health, agents, description, page."""

from __future__ import annotations

from pathlib import Path

from ppio_agent._version import __version__
from ppio_agent.web import Reply, json_reply
from ppio_agent.web.exchange import Exchange
from ppio_agent.web.page import page
from ppio_agent.wire.actor_bodies import AgentEntry, HealthBody, ServiceBody

from .api import Api

__all__ = ["agents", "docs", "health", "openapi", "root"]


def root(api: Api, exchange: Exchange) -> Reply:
    """Answer what this is."""
    del api, exchange
    body = ServiceBody(
        message="Agent Runtime API", version=__version__, status="running"
    )
    return json_reply(200, body.to_dict())


def health(api: Api, exchange: Exchange) -> Reply:
    """Answer how the runtime is."""
    del exchange
    if not api.running:
        body = HealthBody(status="unhealthy", runtime_running=False)
        return json_reply(503, body.to_dict())
    degraded = tuple(api.runtime.degraded)
    away = api.runtime.engine.outage.lasts
    body = HealthBody(
        status="degraded" if degraded or away else "healthy",
        runtime_running=True,
        degraded=degraded or None,
        store="cannot be reached" if away else None,
    )
    return json_reply(200, body.to_dict())


def agents(api: Api, exchange: Exchange) -> Reply:
    """Answer which agents there are, by name."""
    del exchange
    found = [
        AgentEntry(name=one.name, type=one.kind, description=one.description)
        for one in api.agents
    ]
    return json_reply(200, [one.to_dict() for one in found])


def openapi(api: Api, exchange: Exchange) -> Reply:
    """Answer the description of the API."""
    servers = [{"url": exchange.place("") or "/"}]
    return json_reply(200, {**api.openapi, "servers": servers})


def docs(api: Api, exchange: Exchange) -> Reply:
    """Answer a page that shows the API, and calls it."""
    del api, exchange
    return page(Path(__file__).with_name("docs.html"))
