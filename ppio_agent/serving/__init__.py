"""Serves one agent over HTTP: `/invocations`, `/ping`, and what belongs to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .app import AgentRuntimeApp, PPIOAgentRuntimeApp, log_filter
from .auth import ApiKeyAuth
from .config import AgentConfig
from .server import PPIOAgentRuntimeServer

if TYPE_CHECKING:
    from .middleware import AgentRequest, AgentResponse

__all__ = [
    "AgentConfig",
    "AgentRequest",
    "AgentResponse",
    "AgentRuntimeApp",
    "ApiKeyAuth",
    "PPIOAgentRuntimeApp",
    "PPIOAgentRuntimeServer",
    "log_filter",
]


def __getattr__(name: str) -> Any:
    # The event loop comes with middleware, and only apps that have some pay for it.
    if name in {"AgentRequest", "AgentResponse"}:
        from . import middleware

        return getattr(middleware, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
