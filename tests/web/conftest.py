"""Servers that end with their test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent.web import Server, ServerConfig

Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server: `serve(app, lanes=…, **config)`."""
    servers: list[Server] = []

    def start(
        app: Any,
        *,
        lanes: Any = None,
        on_drain: Any = None,
        unix_socket: Any = None,
        **config: Any,
    ) -> Server:
        server = Server(
            app,
            lanes=lanes,
            on_drain=on_drain,
            unix_socket=unix_socket,
            config=ServerConfig(**config),
        )
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        assert server.close(), "a thread of the server did not end"
