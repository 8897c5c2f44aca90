"""An agent that spoils its own folder harms neither its limits nor the platform."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppio_agent.sandbox.config import PlatformConfig
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.platform import SandboxPlatform
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.support import needs_program, wait_until

_SPOILER = """\
import os
inside = "/var/log/ppio"
logs = inside if os.path.isdir(inside) else os.path.abspath("../logs")
os.mkfifo(f"{logs}/agent.log")
print("told to nobody", flush=True)
os.chmod(logs, 0)
start = os.getcwd()
os.chdir(os.environ["HOME"])
for _ in range(200):
    os.mkdir("deep")
    os.chdir("deep")
os.chdir(start)
"""


@pytest.mark.parametrize("backend", ["process", "bubblewrap"])
def test_what_an_agent_makes_of_its_folder_is_no_obstacle(
    tmp_path: Path, backend: str
) -> None:
    """Neither to whoever looks after it, nor to its end, nor to the next start."""
    if backend == "bubblewrap":
        needs_program("bwrap")
    agent = write_agent(tmp_path, "spoiler", {"app.py": _SPOILER + HTTP_AGENT})
    config = PlatformConfig(
        data_dir=tmp_path / "data", keys={"sk_red": "red"}, backend=backend, warm=0
    )
    with SandboxPlatform(config) as platform:
        platform.deploy(agent, api_key="sk_red")
        sandbox = platform.sandboxes.create(
            CreateOptions(template="spoiler"), tenant="red"
        )
        wait_until(lambda: sandbox.agent.phase == "ready", timeout=20)
        assert sandbox.processes().usage().processes > 0
        platform.sandboxes.kill(sandbox.id)

        assert os.listdir(tmp_path / "data" / "sandboxes") == []
    with SandboxPlatform(config) as platform:
        assert platform.sandboxes.list_sandboxes() == []
