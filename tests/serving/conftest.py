"""Servers for the tests, closed at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from ppio_agent.serving import PPIOAgentRuntimeApp
from tests.serving.support import Gate, Http

Serve = Callable[[PPIOAgentRuntimeApp], Http]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve apps on free ports of loopback."""
    servers = []

    def start(app: PPIOAgentRuntimeApp) -> Http:
        server = app.server(host="127.0.0.1", port=0).start()
        servers.append(server)
        return Http(server)

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that opens at the latest when the test is over."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture(params=[False, True], ids=["table", "flask"])
def through_flask(request: pytest.FixtureRequest) -> bool:
    """Whether requests go through a Flask app: the answers are the same."""
    return bool(request.param)
