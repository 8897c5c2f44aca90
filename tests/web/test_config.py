"""The server's limits."""

from __future__ import annotations

import resource

import pytest

from ppio_agent.web import ServerConfig


def test_connections_are_more_than_requests_in_work_and_waiting() -> None:
    """Health checks find a connection even when everything else is taken."""
    assert ServerConfig(max_concurrency=4, max_queue=2).connection_limit() == 266


def test_connections_leave_descriptors_to_spare() -> None:
    """A limit above the process's own would make `accept` fail for ever."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = ServerConfig(max_concurrency=10_000_000).connection_limit()
    assert limit < soft


def test_the_server_reads_more_than_the_application_accepts() -> None:
    """The exact count of a body is the application's, in an answer of its own."""
    settings = ServerConfig(max_request_size=100 << 20).waitress_settings()
    assert settings["max_request_body_size"] == 400 << 20
    assert ServerConfig().waitress_settings()["max_request_body_size"] == 16 << 20


@pytest.mark.parametrize(
    "wrong",
    [{"max_concurrency": 0}, {"max_queue": -1}, {"max_request_size": 0}],
)
def test_senseless_limits_are_refused(wrong: dict[str, int]) -> None:
    """A server that could serve nothing is not built."""
    with pytest.raises(ValueError, match="must be"):
        ServerConfig(**wrong)  # type: ignore[arg-type]
