"""What web sites need whose visitors talk to agents, for every web framework."""

from __future__ import annotations

from .web import StreamFormat, error_event, problem, stream_format, stream_headers

__all__ = [
    "StreamFormat",
    "error_event",
    "problem",
    "stream_format",
    "stream_headers",
]
