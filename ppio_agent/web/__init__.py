"""HTTP for everything that serves: the only home of waitress.

`Server` puts a WSGI application on waitress so that health checks, cancel and refusals
never wait for user code; `kit` gives each request its id, context and error answers;
`sse` writes event streams.
"""

from __future__ import annotations

from .config import ServerConfig
from .kit import (
    JSON_TYPE,
    Relayed,
    Reply,
    RequestKit,
    current_request_id,
    declared_length,
    json_reply,
    problem,
    read_body,
)
from .lanes import Lane, Lanes, retry_after
from .server import Server
from .sse import SSE_HEADERS, sse_body

__all__ = [
    "JSON_TYPE",
    "SSE_HEADERS",
    "Lane",
    "Lanes",
    "Relayed",
    "Reply",
    "RequestKit",
    "Server",
    "ServerConfig",
    "current_request_id",
    "declared_length",
    "json_reply",
    "problem",
    "read_body",
    "retry_after",
    "sse_body",
]
