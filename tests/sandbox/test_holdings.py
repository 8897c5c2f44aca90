"""What is there without a platform: templates, and what a crash left of sandboxes."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from ppio_agent.sandbox.datadir import DataDir, read_running
from ppio_agent.sandbox.holdings import builds_in_use, open_data, open_templates
from ppio_agent.sandbox.life import recovery
from ppio_agent.sandbox.life.ended import SANDBOX_ROW
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.templates import store as templates_store
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.storage import Put, open_store
from tests.sandbox.agents import write_agent
from tests.sandbox.fakes import FakeBackend
from tests.sandbox.rig import PlatformRig
from tests.support import wait_until

KEY = "a" * 64


@pytest.fixture
def crashed(tmp_path: Path) -> DataDir:
    """A directory with a sandbox that a crash left, in an environment of its own."""
    rig = PlatformRig(tmp_path)
    sandbox = rig.sandboxes.create(CreateOptions(template="echo"), tenant="red")
    body: Any = rig.store.scan(SANDBOX_ROW)[0].body
    body["build"]["environment"] = KEY
    rig.close()
    data = DataDir(tmp_path / "platform")
    with open_data(data) as store:
        open_templates(data, store, wheels_only=False)
        store.write(Put(SANDBOX_ROW, sandbox.id, body))
    (data.environments / KEY).mkdir()
    return data


def test_templates_are_worked_on_around_what_a_crash_left(
    crashed: DataDir, tmp_path: Path
) -> None:
    """Its agent may be started again, by the platform that takes it up."""
    folder = write_agent(tmp_path / "mine", "bot")
    with open_data(crashed) as store:
        templates = open_templates(crashed, store, wheels_only=False)
        templates.deploy(FolderSource.of(folder))
        templates.delete("bot")

    assert (crashed.environments / KEY).is_dir()


def test_a_platform_that_does_not_stay_is_not_there_for_others(
    crashed: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tidies nothing up, and nobody comes to rely on it."""
    monkeypatch.setattr(recovery, "_SWEEP_EVERY", 0.05)
    monkeypatch.setattr(templates_store, "_COLLECT_EVERY", timedelta())
    half_made = crashed.environments / "new-1"
    half_made.mkdir()
    config = PlatformConfig(data_dir=crashed.path)
    with SandboxPlatform(config, backend=FakeBackend(), stays=False):
        assert read_running(crashed.path) is None
        assert half_made.is_dir()
        assert (crashed.environments / KEY).is_dir()
    with open_data(crashed) as store:
        assert builds_in_use(store).keys() != set()

    with SandboxPlatform(config, backend=FakeBackend()) as platform:
        running = read_running(crashed.path)
        assert running is not None
        assert running.url == platform.url
        # In use until it is known that the sandbox is lost.
        wait_until(lambda: not list(crashed.environments.iterdir()))


def test_builds_are_in_use_as_long_as_their_sandboxes_live(tmp_path: Path) -> None:
    rig = PlatformRig(tmp_path)
    sandbox = rig.sandboxes.create(CreateOptions(template="echo"), tenant="red")

    assert builds_in_use(rig.store).keys() == {rig.echo.latest.id}
    rig.sandboxes.kill(sandbox.id)
    assert builds_in_use(rig.store) == {}
    rig.close()


def test_a_row_of_another_version_uses_nothing() -> None:
    store = open_store("memory://")
    store.write(Put(SANDBOX_ROW, "x", {"of": "long ago"}))

    assert builds_in_use(store) == {}
