"""The control plane's application on a fake backend, and how it is asked."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ppio_agent.sandbox.control import Control, create_app
from ppio_agent.sandbox.control.views import Viewer
from ppio_agent.sandbox.keys import KeyRing
from ppio_agent.sandbox.metrics import Metrics
from tests.sandbox.rig import PlatformRig

__all__ = ["BLUE", "RED", "Wire", "assert_refused"]

RED = {"X-API-KEY": "sk_red"}
BLUE = {"Authorization": "Bearer sk_blue"}


class Wire:
    """Sends requests to the application."""

    def __init__(self, rig: PlatformRig) -> None:
        self.rig = rig
        uploads = rig.folder / "uploads"
        uploads.mkdir()
        self.metrics = Metrics(rig.sandboxes.list_sandboxes)
        self.control = Control(
            config=rig.config,
            keys=KeyRing(rig.config.keys),
            templates=rig.templates,
            sandboxes=rig.sandboxes,
            metrics=self.metrics,
            viewer=Viewer(
                domain=lambda _: "sandbox.test", url=lambda: "http://127.0.0.1:1"
            ),
            status=lambda _: {"version": "1"},
            uploads=uploads,
        )
        self.app = create_app(self.control)

    def ask(
        self, method: str, path: str, json: Any = None, **more: Any
    ) -> TestResponse:
        client: FlaskClient = self.app.test_client()
        more.setdefault("headers", RED)
        return client.open(path, method=method, json=json, **more)

    def create(self, **body: Any) -> str:
        response = self.ask("POST", "/sandboxes", {"templateID": "echo", **body})
        assert response.status_code == 201, response.text
        return str(response.json["sandboxID"])  # type: ignore[index]


def assert_refused(response: TestResponse, status: int, message: str = "") -> None:
    """Assert that an answer is a refusal in the one form clients can read."""
    assert response.status_code == status, response.text
    assert response.content_type == "application/json"
    assert response.json is not None
    assert response.json["code"] == status
    assert isinstance(response.json["message"], str)
    assert message in response.json["message"]
