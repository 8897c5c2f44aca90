"""The Celery example: a prefork worker on a real Redis, agents on a real platform."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppio_agent import PlatformConfig, SandboxPlatform
from ppio_agent.client import AgentRuntimeClient
from tests.support import SLOW, wait_until, write_agent
from tests.support_redis import RedisServer

EXAMPLES = Path(__file__).parents[2] / "examples"
AGENT = """
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()
    asked = []

    @app.entrypoint
    def agent(request):
        asked.append(request["prompt"])
        if request["prompt"] == "fail":
            raise RuntimeError("no answer to that")
        return {"count": len(asked), "text": request["prompt"].upper()}

    if __name__ == "__main__":
        app.run()
"""
SANDBOXES = 2


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    """A platform on which no more than two sandboxes may live."""
    config = PlatformConfig(
        data_dir=tmp_path_factory.mktemp("platform"),
        max_sandboxes_per_tenant=SANDBOXES,
    )
    with SandboxPlatform(config) as running:
        folder = tmp_path_factory.mktemp("agent")
        running.deploy(write_agent(folder / "a", AGENT, name="celery-chat"))
        yield running


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield f"redis+socket://{server.path}"
    server.stop()


@pytest.fixture(scope="module")
def tasks(
    platform: SandboxPlatform,
    redis_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """The module of the example, whose tasks a worker with two children runs."""
    log = tmp_path_factory.mktemp("celery") / "log"
    environ = {
        "PPIO_API_URL": platform.url,
        "PPIO_API_KEY": platform.api_key,
        "CHAT_AGENT": "celery-chat",
        "REDIS_URL": redis_url,
    }
    command = [
        sys.executable, "-m", "celery", "-A", "celery_worker", "worker",
        "--concurrency", "2", "--pool", "prefork", "--loglevel", "INFO",
        "--without-gossip", "--without-mingle", "--without-heartbeat",
    ]  # fmt: skip
    with log.open("w") as output:
        worker = subprocess.Popen(
            command,
            cwd=EXAMPLES,
            env={**os.environ, **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(
                lambda: "ready." in log.read_text() or worker.poll() is not None,
                timeout=20,
                what="the worker to be ready",
            )
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("REDIS_URL", redis_url)
                yield _imported()
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(20)
    # Each child has ended what it had, and said nothing else.
    assert platform.sandboxes.list_sandboxes() == [], log.read_text()


def _imported() -> Any:
    spec = importlib.util.spec_from_file_location(
        "celery_worker", EXAMPLES / "celery_worker.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_task_asks_under_its_id() -> None:
    """So that one which the queue gives out twice runs the agent once."""
    module, keys = _imported(), []

    def invoke_agent(*_: object, idempotency_key: str, **__: object) -> Any:
        keys.append(idempotency_key)
        return SimpleNamespace(result="yes")

    module.agents = lambda: SimpleNamespace(invoke_agent=invoke_agent)
    for _ in range(2):
        assert module.ask.apply(["q"], task_id="task-1").get() == "yes"
    assert keys == ["task-1", "task-1"]


def test_tasks_call_an_agent(tasks: Any) -> None:
    """Both children answer, each by a client of its own; a failure is the task's."""
    answers = [tasks.ask.delay(f"q{n}") for n in range(3)]
    failed = tasks.ask.delay("fail")
    texts = [answer.get(timeout=20 * SLOW)["text"] for answer in answers]
    assert texts == ["Q0", "Q1", "Q2"]
    with pytest.raises(Exception, match="no answer to that"):
        failed.get(timeout=20 * SLOW)


def test_a_task_runs_a_batch(tasks: Any) -> None:
    """Two sandboxes answer all questions; one that fails is a failure of its own."""
    found = tasks.ask_many.delay(["a", "fail", "b", "c"]).get(timeout=20 * SLOW)
    assert [item.get("answer", {}).get("text") for item in found] == [
        "A",
        None,
        "B",
        "C",
    ]
    assert "no answer to that" in found[1]["error"]


def test_a_task_waits_for_its_turn(tasks: Any, platform: SandboxPlatform) -> None:
    """Refused by the platform's limit, it is tried again when there is room."""
    with AgentRuntimeClient(platform.api_key, base_url=platform.url) as client:
        for _ in range(SANDBOXES):
            client.create_session("celery-chat", 2.0)  # seconds until it ends
        task = tasks.ask.delay("later")
        wait_until(lambda: task.state == "RETRY", timeout=20, what="the first refusal")
        # What it is told to wait is the time until the next sandbox ends.
        assert task.get(timeout=20 * SLOW)["text"] == "LATER"
        assert task.retries >= 1
