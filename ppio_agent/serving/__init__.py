"""Serves one agent over HTTP: `/invocations`, `/ping`, and what belongs to them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .app import AgentRuntimeApp, PPIOAgentRuntimeApp, log_filter
from .config import AgentConfig
from .server import PPIOAgentRuntimeServer

if TYPE_CHECKING:
    from .api_key import ApiKeyAuth
    from .hmac_auth import HmacAuth
    from .middleware import AgentRequest, AgentResponse

__all__ = [
    "AgentConfig",
    "AgentRequest",
    "AgentResponse",
    "AgentRuntimeApp",
    "ApiKeyAuth",
    "HmacAuth",
    "PPIOAgentRuntimeApp",
    "PPIOAgentRuntimeServer",
    "log_filter",
]

# Loaded when used: not every app has authentication, or middleware with its event loop.
_HOMES = {
    "AgentRequest": "middleware",
    "AgentResponse": "middleware",
    "ApiKeyAuth": "api_key",
    "HmacAuth": "hmac_auth",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
