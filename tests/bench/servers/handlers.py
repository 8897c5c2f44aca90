"""The handlers that every server serves alike, and what a server is told.

Run by path in environments that have nothing of ours: the standard library only. All
are synchronous and block their thread, as code that calls a model does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["asked"]

_Request = dict[str, Any]


def echo(request: _Request) -> _Request:
    """Return what was asked."""
    return {"echo": request}


def block(request: _Request) -> _Request:
    """Take `seconds` to answer."""
    _pause(request["seconds"])
    return {"took": request["seconds"]}


def stream(request: _Request) -> Iterator[_Request]:
    """Stream `chunks` pieces, each after `pause` seconds."""
    for number in range(request["chunks"]):
        _pause(request["pause"])
        yield {"piece": number}


def stamped(request: _Request) -> Iterator[_Request]:
    """Stream pieces with the time they were made, two at once, `pause` seconds apart.

    The second of two is the one that a server may be tempted to hold back.
    """
    end = time.monotonic() + request["seconds"]
    while time.monotonic() < end:
        _pause(request["pause"])
        for _ in range(2):
            yield {"piece": 0, "at": time.monotonic()}


def until_cancelled(request: _Request, context: Any) -> None:
    """Do nothing until the caller has left; write down when that was known."""
    if context.cancelled.wait(request["seconds"]):
        Path(request["tell"]).write_text(repr(time.monotonic()))


def about(request: _Request) -> _Request:
    """Return what this process serves with: what was really loaded, not configured."""
    if "uvicorn" not in sys.modules:
        return {"server": f"waitress {metadata.version('waitress')}"}
    return {
        "server": f"uvicorn {metadata.version('uvicorn')}",
        "loop": "uvloop" if "uvloop" in sys.modules else "asyncio",
        "http": (
            "httptools"
            if "uvicorn.protocols.http.httptools_impl" in sys.modules
            else "h11"
        ),
    }


def _pause(seconds: float) -> None:
    if seconds:
        threading.Event().wait(seconds)


_HANDLERS = (echo, block, stream, stamped, until_cancelled, about)


def asked() -> tuple[int, Callable[..., Any], dict[str, Any]]:
    """Return port, handler and settings from the command line."""
    _, port, name, settings = sys.argv
    named = {handler.__name__: handler for handler in _HANDLERS}
    return int(port), named[name], json.loads(settings)
