"""Fixtures of the tests of the local platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.sandboxkit import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A process backend; its sandboxes end with the test, and none may be left."""
    lab = Lab(tmp_path)
    yield lab
    lab.close()
