"""Plug-ins: what they may take part in, and the facade through which they are asked.

A plug-in is written with `hookimpl` alone:

    from ppio_agent.hooks import hookimpl

    @hookimpl
    def ppio_client_headers(request):
        return {"X-Team": "search"}
"""

from .manager import Hooks
from .specs import hookimpl

__all__ = ["Hooks", "hookimpl"]
