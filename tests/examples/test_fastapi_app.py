"""The FastAPI example, as uvicorn runs it, with a real platform behind it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
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
        if request["prompt"] == "who left?":
            return asked.count("left")
        if request["prompt"] == "endless":
            return ticks()
        return f"{len(asked)}: {request['prompt']}"

    def ticks():
        try:
            while True:
                yield "tick"
                threading.Event().wait(0.02)
        finally:
            asked.append("left")

    if __name__ == "__main__":
        app.run()
"""


class Visitor:
    """Keeps the cookie that it is given."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.cookie = ""

    def post(self, path: str, body: object) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if self.cookie:
            headers["Cookie"] = self.cookie.partition(";")[0]
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        self.cookie = answer.headers.get("Set-Cookie", self.cookie)
        return answer

    def ask(self, message: str, **rest: object) -> tuple[int, Any]:
        with self.post("/chat", {"message": message, **rest}) as answer:
            return answer.status, json.loads(answer.read())


@pytest.fixture(scope="module")
def site(
    platform: SandboxPlatform, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Visitor]]:
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
            "SITE_SECRET_KEY": "a secret of the tests",
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
                yield partial(Visitor, int(found[1]))
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


def test_a_visitor_who_leaves_ends_the_run(site: Callable[[], Visitor]) -> None:
    """The agent's code stops; the conversation is there when the visitor is back."""
    visitor = site()
    answer = visitor.post("/chat/stream", {"message": "endless"})
    assert any(b"tick" in line for line in answer)
    answer.close()
    wait_until(
        lambda: visitor.ask("who left?") == (200, {"response": 1}),
        timeout=5 * SLOW,
        what="the run to end",
    )


def test_a_visitor_has_a_conversation(site: Callable[[], Visitor]) -> None:
    """Its id is the site's choice, in a signed cookie that no script reads."""
    ann, bob = site(), site()
    assert ann.ask("one") == (200, {"response": "1: one"})
    assert ann.ask("two") == (200, {"response": "2: two"})
    assert bob.ask("hello", conversation="c")[1] == {"response": "1: hello"}
    assert "httponly" in ann.cookie.lower()
    name, _, value = ann.cookie.partition(";")[0].partition("=")
    bob.cookie = f"{name}={'A' if value[0] != 'A' else 'B'}{value[1:]}"
    assert bob.ask("hello")[1] == {"response": "1: hello"}


def test_tells_errors(site: Callable[[], Visitor]) -> None:
    """By status and code; what the agent said of itself stays on the server."""
    visitor = site()
    status, problem = visitor.ask("fail")
    assert (status, problem["code"]) == (502, "invocation_failed")
    assert "secret" not in json.dumps(problem)
    assert visitor.ask("")[0] == 422


def test_streams(site: Callable[[], Visitor]) -> None:
    """The events of an answer, and its end."""
    with site().post("/chat/stream", {"message": "hello"}) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        text = answer.read().decode()
    assert 'data: "1: hello"' in text
    assert "event: end" in text
