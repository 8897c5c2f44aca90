"""A whole platform for tests, and a way to ask it things over HTTP."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import requests

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.support import SLOW

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BLUE", "RED", "Caller", "Cloud", "PlatformProcess", "remove_sockets"]

RED, BLUE = "sk_red_0123456789", "sk_blue_0123456789"


class Caller:
    """Asks a platform things over HTTP."""

    def __init__(self) -> None:
        self.http = requests.Session()
        self.http.trust_env = False

    @property
    def url(self) -> str:
        """Where the platform is."""
        raise LookupError("of no platform")

    def ask(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        key: str = RED,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> requests.Response:
        return self.http.request(
            method,
            self.url + path,
            json=json,
            headers={"X-API-KEY": key, **headers},
            timeout=30 * SLOW,
        )

    def agent(
        self, sandbox_id: str, path: str = "/ping", *, port: int = 8080, **more: Any
    ) -> requests.Response:
        headers = {"PPIO-Sandbox-Id": sandbox_id, "PPIO-Sandbox-Port": str(port)}
        return self.http.request(
            more.pop("method", "GET"),
            self.url + path,
            headers={**headers, **more.pop("headers", {})},
            timeout=30 * SLOW,
            **more,
        )

    def create(
        self, template: str = "base", *, once: str | None = None, **body: Any
    ) -> str:
        headers = {"Idempotency-Key": once} if once else {}
        asked = {"templateID": template, **body}
        response = self.ask("POST", "/sandboxes", asked, headers=headers)
        assert response.status_code == 201, response.text
        return str(response.json()["sandboxID"])


class Cloud(Caller):
    """A running platform and a way to ask it things over HTTP.

    Its backend is `process`, which is there everywhere, unless a setting says otherwise.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__()
        settings.setdefault("backend", "process")
        self.folder = folder
        self.config = PlatformConfig(
            data_dir=folder / "data", keys={RED: "red", BLUE: "blue"}, **settings
        )
        self.platform = SandboxPlatform(self.config).start()

    @property
    def url(self) -> str:
        return self.platform.url

    def deploy(self, name: str, text: str = HTTP_AGENT) -> str:
        folder = write_agent(self.folder / "src", name, {"app.py": text})
        return self.platform.deploy(folder, api_key=RED).template_id

    def close(self) -> None:
        self.http.close()
        self.platform.close()


def remove_sockets(data: Path) -> None:
    """Remove what a platform that was killed has left outside its data directory."""
    with suppress(FileNotFoundError):
        shutil.rmtree((data / "sockets").read_text())


_PROGRAM = """
import json, sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

settings = json.loads(sys.argv[2])
config = PlatformConfig(data_dir=Path(sys.argv[1]), **settings)
with SandboxPlatform(config) as platform:
    for folder in sys.argv[3:]:
        platform.deploy(folder)
    print(platform.url, flush=True)
    sys.stdin.read()
"""


class PlatformProcess(Caller):
    """A platform in a process of its own, to be killed and started again.

    Args:
        folder: Its data directory is in it.
        agents: Folders that it deploys.
        settings: Of the platform.
    """

    def __init__(self, folder: Path, *agents: Path, **settings: Any) -> None:
        super().__init__()
        self.data = folder / "data"
        self._arguments = [
            sys.executable,
            "-c",
            _PROGRAM,
            str(self.data),
            json.dumps({"keys": {RED: "red"}, **settings}),
            *map(str, agents),
        ]
        self._process: subprocess.Popen[str] | None = None
        self._url = ""
        self.pids: list[int] = []

    @property
    def url(self) -> str:
        return self._url

    def start(self) -> Self:
        """Start it; return when it listens."""
        process = self._process = subprocess.Popen(
            self._arguments,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        self.pids.append(process.pid)
        self._url = process.stdout.readline().strip()
        if not self._url:
            self.kill()
            raise AssertionError("the platform did not start")
        return self

    @property
    def pid(self) -> int:
        """Its process."""
        return self.pids[-1]

    def kill(self) -> None:
        """End it with SIGKILL. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def discard(self) -> None:
        """End it for good: no other platform comes after it. Idempotent."""
        self.kill()
        self.http.close()
        remove_sockets(self.data)

    def close(self) -> None:
        """End it as a program ends, and check that it does."""
        process, self._process = self._process, None
        self.http.close()
        if process is not None:
            process.communicate(timeout=20 * SLOW)
            assert process.returncode == 0
