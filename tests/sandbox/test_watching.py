"""Sandboxes watched over HTTP: real agents, real streams, real limits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from ppio_agent.sandbox import metrics
from ppio_agent.wire.sse import SSEEvent, SSEFramer
from tests.sandbox.agents import HTTP_AGENT
from tests.sandbox.cloud import BLUE, RED, Cloud
from tests.support import SLOW, wait_until

LEAVES = HTTP_AGENT.replace(
    "    def log_message",
    """
    def do_DELETE(self):
        import time
        print("left at", repr(time.time()), flush=True)
        os._exit(7)

    def log_message""",
)


class Stream:
    """The events of one of a platform's streams."""

    def __init__(self, cloud: Cloud, path: str, **headers: str) -> None:
        self.response = requests.get(
            f"{cloud.url}/platform/v1{path}",
            headers={"X-API-KEY": RED, **headers},
            stream=True,
            timeout=30 * SLOW,
        )
        assert self.response.status_code == 200, self.response.text
        self._framer = SSEFramer()

    def __iter__(self) -> Iterator[SSEEvent]:
        for data in self.response.iter_content(None):
            for event in self._framer.feed(data):
                if isinstance(event, SSEEvent):
                    yield event

    def close(self) -> None:
        self.response.close()


def test_the_exit_of_an_agent_is_told_at_once(cloud: Cloud) -> None:
    """Within 100 ms of the last thing that it did, with what it left."""
    cloud.deploy("leaver", LEAVES)
    took = []
    for _ in range(3):
        sandbox_id = cloud.create("leaver")
        cloud.agent(sandbox_id)
        stream = Stream(cloud, f"/sandboxes/{sandbox_id}/events")
        events = iter(stream)
        seen = next(e for e in events if '"ready"' in e.data)
        assert seen.event == "agent"
        ending = threading.Thread(
            target=cloud.agent, args=[sandbox_id], kwargs={"method": "DELETE"}
        )
        ending.start()
        exited = next(e for e in events if '"exited"' in e.data)
        now = time.time()
        ending.join()
        stream.close()
        agent = json.loads(exited.data)["agent"]
        assert (agent["phase"], agent["exitCode"]) == ("exited", 7)
        took.append(now - float(agent["logTail"].split()[-1]))

    assert min(took) < 0.1 * SLOW, took


def test_a_log_is_followed_through_the_edge(cloud: Cloud) -> None:
    """A line is there soon after it was written; the end comes with the sandbox's."""
    cloud.deploy("leaver", LEAVES)
    sandbox_id = cloud.create("leaver")
    stream = Stream(cloud, f"/sandboxes/{sandbox_id}-local/logs/stream")
    events = iter(stream)
    assert json.loads(next(events).data)["message"] == "agent is up"
    assert cloud.agent(sandbox_id, method="DELETE").status_code == 502
    line = next(events)
    assert json.loads(line.data)["message"].startswith("left at ")
    cloud.ask("DELETE", f"/sandboxes/{sandbox_id}")
    assert [event.event for event in events] == ["end"]

    again = Stream(
        cloud,
        f"/sandboxes/{sandbox_id}/logs/stream",
        **{"Last-Event-ID": str(int(line.id or 0) - 1)},
    )
    assert [(e.event, e.id) for e in again] == [("log", line.id), ("end", line.id)]


def test_open_streams_keep_nobody_waiting(cloud: Cloud) -> None:
    """As many as one key may have; the next is refused and told when to try again."""
    sandbox_id = cloud.create("echo")
    path = f"/sandboxes/{sandbox_id}/events"
    streams = [Stream(cloud, path) for _ in range(32)]
    refused = cloud.ask("GET", f"/platform/v1{path}")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
    assert cloud.ask("GET", "/platform/v1/status").status_code == 200
    assert cloud.agent(sandbox_id).status_code == 200
    for stream in streams:
        stream.close()

    def free() -> bool:
        response = cloud.http.get(
            f"{cloud.url}/platform/v1{path}",
            headers={"X-API-KEY": RED},
            stream=True,
            timeout=10,
        )
        response.close()
        return response.status_code == 200

    wait_until(free, timeout=10.0)


def test_the_limit_of_a_key_is_its_own(cloud: Cloud) -> None:
    """Acceptance 5: the 21st is refused, another key is not, one kill makes room."""
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: cloud.create(), range(20)))
    refused = cloud.ask("POST", "/sandboxes", {})

    assert refused.status_code == 429
    assert refused.json()["code"] == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert cloud.ask("POST", "/sandboxes", {}, key=BLUE).status_code == 201
    assert cloud.ask("DELETE", f"/sandboxes/{ids[0]}").status_code == 204
    assert cloud.ask("POST", "/sandboxes", {}).status_code == 201


def test_ten_creates_with_one_key_make_one(cloud: Cloud) -> None:
    """Acceptance 5: all get the same answer, another body is 409."""

    def create(body: Any) -> requests.Response:
        return requests.post(
            f"{cloud.url}/sandboxes",
            json=body,
            headers={"X-API-KEY": RED, "Idempotency-Key": "ten"},
            timeout=30 * SLOW,
        )

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(create, [{"timeout": 60}] * 10))
    assert {a.status_code for a in answers} == {201}
    assert len({a.json()["sandboxID"] for a in answers}) == 1
    assert len(cloud.ask("GET", "/sandboxes").json()) == 1
    assert create({"timeout": 61}).status_code == 409


def test_a_platform_measures_and_tells_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Usage of a real agent; its listeners hear of the end before the agent does."""
    monkeypatch.setattr(metrics, "_INTERVAL", 0.2)
    cloud = Cloud(tmp_path, backend="process")
    try:
        cloud.deploy("echo")
        sandbox_id = cloud.create("echo")
        cloud.agent(sandbox_id)
        path = f"/sandboxes/{sandbox_id}/metrics"
        wait_until(lambda: cloud.ask("GET", path).json(), timeout=10.0)
        metric = cloud.ask("GET", path).json()[-1]
        assert metric["memUsed"] > 1_000_000
        assert 0 < metric["diskUsed"] < metric["diskTotal"]
        stream = Stream(cloud, f"/sandboxes/{sandbox_id}/events")
        found: list[str] = []
        reader = threading.Thread(target=lambda: found.extend(e.event for e in stream))
        reader.start()
    finally:
        cloud.close()
    reader.join(10)
    assert found[-2:] == ["error", "end"]
    assert "state" in found
