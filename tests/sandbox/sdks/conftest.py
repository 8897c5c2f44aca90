"""A platform for tests that drive it by published packages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    config = PlatformConfig(data_dir=folder, backend="process")
    with SandboxPlatform(config) as platform:
        yield platform
