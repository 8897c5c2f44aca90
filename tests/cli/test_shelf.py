"""Commands where no platform runs: what they work on, wait for, and leave alone."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.sandbox import SandboxPlatform, datadir, holdings, plugin
from ppio_agent.sandbox.backends import bubblewrap
from ppio_agent.sandbox.datadir import DataDir, Running
from ppio_agent.sandbox.holdings import open_templates
from ppio_agent.sandbox.templates.store import Templates
from tests.cli.clikit import AGENT, Command
from tests.support import write_agent


@pytest.fixture(autouse=True)
def data(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[DataDir]:
    """The default data directory, on which no platform runs."""
    monkeypatch.delenv("PPIO_API_URL")
    monkeypatch.delenv("PPIO_API_KEY")
    monkeypatch.setenv("PPIO_DATA_DIR", str(tmp_path / "home"))
    monkeypatch.setattr(plugin._embedded, "platform", None)
    data = DataDir(tmp_path / "home" / "platform")
    yield data
    data.release()


def _no_start(self: SandboxPlatform) -> SandboxPlatform:
    raise AssertionError(f"{self} was started")


def test_templates_need_no_platform(
    command: Command, monkeypatch: pytest.MonkeyPatch, data: DataDir
) -> None:
    """Deployed, listed, shown and deleted as on one that runs, and none is started."""
    monkeypatch.setattr(SandboxPlatform, "start", _no_start)
    write_agent(Path("t"), AGENT, name="stored")
    deployed = json.loads(command("deploy", "t", "--json").out)
    assert command("deploy", "t").status == 0
    assert f"template_id: {deployed['templateID']}" in Path(
        "t/.ppio-agent.yaml"
    ).read_text().replace('"', "")
    assert "stored" in command("templates", "list").out
    (build,) = json.loads(command("templates", "get", "stored").out)["builds"]
    assert (build["version"], build["buildID"]) == ("1.0.0", deployed["buildID"])
    assert command("templates", "delete", "base").status == 2
    assert command("templates", "delete", "stored").status == 0
    assert command("templates", "get", "stored").status == 4
    assert not (data.path / "platform.json").exists()


@pytest.mark.parametrize("contained", [False, True])
def test_requirements_are_installed_as_a_platform_here_would(
    command: Command, monkeypatch: pytest.MonkeyPatch, contained: bool
) -> None:
    """Only wheels where agents are kept apart: others run code as they are installed."""
    seen: list[bool] = []

    def opening(*args: Any, wheels_only: bool) -> Templates:
        seen.append(wheels_only)
        return open_templates(*args, wheels_only=wheels_only)

    check = bubblewrap.Check("bwrap", contained, "")
    monkeypatch.setattr(bubblewrap, "diagnose", lambda: [check])
    monkeypatch.setattr(holdings, "open_templates", opening)
    write_agent(Path("r"), AGENT)
    assert command("deploy", "r", "--install").status == 0
    monkeypatch.setenv("PPIO_PLATFORM_BACKEND", "process")
    assert command("deploy", "r", "--install").status == 0

    assert seen == [contained, False]


@pytest.mark.parametrize(
    "argv",
    [("sandboxes", "list"), ("logs", "a" * 20), ("invoke", "--keep", "any", "hi")],
)
def test_what_a_platform_alone_knows_or_keeps_needs_one(
    command: Command, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...]
) -> None:
    """None is started to be asked: it would know of nothing, and keep nothing."""
    monkeypatch.setattr(SandboxPlatform, "start", _no_start)
    done = command(*argv)
    assert done.status == 5
    assert done.err == "error: no platform runs: start one with ppio-agent up\n"


def test_a_key_without_an_address_is_that_of_the_platform_here_or_a_mistake(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    data: DataDir,
    platform: SandboxPlatform,
) -> None:
    """Clients take it to the cloud: a command must not work on this machine instead."""
    monkeypatch.setenv("PPIO_API_KEY", "sk-of-the-cloud")
    for argv in (["templates", "list"], ["invoke", "any", "hi"], ["sandboxes", "list"]):
        done = command(*argv)
        assert (done.status, done.out) == (2, "")
        assert "PPIO_API_URL is not; set the address" in done.err
    running = Running(url=platform.url, pid=os.getpid(), api_key=platform.api_key)
    data.acquire()
    data.announce(running)
    assert command("templates", "list").status == 2
    monkeypatch.setenv("PPIO_API_KEY", platform.api_key)
    assert command("templates", "list").status == 0


def test_commands_wait_for_one_another(command: Command, data: DataDir) -> None:
    """Who works on the data directory is soon done with it."""
    data.acquire()
    timer = threading.Timer(0.1, data.release)
    timer.start()
    done = command("templates", "list")
    timer.join()
    assert (done.status, done.err) == (0, "")


@pytest.mark.parametrize("argv", [("templates", "list"), ("invoke", "any", "hi")])
def test_a_command_that_takes_long_is_told_of(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    data: DataDir,
    argv: tuple[str, ...],
) -> None:
    """Status 3, and what to do."""
    monkeypatch.setattr(datadir, "_WAIT", 0.05)
    data.acquire()
    done = command(*argv)
    assert done.status == 3
    assert "try again when it is done" in done.err


def test_a_platform_that_is_just_starting_is_used(
    command: Command, data: DataDir, platform: SandboxPlatform
) -> None:
    """The command waits until it is announced, and asks it."""
    write_agent(Path("t"), AGENT, name="over-there")
    platform.deploy("t")
    running = Running(url=platform.url, pid=os.getpid(), api_key=platform.api_key)
    data.acquire()
    timer = threading.Timer(0.1, data.announce, [running])
    timer.start()
    done = command("templates", "list")
    timer.join()
    assert done.status == 0, done.err
    assert "over-there" in done.out
