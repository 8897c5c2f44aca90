"""Fixtures of the tests of the local platform."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.sandbox.backends.zygote_client import ZygoteClient
from tests.sandbox.cloud import Cloud
from tests.sandbox.sandboxkit import Lab
from tests.support import SLOW, wait_until


@pytest.fixture(scope="session")
def zygote() -> Iterator[ZygoteClient]:
    """A zygote that is there, for all tests of the process."""
    client = ZygoteClient()
    assert client.wait_ready(20 * SLOW)
    yield client
    client.close()


@pytest.fixture
def warm_lab(tmp_path: Path, zygote: ZygoteClient) -> Iterator[Lab]:
    """Like `lab`, with supervisors and agents that are forks."""
    lab = Lab(tmp_path, zygote)
    yield lab
    lab.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A process backend; its sandboxes end with the test, and none may be left."""
    lab = Lab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A running platform with the template `echo`."""
    made = Cloud(tmp_path_factory.mktemp("cloud"))
    made.deploy("echo")
    yield made
    made.close()


@pytest.fixture
def cloud(shared: Cloud) -> Iterator[Cloud]:
    """The platform of the module, without sandboxes before and after."""
    yield shared
    for sandbox in shared.platform.sandboxes.list_sandboxes():
        shared.platform.sandboxes.kill(sandbox.id)
    # One whose time was over is not found from the moment its end begins.
    folder = shared.folder / "data" / "sandboxes"
    wait_until(lambda: list(folder.iterdir()) == [])
