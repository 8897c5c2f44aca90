"""The agent kernel: any callable made uniform, and one call of it.

A handler is an agent, an invocation is one call: with an id, a context, a deadline,
cancellation, chunks and a result. Nothing here knows of HTTP.
"""

from __future__ import annotations

from .chunk import Chunk
from .context import CancelToken, RequestContext, current_context
from .handler import Handler, as_handler
from .invocation import Invocation
from .record import InvocationRecord
from .registry import InvocationRegistry
from .ring import ReplayRing
from .states import InvocationState

__all__ = [
    "CancelToken",
    "Chunk",
    "Handler",
    "Invocation",
    "InvocationRecord",
    "InvocationRegistry",
    "InvocationState",
    "ReplayRing",
    "RequestContext",
    "as_handler",
    "current_context",
]
