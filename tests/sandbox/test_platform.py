"""The platform as its users have it: real processes, real sockets, real files."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests

from ppio_agent.exceptions import (
    BackendUnavailableError,
    PlatformAlreadyRunningError,
    SandboxPlatformError,
    TemplateManifestError,
)
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform, platform
from ppio_agent.sandbox.backends.control_group import open_groups
from ppio_agent.sandbox.backends.delegation import Place
from ppio_agent.sandbox.templates.manifest import parse_manifest
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.sandbox.cloud import BLUE, RED, Cloud
from tests.support import SLOW, processes_marked, wait_until


def _marked(sandbox_id: str) -> list[int]:
    return list(processes_marked(f"PPIO_SANDBOX_ID={sandbox_id}"))


def test_deploy_create_invoke_kill(cloud: Cloud) -> None:
    """The main job over HTTP, from a folder to an answer and back to nothing."""
    sandbox_id = cloud.create("echo", timeout=60)
    pong = cloud.agent(sandbox_id).json()
    answer = cloud.agent(
        sandbox_id, "/invocations", method="POST", json={"prompt": "hi"}
    )

    assert pong["status"] == "Healthy"
    assert answer.json() == {"result": {"prompt": "hi"}, "status": "success"}
    assert psutil.pid_exists(pong["pid"])
    assert cloud.ask("DELETE", f"/sandboxes/{sandbox_id}").status_code == 204
    assert _marked(sandbox_id) == []
    wait_until(lambda: not psutil.pid_exists(pong["pid"]))
    gone = cloud.agent(sandbox_id)
    assert (gone.status_code, gone.json()) == (
        502,
        {
            "sandboxId": sandbox_id,
            "message": "The sandbox was not found",
            "code": 502,
        },
    )
    assert cloud.ask("GET", f"/sandboxes/{sandbox_id}/logs").json()["logs"][0][
        "line"
    ] == ("agent is up")


def test_refusals_through_the_edge_are_json_with_code_and_message(cloud: Cloud) -> None:
    """Acceptance 4."""
    sandbox_id = cloud.create()
    url, good = cloud.platform.url, {"X-API-KEY": RED}
    found = {
        "wrong key": cloud.ask("GET", "/sandboxes", key="wrong"),
        "other tenant": cloud.ask("GET", f"/sandboxes/{sandbox_id}", key=BLUE),
        "body": requests.post(f"{url}/sandboxes", "{", headers=good, timeout=9),
        "type": cloud.ask("POST", "/sandboxes", {"timeout": "5"}),
        "path": cloud.ask("GET", "/nowhere"),
        "method": cloud.ask("PATCH", "/sandboxes"),
    }

    statuses = {name: r.status_code for name, r in found.items()}
    assert statuses == {
        "wrong key": 401,
        "other tenant": 404,
        "body": 400,
        "type": 400,
        "path": 404,
        "method": 405,
    }
    for response in found.values():
        body = response.json()
        assert body["code"] == response.status_code
        assert isinstance(body["message"], str)
        assert response.headers["X-Request-Id"]


def test_an_agent_that_fails_at_import_is_told_of_at_once(cloud: Cloud) -> None:
    """Acceptance 6."""
    cloud.deploy("broken", "import threading\nraise RuntimeError('no model')\n")
    sandbox_id = cloud.create("broken")
    begun = time.monotonic()
    answer = cloud.agent(sandbox_id)

    assert time.monotonic() - begun < 1.0 * SLOW
    assert answer.status_code == 502
    assert answer.json() == {
        "sandboxId": sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8080,
        "exitCode": 1,
        "signal": None,
        "code": 502,
    }
    agent = cloud.ask("GET", f"/sandboxes/{sandbox_id}").json()["agent"]
    assert (agent["phase"], agent["exitCode"]) == ("exited", 1)
    assert "RuntimeError: no model" in agent["logTail"]
    assert "Traceback" in agent["logTail"]


@pytest.mark.slow
def test_a_paused_sandbox_uses_no_cpu_and_keeps_its_memory(cloud: Cloud) -> None:
    """Acceptance 7."""
    busy = HTTP_AGENT.replace(
        "address =",
        "def spin():\n    while True:\n        pass\n"
        "threading.Thread(target=spin, daemon=True).start()\naddress =",
    )
    cloud.deploy("busy", busy)
    sandbox_id = cloud.create("busy")
    first = cloud.agent(sandbox_id).json()
    assert cloud.ask("POST", f"/sandboxes/{sandbox_id}/pause").status_code == 204

    agent = psutil.Process(first["pid"])
    before = agent.cpu_times()
    threading.Event().wait(2.0)
    assert agent.cpu_times()[:2] == before[:2]
    refused = cloud.agent(sandbox_id)
    assert (refused.status_code, refused.json()["message"]) == (
        502,
        "The sandbox was not found",
    )
    assert cloud.ask("POST", f"/sandboxes/{sandbox_id}/pause").status_code == 409
    assert cloud.ask("POST", f"/sandboxes/{sandbox_id}/connect").status_code == 201
    assert cloud.agent(sandbox_id).json()["count"] == first["count"] + 1


@pytest.mark.slow
def test_time_to_live_kills_connect_never_shortens_and_timeout_does(
    cloud: Cloud,
) -> None:
    """Acceptance 8."""

    def lived(sandbox_id: str, begun: float) -> float:
        path = f"/sandboxes/{sandbox_id}"
        wait_until(lambda: cloud.ask("GET", path).status_code == 404, timeout=5)
        return time.monotonic() - begun

    connected = cloud.create(timeout=3)
    connected_begun = time.monotonic()
    answer = cloud.ask("POST", f"/sandboxes/{connected}/connect", {"timeout": 1})
    assert answer.status_code == 200
    pausing = cloud.create("echo", timeout=1, lifecycle={"onTimeout": "pause"})
    short = cloud.create("echo", timeout=1)
    begun = time.monotonic()
    assert 0.9 < lived(short, begun) < 1.5 * SLOW
    wait_until(lambda: _marked(short) == [])
    cut = cloud.create(timeout=60)
    cloud.ask("POST", f"/sandboxes/{cut}/timeout", {"timeout": 0})
    assert lived(cut, time.monotonic()) < 1.0 * SLOW
    wait_until(
        lambda: cloud.ask("GET", f"/sandboxes/{pausing}").json()["state"] == "paused"
    )
    assert cloud.ask("GET", f"/sandboxes/{connected}").status_code == 200
    assert lived(connected, connected_begun) > 2.9
    resumed = cloud.ask("POST", f"/sandboxes/{pausing}/connect", {"timeout": 60})
    assert resumed.status_code == 201
    assert cloud.agent(pausing).status_code == 200


class SlowBody:
    """A body that takes 1.5 seconds to be read."""

    def __init__(self) -> None:
        self._pieces = [b'"a', b"b", b'c"', b""]

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def read(self, _: int) -> bytes:
        if len(self._pieces) > 1:  # when all is sent, the answer may be there
            threading.Event().wait(0.5)
        return self._pieces.pop(0)


@pytest.mark.slow
def test_a_sandbox_that_nobody_uses_is_paused_and_a_request_wakes_it(
    cloud: Cloud,
) -> None:
    """An upload that is under way is use, however slow it is."""
    sandbox_id = cloud.create(
        "echo",
        metadata={"idle_timeout": "1"},
        autoPause=True,
        autoResume={"enabled": True},
    )

    def state() -> str:
        found = cloud.ask("GET", f"/sandboxes/{sandbox_id}").json()["state"]
        return str(found)

    sent = cloud.agent(sandbox_id, "/invocations", method="POST", data=SlowBody())
    ended = time.monotonic()
    assert (sent.status_code, state()) == (200, "running")
    wait_until(lambda: state() == "paused")
    assert time.monotonic() - ended > 0.9
    assert cloud.agent(sandbox_id).json()["count"] == 1
    assert state() == "running"


def test_chunks_pass_one_by_one_and_a_reader_that_stops_stops_the_agent(
    cloud: Cloud,
) -> None:
    """Acceptance 12: the agent sends the next chunk only when asked to."""
    cloud.deploy("stream", STREAM_AGENT)
    sandbox_id = cloud.create("stream")
    with cloud.agent(sandbox_id, "/stream", stream=True) as response:
        chunks = response.iter_content(None)
        for number in range(3):
            assert next(chunks) == b"chunk %d\n" % number
            cloud.agent(sandbox_id, "/next")

    def sent() -> int:
        return int(cloud.agent(sandbox_id, "/sent").text)

    with cloud.agent(sandbox_id, "/flood", stream=True):
        wait_until(lambda: sent() > 0)
        last = -1
        while last != (last := sent()):
            threading.Event().wait(0.3)
        assert last < 64 * 2**20
    wait_until(lambda: cloud.agent(sandbox_id, "/ended").text == "yes")


STREAM_AGENT = """\
import http.server, os, threading

go, sent, ended = threading.Semaphore(0), 0, "no"

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global sent, ended
        if self.path == "/stream":
            self.begin()
            for number in range(3):
                self.chunk(b"chunk %d\\n" % number)
                go.acquire()
            self.chunk(b"")
        elif self.path == "/flood":
            self.begin()
            try:
                while sent < 64 * 2**20:
                    self.chunk(bytes(65536))
                    sent += 65536
            except OSError:
                ended = "yes"
            self.close_connection = True
        else:
            if self.path == "/next":
                go.release()
            text = {"/sent": str(sent), "/ended": ended}.get(self.path, "").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    def begin(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))

    def log_message(self, *_):
        pass

address = (os.environ["HOST"], int(os.environ["PORT"]))
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def test_the_agents_environment_is_exactly_what_is_promised(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Acceptance 15."""
    secrets = {"PPIO_API_KEY": "host-key-1234", "AWS_SECRET_ACCESS_KEY": "aws-1234567"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.DEBUG):
        sandbox_id = cloud.create("echo", envVars={"MINE": "my-secret-1234"})
        pong = cloud.agent(
            sandbox_id,
            headers={"X-API-KEY": RED, "Authorization": f"Bearer {RED}"},
        ).json()
        cloud.ask("DELETE", f"/sandboxes/{sandbox_id}")

    names = set(pong["env"])
    assert names - {"LC_CTYPE"} == {
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "HOST", "PORT"),
        *("PYTHONUNBUFFERED", "PPIO_SANDBOX_ID", "PPIO_TEMPLATE_ID", "MINE"),
        "PPIO_READY_FD",
    }
    assert pong["env"]["MINE"] == "my-secret-1234"
    shown = str(pong["env"]) + str(pong["headers"])
    for secret in (*secrets.values(), RED):
        assert secret not in shown
        assert secret not in caplog.text
    assert "my-secret-1234" not in caplog.text


def test_running_sandboxes_keep_the_build_they_were_made_from(cloud: Cloud) -> None:
    """Acceptance 17."""
    cloud.deploy("version", HTTP_AGENT.replace("Healthy", "One"))
    old = cloud.create("version")
    cloud.deploy("version", HTTP_AGENT.replace("Healthy", "Two"))
    new = cloud.create("version")
    cloud.deploy("version", HTTP_AGENT.replace("Healthy", "Two"))

    statuses = [cloud.agent(sandbox_id).json()["status"] for sandbox_id in (old, new)]
    assert statuses == ["One", "Two"]
    builds = cloud.ask("GET", "/templates/version").json()["builds"]
    assert len(builds) == 2


def test_a_deploy_notes_its_result_in_the_manifest(cloud: Cloud) -> None:
    template_id = cloud.deploy("noted")
    manifest = cloud.folder / "src" / "noted" / ".ppio-agent.yaml"

    status = parse_manifest(manifest.read_text()).status
    assert status["template_id"] == template_id
    assert cloud.platform.deploy(manifest, api_key=RED).template_id == template_id


def test_a_faulty_folder_is_refused_and_nothing_is_written(cloud: Cloud) -> None:
    """Acceptance 18."""
    folder = write_agent(cloud.folder / "src", "faulty", version="one")
    manifest = folder / ".ppio-agent.yaml"
    text = manifest.read_text().replace("app.py", "a.py; rm -rf x")
    manifest.write_text(text.replace("kind: Agent", "kind: Job"))
    (folder / "leak").symlink_to("/etc/passwd")
    blobs = sorted((cloud.folder / "data" / "blobs").rglob("*"))

    with pytest.raises(TemplateManifestError) as info:
        cloud.platform.deploy(folder)

    assert [(p[0], p[1]) for p in info.value.problems] == [
        ("kind", 2),
        ("metadata.version", 5),
        ("spec.entrypoint", 8),
        ("leak", 0),
    ]
    assert sorted((cloud.folder / "data" / "blobs").rglob("*")) == blobs
    assert "status" not in manifest.read_text()


def test_a_second_platform_names_the_first(cloud: Cloud) -> None:
    """Acceptance 22, the half of the Python interface."""
    with pytest.raises(PlatformAlreadyRunningError) as info:
        SandboxPlatform(cloud.config).start()

    assert (info.value.url, info.value.pid) == (cloud.platform.url, os.getpid())


def test_many_creates_at_once_all_become_ready(cloud: Cloud) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: cloud.create("echo"), range(8)))
        pings = list(pool.map(lambda i: cloud.agent(i).status_code, ids))
        ended = list(
            pool.map(lambda i: cloud.ask("DELETE", f"/sandboxes/{i}").status_code, ids)
        )

    assert (pings, ended) == ([200] * 8, [204] * 8)
    assert [_marked(sandbox_id) for sandbox_id in ids] == [[]] * 8


def test_close_leaves_no_process_thread_socket_or_folder(tmp_path: Path) -> None:
    """Not even of an agent that ignores SIGTERM, nor of a paused sandbox."""

    def threads() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("ppio-")}

    before_threads, before_fds = threads(), len(os.listdir("/proc/self/fd"))
    cloud = Cloud(tmp_path)
    stubborn = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    cloud.deploy("stubborn", stubborn + HTTP_AGENT)
    ids = [cloud.create("stubborn"), cloud.create("stubborn"), cloud.create()]
    assert cloud.agent(ids[0]).status_code == 200
    cloud.ask("POST", f"/sandboxes/{ids[1]}/pause")
    begun = time.monotonic()
    cloud.http.close()
    cloud.platform.close(timeout=2.0)
    cloud.platform.close()

    assert time.monotonic() - begun < 5.0 * SLOW
    assert [_marked(sandbox_id) for sandbox_id in ids] == [[], [], []]
    assert list((tmp_path / "data" / "sandboxes").iterdir()) == []
    assert not (tmp_path / "data" / "platform.json").exists()
    wait_until(lambda: threads() <= before_threads, what=str(threads()))
    assert len(os.listdir("/proc/self/fd")) <= before_fds


def test_a_data_directory_that_is_taken_away_is_told_without_a_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cloud = Cloud(tmp_path)
    try:
        source = write_agent(tmp_path / "src", "late", {"app.py": HTTP_AGENT})
        shutil.rmtree(tmp_path / "data")
        refused = cloud.ask("POST", "/sandboxes", {"templateID": "base"})
        with pytest.raises(SandboxPlatformError, match="was not deployed"):
            cloud.platform.deploy(source, api_key=RED)
    finally:
        cloud.close()

    assert refused.status_code == 500
    assert "cannot use its files: no such file" in refused.json()["message"]
    assert "POST /sandboxes failed" in caplog.text
    assert "Traceback" not in caplog.text


def test_before_start_and_after_close_it_says_so(tmp_path: Path) -> None:
    platform = SandboxPlatform(PlatformConfig(data_dir=tmp_path))
    with pytest.raises(RuntimeError, match="does not run"):
        _ = platform.url
    with platform:
        assert platform.running
        assert platform.start() is platform
    assert not platform.running
    with pytest.raises(RuntimeError, match="does not run"):
        platform.deploy(tmp_path)


def test_a_template_is_taken_from_the_configured_folder(tmp_path: Path) -> None:
    write_agent(tmp_path / "agents", "found")
    cloud = Cloud(tmp_path, templates_dir=tmp_path / "agents")
    try:
        sandbox_id = cloud.create("found")
        assert cloud.agent(sandbox_id).status_code == 200
        assert (
            cloud.ask("POST", "/sandboxes", {"templateID": "lost"}).status_code == 404
        )
        manifest = tmp_path / "agents" / "found" / ".ppio-agent.yaml"
        assert "status" not in manifest.read_text()
    finally:
        cloud.close()


def test_templates_outlive_the_platform(tmp_path: Path) -> None:
    first = Cloud(tmp_path)
    template_id = first.deploy("echo")
    first.close()
    second = Cloud(tmp_path)
    try:
        assert cloud_ids(second) == {"base0000000000000000", template_id}
        assert second.agent(second.create("echo")).status_code == 200
    finally:
        second.close()


def cloud_ids(cloud: Cloud) -> set[str]:
    return {item["templateID"] for item in cloud.ask("GET", "/templates").json()}


def test_the_environment_points_all_clients_at_it(cloud: Cloud) -> None:
    env = cloud.platform.env()

    assert {name for name in env if name.endswith("_KEY")} == {
        "PPIO_API_KEY",
        "E2B_API_KEY",
    }
    assert env["PPIO_API_URL"] == env["E2B_SANDBOX_URL"] == cloud.platform.url
    assert env["PPIO_API_KEY"] == cloud.platform.api_key == RED


def test_status_tells_what_runs(cloud: Cloud) -> None:
    cloud.create()
    status = cloud.ask("GET", "/platform/v1/status").json()

    assert status["backend"] == "process"
    assert status["controlGroups"] is cloud.platform.has_control_groups
    assert status["sandboxes"] == {"running": 1, "paused": 0}
    assert status["limits"]["maxSandboxesPerTenant"] == 20


def test_a_start_that_fails_lets_go_of_everything(tmp_path: Path) -> None:
    cloud = Cloud(tmp_path)
    taken = int(cloud.platform.url.rpartition(":")[2])
    other = PlatformConfig(data_dir=tmp_path / "other", port=taken)
    try:
        with pytest.raises(OSError, match=f"127.0.0.1:{taken}"):
            SandboxPlatform(other).start()
        free = PlatformConfig(data_dir=tmp_path / "other")
        SandboxPlatform(free).start().close()
    finally:
        cloud.close()


@pytest.mark.parametrize("backend", ["process", "bubblewrap"])
def test_the_control_group_is_as_it_was_when_it_has_closed(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or when it cannot start, as with a backend that is not installed."""
    group = tmp_path / "cgroup"
    group.mkdir()
    (group / "cgroup.procs").write_text("41\n")
    place = Place(path=group, controllers=frozenset({"memory"}), pids=(41,))
    given = partial(open_groups, find=lambda: place, rmdir=shutil.rmtree)
    monkeypatch.setattr(platform, "open_groups", given)
    monkeypatch.setenv("PATH", str(tmp_path))
    config = PlatformConfig(data_dir=tmp_path / "data", backend=backend, warm=0)
    with suppress(BackendUnavailableError), SandboxPlatform(config) as opened:
        assert opened.has_control_groups
        assert (group / "ppio-platform").exists()

    assert (group / "cgroup.subtree_control").read_text() == "-memory"
    assert not (group / "ppio-platform").exists()


def test_a_child_forked_while_it_closes_can_end(tmp_path: Path) -> None:
    """Its exit closes the platform, too, which is not its own."""
    platform = SandboxPlatform(PlatformConfig(data_dir=tmp_path))
    with platform._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            platform.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
