"""Plug-ins: what they may take part in, and the facade through which they are asked.

A plug-in is written with `hookimpl` alone:

    from ppio_agent.hooks import hookimpl

    @hookimpl
    def ppio_client_headers(request):
        return {"X-Team": "search"}
"""

from .client import ClientHooks, ClientMiddleware
from .manager import Hooks
from .records import (
    RequestEvent,
    ResponseEvent,
    RetryEvent,
    SessionEvent,
    StreamEvent,
)
from .specs import ClientAuth, hookimpl

__all__ = [
    "ClientAuth",
    "ClientHooks",
    "ClientMiddleware",
    "Hooks",
    "RequestEvent",
    "ResponseEvent",
    "RetryEvent",
    "SessionEvent",
    "StreamEvent",
    "hookimpl",
]
