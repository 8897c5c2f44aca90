"""Every example runs as its reader would run it."""

from __future__ import annotations

import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from ppio_agent.cli.agent import load_app
from tests.serving.hosts import gunicorn
from tests.support import processes_marked, wait_until
from tests.support_net import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
AGENTS = EXAMPLES / "agent_runtime"
MOUNTED = EXAMPLES / "mounted"


def _clean_environment(data_dir: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
    return {**kept, "PPIO_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}


@contextmanager
def _served(script: str) -> Iterator[str]:
    """Run an agent's script as the platform would; give the URL of it."""
    port = free_port()
    environment = {**os.environ, "PPIO_SANDBOX_ID": "example", "PORT": str(port)}
    process = subprocess.Popen([sys.executable, AGENTS / script], env=environment)
    try:
        wait_until(lambda: _answers(port), timeout=20, what=f"{script} to listen")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _post(url: str, body: object, **headers: str) -> str:
    request = Request(
        f"{url}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
    )
    with urlopen(request, timeout=20) as answer:
        text: str = answer.read().decode()
    return text


def test_the_simple_agent_answers() -> None:
    """The smallest agent serves its function and its health check."""
    with _served("simple_agent.py") as url:
        envelope = json.loads(_post(url, {"query": "hello"}))
        assert envelope["status"] == "success"
        assert envelope["result"]["response"] == "Processed: hello"
        with urlopen(f"{url}/ping", timeout=20) as answer:
            assert json.loads(answer.read())["service"] == "My Agent"


def test_the_streaming_agent_streams() -> None:
    """Both dialects come from one generator."""
    with _served("streaming_agent.py") as url:
        bare = _post(url, {"chunks": 2})
        full = _post(url, {"chunks": 2}, Accept="text/event-stream")
    assert [line for line in bare.splitlines() if line.startswith("data")] == [
        'data: "Chunk 1"',
        'data: "Chunk 2"',
    ]
    assert "event: end" in full


def test_the_sales_agent_adds_up() -> None:
    """Totals over the regions are the total, and a follow-up needs what came before."""
    app = load_app(str(AGENTS / "sales_agent" / "app.py"))
    with app.test_client() as client:

        def money(question: str) -> float:
            answer = client.invoke({"prompt": question}).result["answer"]
            return float(answer.replace(",", ""))

        parts = [money(f"total in the {r}") for r in ("north", "south", "east", "west")]
        assert sum(parts) == pytest.approx(money("total"))
        best = client.invoke({"prompt": "best sellers in the north in 2025"}).result
        again = client.invoke({"prompt": "and in the south?"}).result
        assert best["scope"] == "2025, north"
        assert again["scope"] == "2025, south"
        months = client.invoke({"prompt": "sales by month in 2024"}).result["answer"]
        assert months.count(";") == 11
        refused = client.invoke({"prompt": "total in 1999"})
        assert refused.status_code == 500
        assert "the table covers 2024 to 2025" in refused.error


def _through(url: str, expected: list[str]) -> None:
    """Check a site's page, and the agent in it."""
    with urlopen(f"{url}/", timeout=20) as page:
        assert page.read().decode() == "The agent says: WELCOME"
    assert json.loads(_post(f"{url}/agent", {"prompt": "hi"}))["result"] == "HI"
    with urlopen(f"{url}/agent/", timeout=20) as answer:
        assert json.loads(answer.read())["entrypoints"] == expected


@pytest.mark.parametrize(
    ("name", "entrypoints"),
    [("flask_site", ["shout", "spell"]), ("django_site", ["shout"])],
)
def test_a_site_with_an_agent_answers(
    name: str, entrypoints: list[str], tmp_path: Path
) -> None:
    """By its own server, and under gunicorn."""
    port = free_port()
    environment = {**os.environ, "PPIO_AGENT_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, MOUNTED / f"{name}.py"], env=environment
    )
    try:
        wait_until(lambda: _answers(port), timeout=20, what=f"{name} to listen")
        _through(f"http://127.0.0.1:{port}", entrypoints)
    finally:
        process.terminate()
        assert process.wait(20) == 0
    options = ("--threads", "4", "--chdir", str(MOUNTED))
    with gunicorn(f"{name}:application", tmp_path, *options) as host:
        _through(f"http://127.0.0.1:{host.port}", entrypoints)


def test_the_client_example_runs(tmp_path: Path) -> None:
    """The four ways of calling an agent, on the local platform."""
    done = subprocess.run(
        [sys.executable, AGENTS / "client_example.py"],
        env=_clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "and in the south?" in done.stdout
    assert "  all regions: " in done.stdout
    assert "template: " in done.stdout
    assert "agent: no sales for 1999" in done.stdout


def test_the_demo_runs() -> None:
    """The main job, end to end, and nothing is left."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 processes of sandboxes are left" in done.stdout
    assert "CPU 0.00 s" in done.stdout


@pytest.mark.parametrize(
    "moment", ["deployed", "created a session", "resumed", "asked for a template"]
)
def test_a_killed_demo_leaves_no_process(moment: str, tmp_path: Path) -> None:
    """kill -9 of the program in which the platform lives ends every sandbox."""
    marker = f"PPIO_DEMO_MARK={tmp_path.name}"
    name, _, value = marker.partition("=")
    environment = {**_clean_environment(tmp_path), name: value, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, EXAMPLES / "demo.py"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if moment in line:
                break
        process.kill()
        process.stdout.read()
    # The sandboxes' environment is not inherited; their folders name the platform.
    wait_until(
        lambda: not list(processes_marked(str(tmp_path))),
        timeout=40,
        what="every process of the demo to end",
    )


ACTORS = EXAMPLES / "actors"
_SAID = {
    "example": ["echo/monday: And tomorrow? -> Echo: And tomorrow?", "mock-ai/tuesday: "],
    "conversation": ["table 1: that is 7", ": there is no fish on the menu", "  user: cake"],
    "streaming": ["3 line 3 about the sea", "cancelled", "again: line 2 about the sea"],
    "asking": ["will: 4 words: fine", "stan: no draft (deadlock)"],
    "reminders": ["hears: planted", "hears: drunk 2"],
    "durable": [
        "the first process ended by signal 9",
        "deposit of 20: {'balance': 30, 'attempt': 2}",
        "deposit of 30: {'balance': 60, 'attempt': 1}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", _SAID)
def test_the_examples_of_actors_run(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says what its reader is told to expect."""
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(ACTORS / f"{name}.py"), run_name="__main__")
    output = capfd.readouterr().out
    assert [line for line in _SAID[name] if line not in output] == []


def test_every_example_of_actors_is_run() -> None:
    """None is forgotten above."""
    assert sorted(path.stem for path in ACTORS.glob("*.py")) == sorted(_SAID)
