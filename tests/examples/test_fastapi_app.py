"""The FastAPI example, as uvicorn runs it, with a real platform behind it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent import SandboxPlatform
from tests.support import SLOW, wait_until, write_agent

EXAMPLES = Path(__file__).parents[2] / "examples"
AGENT = """
    import threading
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()
    asked = []

    @app.entrypoint
    def agent(request):
        asked.append(request["prompt"])
        if request["prompt"] == "fail":
            raise RuntimeError("a secret of the site")
        if request["prompt"] == "endless":
            return ticks()
        return f"{len(asked)}: {request['prompt']}"

    def ticks():
        while True:
            yield "tick"
            threading.Event().wait(0.02)

    if __name__ == "__main__":
        app.run()
"""


class Site:
    def __init__(self, port: int) -> None:
        self._port = port

    def post(self, path: str, body: object) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", path, json.dumps(body), headers)
        return connection.getresponse()

    def ask(self, message: str, **rest: object) -> tuple[int, Any]:
        with self.post("/chat", {"message": message, **rest}) as answer:
            return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def site(
    platform: SandboxPlatform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("fastapi")
    platform.deploy(write_agent(folder / "agent", AGENT, name="fastapi-chat"))
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", "0"],
        cwd=EXAMPLES,
        env={
            **os.environ,
            "PPIO_API_URL": platform.url,
            "PPIO_API_KEY": platform.api_key,
            "CHAT_AGENT": "fastapi-chat",
        },
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    said = ""
    assert process.stderr is not None
    try:
        for line in process.stderr:
            said += line
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                yield Site(int(found[1]))
                break
        else:
            raise AssertionError(said)
    finally:
        process.terminate()
        said += process.stderr.read()
        process.wait(20)
        process.stderr.close()
    # The site's end is clean: nothing was destroyed, and no sandbox is left.
    assert "Traceback" not in said
    assert "was destroyed" not in said
    assert platform.sandboxes.list_sandboxes() == []


def test_a_visitor_who_leaves_ends_the_run(
    site: Site, platform: SandboxPlatform
) -> None:
    """The sandbox of the endless answer is gone soon after the visitor."""
    before = len(platform.sandboxes.list_sandboxes())
    answer = site.post("/chat/stream", {"message": "endless"})
    assert any(b"tick" in line for line in answer)
    assert len(platform.sandboxes.list_sandboxes()) == before + 1
    answer.close()
    wait_until(
        lambda: len(platform.sandboxes.list_sandboxes()) == before,
        timeout=5 * SLOW,
        what="the sandbox to end",
    )


def test_answers(site: Site) -> None:
    """One question alone, and two of a conversation, whose sandbox remembers."""
    assert site.ask("hello") == (200, {"response": "1: hello"})
    assert site.ask("one", conversation="c")[1] == {"response": "1: one"}
    assert site.ask("two", conversation="c")[1] == {"response": "2: two"}


def test_tells_errors(site: Site) -> None:
    """By status and code; what the agent said of itself stays on the server."""
    status, problem = site.ask("fail")
    assert (status, problem["code"]) == (502, "invocation_failed")
    assert "secret" not in json.dumps(problem)
    assert site.ask("")[0] == 422
    assert site.ask("x", conversation="no id")[0] == 400


def test_streams(site: Site) -> None:
    """The events of an answer, and its end."""
    with site.post("/chat/stream", {"message": "hello"}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        text = answer.read().decode()
    assert 'data: "1: hello"' in text
    assert "event: end" in text
