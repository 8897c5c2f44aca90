"""Servers of actors for the tests, closed at their end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent.actors import InProcessActorRuntime
from ppio_agent.actors.http.server import ActorServer
from ppio_agent.actors.http_api import create_app, server_of
from tests.actors.http.support import Http, register_agents
from tests.serving.support import Gate

Serve = Callable[..., Http]


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate that opens at the latest when the test is over."""
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def serve(gate: Gate) -> Iterator[Serve]:
    """Serve actors on free ports of loopback."""
    servers: list[ActorServer] = []

    def start(runtime: InProcessActorRuntime | None = None, **settings: Any) -> Http:
        runtime = InProcessActorRuntime() if runtime is None else runtime
        register_agents(runtime, gate)
        server = server_of(create_app(runtime, **settings), port=0).start()
        servers.append(server)
        return Http(server, runtime)

    yield start
    gate.open()
    threads = [threading.Thread(target=server.close) for server in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.fixture(scope="module")
def shared() -> Iterator[Http]:
    """A server of the tests of one module which leave nothing behind that matters."""
    runtime = InProcessActorRuntime()
    gate = Gate()
    register_agents(runtime, gate)
    with server_of(create_app(runtime), port=0) as server:
        yield Http(server, runtime)
