"""Fixtures of the tests of the edge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.edge.server import Edge
from tests.sandbox.edge.edgekit import Scripted, serving


@pytest.fixture
def upstreams() -> Scripted:
    """What is behind the edge: it does what a test scripts."""
    return Scripted()


@pytest.fixture
def edge(upstreams: Scripted) -> Iterator[Edge]:
    """An edge with its usual limits; a file that needs others has its own."""
    with serving(upstreams) as edge:
        yield edge
