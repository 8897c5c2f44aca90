"""Serves one agent over HTTP: `/invocations`, `/ping`, and what belongs to them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .app import AgentRuntimeApp, PPIOAgentRuntimeApp
from .config import AgentConfig
from .logs import log_filter
from .server import PPIOAgentRuntimeServer

if TYPE_CHECKING:
    from ppio_agent.web.api_key import ApiKeyAuth
    from ppio_agent.web.hmac_auth import HmacAuth
    from ppio_agent.web.logs import JsonLogFormatter

    from .middleware import AgentRequest, AgentResponse
    from .otel import OpenTelemetry

__all__ = [
    "AgentConfig",
    "AgentRequest",
    "AgentResponse",
    "AgentRuntimeApp",
    "ApiKeyAuth",
    "HmacAuth",
    "JsonLogFormatter",
    "OpenTelemetry",
    "PPIOAgentRuntimeApp",
    "PPIOAgentRuntimeServer",
    "log_filter",
]

# Loaded when used: not every app has authentication, or middleware with its event loop.
_HOMES = {
    "AgentRequest": ".middleware",
    "AgentResponse": ".middleware",
    "ApiKeyAuth": "ppio_agent.web.api_key",
    "HmacAuth": "ppio_agent.web.hmac_auth",
    "JsonLogFormatter": "ppio_agent.web.logs",
    "OpenTelemetry": ".otel",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)
