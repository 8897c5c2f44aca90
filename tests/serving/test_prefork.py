"""Servers that fork: each child has threads, loop, alarm and ids of its own."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.threads import start_thread
from tests.serving.hosts import ROOT, Caller, Host, documented, gunicorn, hosting
from tests.serving.shapes import SHAPES
from tests.serving.support import SSE
from tests.support import needs_program, wait_until

PRELOADED = """
from tests.serving.shapes import KEY, SHAPES, build

app = build(timeout=20)
client = app.test_client(headers={"X-API-Key": KEY, "X-PPIO-Session-Id": "s1"})
parent = client.invoke({}).result["pid"]
for name in SHAPES:
    assert client.post(f"/invocations?entrypoint={name}", json={"n": 7, "other": [1]})
late = {"X-PPIO-Timeout": "0.05"}
stuck = client.invoke({"seconds": 0.2, "stuck": True}, headers=late)
assert stuck.status_code == 504
print("served in the parent", parent, flush=True)
"""
REMEMBER = "/invocations?entrypoint=remember"


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Two children of a process that has served already."""
    folder = tmp_path_factory.mktemp("preload")
    (folder / "my_agent.py").write_text(PRELOADED)
    options = ("--preload", "--workers", "2", "--threads", "2")
    with gunicorn("my_agent:app", folder, *options) as host:
        yield host


def _both_serve(http: Caller, parent: int | None = None) -> None:
    """Check that two children serve all kinds of invocations, with ids of their own."""
    seen: dict[int, list[str]] = {}
    failed: list[Any] = []

    def call() -> None:
        answer = http.invoke({"seconds": 0.02})
        pid = answer.json["result"]["pid"]
        seen.setdefault(pid, []).append(answer.headers["x-invocation-id"])
        late = http.invoke({"seconds": 0.1, "stuck": True}, X_PPIO_Timeout="0.02")
        failed.extend([late] if late.status != 504 else [])
        for name in ("async", "async generator", "plain"):
            path = f"/invocations?entrypoint={name.replace(' ', '%20')}"
            answer = http.invoke({"n": 7, "other": [1]}, path)
            failed.extend([answer] if answer.status != 200 else [])
            if name == "async":
                failed.extend([answer] if answer.json["result"] != [7] else [])

    def round_trip() -> bool:
        callers = [start_thread("caller", call) for _ in range(4)]
        for caller in callers:
            caller.join(20)
        return len(seen) == 2 and min(map(len, seen.values())) > 2

    wait_until(round_trip, timeout=20, what="both children to serve")
    assert failed == []
    assert parent not in seen
    ids = [one for ids in seen.values() for one in ids]
    assert len(set(ids)) == len(ids)


def test_children_of_a_process_that_has_served_serve_all_shapes(
    preloaded: Host,
) -> None:
    """Threads, loop and alarms of the parent are not waited for."""
    line = preloaded.log.read_text().partition("served in the parent ")[2]
    _both_serve(preloaded.http, parent=int(line.split()[0]))


def test_no_user_sees_a_value_of_another(preloaded: Host) -> None:
    """A thousand requests on two threads of each child."""
    seen: dict[str, list[Any]] = {"a": [], "b": []}

    def call(user: str) -> None:
        for _ in range(500):
            answer = preloaded.http.invoke({"user": user}, REMEMBER)
            seen[user].append(answer.json["result"])

    callers = [start_thread("caller", call, user) for user in seen]
    for caller in callers:
        caller.join(60)
    for user, results in seen.items():
        assert len(results) == 500
        assert {(r["before"], r["after"]) for r in results} == {(None, user)}


def test_uwsgi_serves_as_documented(tmp_path: Path) -> None:
    """Pre-forked and threaded; each process warns once that it knows only its own."""
    program = needs_program("uwsgi")
    source = "from tests.serving.shapes import build\napp = build(heartbeat=0.2)\n"
    (tmp_path / "my_agent.py").write_text(source)
    config = documented("[uwsgi]")
    for old, new in (("processes = 1", "processes = 2"), (":8080", ":0")):
        assert config.count(old) == 1
        config = config.replace(old, new)
    (tmp_path / "uwsgi.ini").write_text(config)
    with hosting(
        [program, "uwsgi.ini"],
        tmp_path,
        says=r"bound to TCP address 127\.0\.0\.1:(\d+)",
        environ={"PYTHONPATH": f"{ROOT}:{sysconfig.get_paths()['purelib']}"},
    ) as host:
        http = host.http
        _both_serve(http)
        assert host.said("invocations are known to one process only") == 2
        connection, lines = http.stream({"stream": True, "seconds": 0.5})
        events = list(lines)
        connection.close()
        assert b": hb\n" in events
        assert b"event: end\n" in events
        for name, (_, expected) in SHAPES.items():
            path = f"/invocations?entrypoint={name.replace(' ', '%20')}"
            answer = http.invoke({"n": 7, "other": [1]}, path)
            assert answer.status == 200
            if answer.headers["content-type"] == "application/json":
                assert answer.json["result"] == expected
        body = b'{"stream": true, "seconds": 30}'
        connection, response = http.open("POST", "/invocations", body, SSE)
        assert response.readline() == b": open\n"
        response.close()  # which has the socket: uWSGI names no end of the body
        connection.close()
        place = f"/invocations/{response.headers['X-Invocation-Id']}"
        # Either process may be asked, and one of them knows it.
        wait_until(lambda: http.get(place).json.get("state") == "cancelled")
        assert host.stop() == 0
