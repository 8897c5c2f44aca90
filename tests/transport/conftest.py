"""What the tests of the transport share."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppio_agent.testing import FaultServer, Script
from ppio_agent.transport import Transport
from tests.support_net import certificate


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultServer]]:
    """Start servers that end with the test."""
    servers: list[FaultServer] = []

    def start(script: Script, *, tls: ssl.SSLContext | None = None) -> FaultServer:
        servers.append(FaultServer(script, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    """A transport with the defaults, whose backoff is always the longest."""
    with Transport(random=lambda: 1.0) as transport:
        yield transport


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context and the file of its certificate."""
    made = certificate(tmp_path_factory.mktemp("tls"))
    if made is None:
        pytest.skip("no openssl binary to make a certificate with")
    return made
