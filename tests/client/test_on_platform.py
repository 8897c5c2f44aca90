"""The client against the real thing: local platform, sandbox processes, our own app."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig, SessionState, pool
from ppio_agent.exceptions import (
    InvocationError,
    PPIOAgentError,
    SandboxCreationError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.support import SLOW, processes_marked, wait_until, write_agent

from .support_streams import CuttingRelay

AGENT = """
import os, threading
from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()
count = 0


@app.entrypoint
def agent(request, context):
    global count
    count += 1
    if "words" in request:
        return stream(request)
    if request.get("fail"):
        raise KeyError("no such city")
    if "sleep" in request:
        threading.Event().wait(request["sleep"])
    if "variable" in request:
        return {"variable": os.environ.get(request["variable"])}
    return {"count": count, "prompt": request.get("prompt"), "session": context.session_id}


def stream(request):
    for word in request["words"]:
        if word == "boom":
            raise RuntimeError("lost my words")
        if word == "silence":
            threading.Event().wait(30)
        yield word


if __name__ == "__main__":
    app.run()
"""
BROKEN = "import sys\nprint('cannot find my model')\nsys.exit(1)\n"
NEVER_READY = "import threading\nthreading.Event().wait(60)\n"

MANIFEST = """
apiVersion: v1
kind: Agent
metadata:
  name: {name}
  version: 1.0.0
  author: me@example.com
  tags: [test]
spec:
  entrypoint: app.py
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    folder = tmp_path_factory.mktemp("platform")
    config = PlatformConfig(data_dir=folder / "data", port=0, backend="process")
    with SandboxPlatform(config) as platform:
        scripts = {
            "counter": AGENT,
            "counter-too": AGENT,
            "broken": BROKEN,
            "never-ready": NEVER_READY,
        }
        for name, script in scripts.items():
            _deploy(platform, folder / name, name, script)
        yield platform


def _deploy(platform: SandboxPlatform, folder: Path, name: str, script: str) -> None:
    folder.mkdir()
    (folder / "app.py").write_text(script)
    (folder / ".ppio-agent.yaml").write_text(MANIFEST.format(name=name))
    platform.deploy(folder)


@pytest.fixture
def client(platform: SandboxPlatform) -> Iterator[AgentRuntimeClient]:
    config = ClientConfig(base_url=platform.url)
    with AgentRuntimeClient(platform.api_key, config=config) as client:
        yield client


@pytest.fixture(autouse=True)
def _leaves_no_sandbox(
    platform: SandboxPlatform, client: AgentRuntimeClient
) -> Iterator[None]:
    yield
    client.close()
    assert _alive(platform) == []


def _alive(platform: SandboxPlatform) -> list[str]:
    return [s.id for s in platform.sandboxes.list_sandboxes()]


def test_one_shot(client: AgentRuntimeClient, platform: SandboxPlatform) -> None:
    """A template by name, an answer, and nothing left."""
    response = client.invoke_agent("counter", "Hello")

    assert response.result["prompt"] == "Hello"
    assert response["result"]["count"] == 1
    assert response.invocation_id
    assert response.duration is not None
    assert _alive(platform) == []


def test_stream(client: AgentRuntimeClient) -> None:
    """Chunks in order, the closing record, a failure after the chunks."""
    words = ["one", "two\nlines", "", "drei ü"]
    stream = client.invoke_agent_stream("counter", {"words": words})
    chunks = list(stream)
    broken = client.invoke_agent_stream("counter", {"words": ["one", "boom"]})
    first = next(broken)
    with pytest.raises(InvocationError, match="lost my words") as caught:
        next(broken)

    assert chunks == words
    assert stream.final is not None
    assert stream.final["status"] == "succeeded"
    assert stream.last_event_id == "4"
    assert first == "one"
    assert caught.value.agent_error == "RuntimeError"


def test_a_streaming_agent_is_collected(client: AgentRuntimeClient) -> None:
    """invoke gives the whole text and its pieces."""
    response = client.invoke_agent("counter", {"words": ["a", "b"]})

    assert response.result == "ab"
    assert response.chunks == ("a", "b")


def test_agent_errors(client: AgentRuntimeClient) -> None:
    """The agent's own exception is named."""
    with pytest.raises(InvocationError, match="no such city") as caught:
        client.invoke_agent("counter", {"fail": True})

    assert caught.value.agent_error == "KeyError"
    assert caught.value.http_status == 500


def test_pause_and_resume(client: AgentRuntimeClient) -> None:
    """The agent's memory survives; a paused session sends nothing."""
    with client.create_session("counter") as session:
        session.invoke("a")
        session.pause()
        paused = session.get_status()
        with pytest.raises(InvocationError) as caught:
            session.invoke("b")
        session.resume()
        response = session.invoke("c")

    assert (paused.state, paused.sandbox_state) == (SessionState.PAUSED, "paused")
    assert caught.value.code == "session_paused"
    assert response.result["count"] == 2


def test_conversation_of_many_threads(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """Twenty first calls make one sandbox, and all are counted by one agent."""

    def call(_: int) -> int:
        result = client.invoke_agent("counter", "Hi", session_id="s").result
        assert result["session"] == "s"
        return int(result["count"])

    with ThreadPoolExecutor(20) as threads:
        counts = sorted(threads.map(call, range(20)))
    alive = _alive(platform)

    assert counts == list(range(1, 21))
    assert len(alive) == 1


def test_conversation_whose_sandbox_was_killed(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """The next call is answered by a new one."""
    first = client.invoke_agent("counter", "Hi", session_id="s")
    platform.sandboxes.kill(str(first.sandbox_id))
    second = client.invoke_agent("counter", "Hi", session_id="s")

    assert second.result["count"] == 1
    assert [s.sandbox_id for s in client.list_sessions()] == [second.sandbox_id]


def test_an_agent_that_dies_at_once(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """Exit status and last line within 3 s."""
    started = time.monotonic()
    with pytest.raises(SandboxCreationError, match="cannot find my model") as caught:
        client.create_session("broken")

    assert time.monotonic() - started < 3 * SLOW
    assert caught.value.exit_code == 1
    assert _alive(platform) == []


def test_a_template_without_an_agent(client: AgentRuntimeClient) -> None:
    """It is known at once, so nobody waits for one to become ready."""
    started = time.monotonic()
    with pytest.raises(
        SandboxCreationError, match="has no agent: deploy one"
    ) as caught:
        client.invoke_agent("base", "Hello")

    assert time.monotonic() - started < 5 * SLOW  # the time to start is 60 s
    assert caught.value.stage == "start"


def test_an_agent_that_is_never_ready(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """The start has a limit, and Ctrl-C ends it earlier."""
    with pytest.raises(SandboxCreationError, match="not ready in time"):
        client.create_session("never-ready", start_timeout=0.5)
    after_timeout = _alive(platform)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.create_session("never-ready")

    assert after_timeout == []
    assert _alive(platform) == []


def test_a_sandbox_killed_under_a_stream(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """The reader gets a typed error, never a quiet end."""
    stream = client.invoke_agent_stream("counter", {"words": ["one", "silence"]})
    first = next(stream)
    platform.sandboxes.kill(str(stream.run.sandbox_id))
    with pytest.raises(PPIOAgentError, match="after 1 chunks"):
        next(stream)

    assert first == "one"


def test_environment_and_processes(client: AgentRuntimeClient) -> None:
    """Variables reach the agent; its processes end with the session."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    session = client.create_session("counter", env_vars={"CLIENT_TEST_MARK": mark})
    told = session.invoke({"variable": "CLIENT_TEST_MARK"}).result["variable"]
    running = list(processes_marked(session.sandbox_id))
    session.close()

    assert told == mark
    assert running
    wait_until(lambda: not list(processes_marked(session.sandbox_id)))


def test_batch(client: AgentRuntimeClient) -> None:
    """Twelve items on three sandboxes, in order."""
    results = client.invoke_many(
        "counter", [str(n) for n in range(12)], sessions=pool(3)
    ).results()

    assert [r.result["prompt"] for r in results] == [str(n) for n in range(12)]
    assert len({r.sandbox_id for r in results}) == 3


def test_keep_alive(client: AgentRuntimeClient) -> None:
    """A call that is longer than its sandbox's time to live succeeds."""
    response = client.invoke_agent("counter", {"sleep": 3}, timeout_seconds=2)

    assert response.result["count"] == 1


def test_templates(client: AgentRuntimeClient) -> None:
    """They are found by tag, name and agent id."""
    names = {t.name for t in client.list_templates(tags=["test"])}
    template = client.get_template("counter")

    assert names == {"counter", "counter-too", "broken", "never-ready"}
    assert template.agent is not None
    assert template.agent.entrypoint == "app.py"
    assert client.get_template(f"counter-{template.template_id}") == template
    assert client.template_exists("counter:1.0.0")
    assert not client.template_exists("nope")


def test_bad_requests_make_no_sandbox(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """They are refused before anything is sent."""
    with pytest.raises(ValidationError):
        client.invoke_agent("counter", [1])

    assert _alive(platform) == []


CALLERS = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from ppio_agent.client import AgentRuntimeClient, ClientConfig

url, key = sys.argv[1:]
client = AgentRuntimeClient(key, config=ClientConfig(base_url=url))
client.list_templates()
print("ready", flush=True)
sys.stdin.readline()


def call(_):
    response = client.invoke_agent("counter", "Hi", session_id="s")
    return response.sandbox_id, response.result["count"]


with ThreadPoolExecutor(20) as threads:
    print(json.dumps(list(threads.map(call, range(20)))), flush=True)
"""

TAKER = """
import pickle, sys
from ppio_agent.client import AgentRuntimeClient, ClientConfig

url, key, ref = sys.argv[1:]
with AgentRuntimeClient(key, config=ClientConfig(base_url=url)) as client:
    session = client.attach_session(pickle.loads(bytes.fromhex(ref)))
    print(session.invoke("Hi").result)
"""


def _python(script: str, platform: SandboxPlatform, *arguments: str) -> Popen[str]:
    command = [sys.executable, "-c", script, platform.url, platform.api_key]
    return Popen([*command, *arguments], stdin=PIPE, stdout=PIPE, text=True)


def _said(process: Popen[str], line: str = "") -> str:
    said, _ = process.communicate(line, timeout=60)
    assert process.returncode == 0
    return said


def test_conversation_of_many_processes(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """Forty first calls from two processes: one sandbox answers all, and it remains."""
    processes = [_python(CALLERS, platform) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [tuple(a) for p in processes for a in json.loads(_said(p))]
    alive = _alive(platform)
    here = client.invoke_agent("counter", "Hi", session_id="s")
    other = client.invoke_agent("counter-too", "Hi", session_id="s")
    client.close_session(str(here.sandbox_id))

    assert len(alive) == 1
    assert sorted(answers) == [(alive[0], n) for n in range(1, 41)]
    assert (here.sandbox_id, here.result["count"]) == (alive[0], 41)
    assert other.sandbox_id != here.sandbox_id


def test_attached_in_another_process(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """The agent's memory is still there; the other process leaves the sandbox alone."""
    session = client.create_session("counter", session_id="s")
    session.invoke("Hi")
    pickled = pickle.dumps(session.detach()).hex()
    said = _said(_python(TAKER, platform, pickled))
    with client.attach_session(session.sandbox_id) as taken:
        again = taken.invoke("Hi").result

    assert "'count': 2" in said
    assert "'session': 's'" in said
    assert (again["count"], again["session"]) == (3, "s")
    with pytest.raises(SessionNotFoundError):
        client.attach_session(session.sandbox_id)


def test_attached_while_paused(client: AgentRuntimeClient) -> None:
    """It says so, and can be resumed."""
    session = client.create_session("counter")
    session.invoke("Hi")
    session.pause()
    taken = client.attach_session(session.detach(), own=True)
    state = taken.state
    taken.resume()

    assert state is SessionState.PAUSED
    assert taken.invoke("Hi").result["count"] == 2


def test_a_time_to_live_beyond_the_platforms(client: AgentRuntimeClient) -> None:
    """It is refused with the limit; a session that has one goes on."""
    with pytest.raises(ValidationError, match="86400"):
        client.create_session("counter", 1e6)
    with client.create_session("counter") as session:
        with pytest.raises(ValidationError, match="86400"):
            session.refresh(1e6)
        assert session.invoke("Hi").status == "success"


def test_an_idle_session_expires(
    client: AgentRuntimeClient, platform: SandboxPlatform
) -> None:
    """Nobody extends it; the next use says that it is gone."""
    session = client.create_session("counter", 1)
    wait_until(lambda: not _alive(platform))

    with pytest.raises(SessionNotFoundError):
        session.invoke("Hi")
    assert session.get_status().state is SessionState.CLOSED


def test_a_fresh_deployment_is_found(
    client: AgentRuntimeClient, platform: SandboxPlatform, tmp_path: Path
) -> None:
    """Although the list of templates is cached."""
    client.list_templates()
    platform.deploy(write_agent(tmp_path / "fresh", AGENT, name="fresh"))

    assert client.get_template("fresh").name == "fresh"


def test_runtime_style(client: AgentRuntimeClient, platform: SandboxPlatform) -> None:
    """A plain answer, a stream, the version as endpoint, and the end."""
    plain: Any = client.invoke_agent_runtime("counter", b'{"prompt": "Hi"}', "s")
    stream: Any = client.invoke_agent_runtime(
        "counter", b'{"words": ["a", "b"]}', "s", endpoint="1.0.0"
    )
    chunks = [piece["chunk"] for piece in stream]

    assert plain["response"]["result"]["prompt"] == "Hi"
    assert chunks == ['"a"', '"b"']
    assert len(_alive(platform)) == 1
    assert client.close_session("s")
    assert _alive(platform) == []


READER = """
import sys
from ppio_agent.client import AgentRuntimeClient, ClientConfig

url, key, sandbox_id, invocation_id, last_event_id = sys.argv[1:]
with AgentRuntimeClient(key, config=ClientConfig(base_url=url)) as client:
    session = client.attach_session(sandbox_id)
    print(list(session.resume_stream(invocation_id, last_event_id)))
"""


def test_a_stream_that_is_cut_on_its_way(platform: SandboxPlatform) -> None:
    """It goes on through the edge by itself; and in another process, by its ids."""
    words = ["one", "two", "three", "four"]
    with CuttingRelay(int(platform.url.rpartition(":")[2]), b"id: 3\nda") as relay:
        config = ClientConfig(base_url=platform.url, sandbox_url=relay.url)
        with (
            AgentRuntimeClient(platform.api_key, config=config) as cut_client,
            cut_client.create_session("counter") as session,
        ):
            stream = session.invoke_stream({"words": words})
            seen = list(stream)
            counted = session.invoke("Hi").result["count"]
            invocation_id, sandbox_id = str(stream.invocation_id), session.sandbox_id
            said = _said(_python(READER, platform, sandbox_id, invocation_id, "2"))

    assert seen == words
    assert counted == 2
    assert said == "['three', 'four']\n"
