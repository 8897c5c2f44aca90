"""A whole platform for tests, and a way to ask it things over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.support import SLOW

__all__ = ["BLUE", "RED", "Cloud"]

RED, BLUE = "sk_red_0123456789", "sk_blue_0123456789"


class Cloud:
    """A running platform and a way to ask it things over HTTP."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.config = PlatformConfig(
            data_dir=folder / "data", keys={RED: "red", BLUE: "blue"}, **settings
        )
        self.platform = SandboxPlatform(self.config).start()
        self.http = requests.Session()
        self.http.trust_env = False

    def ask(
        self, method: str, path: str, json: Any = None, *, key: str = RED
    ) -> requests.Response:
        return self.http.request(
            method,
            self.platform.url + path,
            json=json,
            headers={"X-API-KEY": key},
            timeout=30 * SLOW,
        )

    def agent(
        self, sandbox_id: str, path: str = "/ping", *, port: int = 8080, **more: Any
    ) -> requests.Response:
        headers = {"PPIO-Sandbox-Id": sandbox_id, "PPIO-Sandbox-Port": str(port)}
        return self.http.request(
            more.pop("method", "GET"),
            self.platform.url + path,
            headers={**headers, **more.pop("headers", {})},
            timeout=30 * SLOW,
            **more,
        )

    def deploy(self, name: str, text: str = HTTP_AGENT) -> str:
        folder = write_agent(self.folder / "src", name, {"app.py": text})
        return self.platform.deploy(folder, api_key=RED).template_id

    def create(self, template: str = "base", **body: Any) -> str:
        response = self.ask("POST", "/sandboxes", {"templateID": template, **body})
        assert response.status_code == 201, response.text
        return str(response.json()["sandboxID"])

    def close(self) -> None:
        self.http.close()
        self.platform.close()
