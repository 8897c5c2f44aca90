"""The platform as a plug-in: found or started, and templates from a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.hooks import Hooks
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform, plugin
from ppio_agent.sandbox.plugin import TemplateFolder
from tests.sandbox.agents import write_agent
from tests.support import processes_marked

ROOT = Path(__file__).parents[2]

ASK = """
import sys, json, threading, urllib.request
from ppio_agent.hooks import Hooks
assert "ppio_agent.sandbox.platform" not in sys.modules
hooks = Hooks.load(entry_points=False)
before = hooks.default_platform(None)
found = [hooks.default_platform("a client") for _ in range(2)]
assert hooks.default_platform(None) == found[0]
url, key = found[0]
health = urllib.request.urlopen(url + "/platform/v1/healthz").status
create = urllib.request.Request(
    url + "/sandboxes", b"{}", {"X-API-KEY": key, "Content-Type": "application/json"}
)
sandbox = json.load(urllib.request.urlopen(create))["sandboxID"]
print(json.dumps({"before": before, "found": found, "health": health, "sandbox": sandbox}))
"""


def _ask(data_dir: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK)],
        env={"PATH": "/usr/bin:/bin", "PPIO_DATA_DIR": str(data_dir)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_platform_is_started_once_and_closed_with_the_process(tmp_path: Path) -> None:
    found = _ask(tmp_path)

    assert found["before"] is None, "only a client has one started"
    assert found["health"] == 204
    assert found["found"][0] == found["found"][1]
    assert list(processes_marked(f"PPIO_SANDBOX_ID={found['sandbox']}")) == []
    assert list((tmp_path / "platform" / "sandboxes").iterdir()) == []
    assert not (tmp_path / "platform" / "platform.json").exists()


def test_one_that_runs_already_is_used(tmp_path: Path) -> None:
    config = PlatformConfig(data_dir=tmp_path / "platform")
    with SandboxPlatform(config) as platform:
        found = _ask(tmp_path)

        assert found["before"] == [platform.url, platform.api_key]
        assert found["found"] == [found["before"]] * 2
        assert [s.id for s in platform.sandboxes.list_sandboxes()] == [found["sandbox"]]


def test_a_child_forked_while_one_is_started_asks_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that another thread of the parent holds is not waited for."""
    monkeypatch.setenv("PPIO_DATA_DIR", str(tmp_path))
    with plugin._embedded.lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(plugin.ppio_default_platform(None) is not None)
    assert os.waitpid(child, 0)[1] == 0


def test_a_template_is_found_by_the_name_in_its_manifest(tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "bot")
    folder.rename(tmp_path / "any-folder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / ".ppio-agent.yaml").write_text("name: [")
    hooks = Hooks.load([TemplateFolder(tmp_path)], entry_points=False)

    assert hooks.find_template("bot") == tmp_path / "any-folder"
    assert hooks.find_template("any-folder") is None
    assert hooks.find_template("../bot") is None
