"""The routes of the HTTP API of actors."""

from __future__ import annotations

from attrs import evolve

from ppio_agent.web import Lane
from ppio_agent.web.routes import Route

from .letters import discard, letters, redrive
from .outages import guarded
from .requests import cancel, delete, inspect, send, status
from .runs import run
from .service import agents, docs, health, openapi, root

__all__ = ["ROUTES"]

_ACTOR = "/actors/v1/<type>/<key>"
_REQUEST = f"{_ACTOR}/<message_id>"

# What asks the store, or waits, does not keep health checks waiting.
_ALL = (
    Route("root", "GET", "/", root, public=True),
    Route("health", "GET", "/health", health, public=True),
    Route("agents", "GET", "/agents", agents),
    Route("run", "POST", "/agents/<agent_name>/run", run, Lane.INVOKE),
    Route("inspect", "GET", _ACTOR, inspect, Lane.READ),
    Route("delete", "DELETE", _ACTOR, delete, Lane.READ),
    Route("send", "POST", _REQUEST, send, Lane.INVOKE),
    Route("status", "GET", _REQUEST, status, Lane.READ),
    Route("cancel", "POST", f"{_REQUEST}:cancel", cancel, Lane.READ),
    Route("letters", "GET", "/dead-letters", letters, Lane.READ),
    Route("redrive", "POST", "/dead-letters/<id>:redrive", redrive, Lane.READ),
    Route("discard", "DELETE", "/dead-letters/<id>", discard, Lane.READ),
    Route("openapi", "GET", "/openapi.json", openapi),
    Route("docs", "GET", "/docs", docs, public=True),
)
ROUTES = tuple(evolve(route, view=guarded(route.view)) for route in _ALL)
