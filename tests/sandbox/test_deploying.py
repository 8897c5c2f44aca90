"""Deploying to a whole platform: what is refused, what is installed, what a kill leaves."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

from ppio_agent.exceptions import TemplateManifestError
from ppio_agent.sandbox.templates.environments import Environments
from tests.sandbox.agents import HTTP_AGENT, write_agent, write_wheel
from tests.sandbox.cloud import RED, Cloud
from tests.support import SLOW, needs_program, processes_marked, wait_until

# Says which Python it is, what it has of its own, and what `python` is in its sandbox.
INSTALLED_AGENT = (
    "import subprocess, sys, made_up, ppio_agent\n"
    "which = ['python', '-c', 'import sys; print(sys.prefix)']\n"
    "inside = subprocess.check_output(which, text=True).strip()\n"
    "FACTS = f'{sys.prefix} {inside} {made_up.VALUE}'\n"
) + HTTP_AGENT.replace('"Healthy"', "FACTS")

DEPLOYING = """
import itertools, sys
from pathlib import Path
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform

data, folder, install = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "install"
with SandboxPlatform(PlatformConfig(data_dir=data, backend="process")) as platform:
    print("up", flush=True)
    for number in itertools.count(int(sys.argv[4])):
        (folder / "data.txt").write_text(str(number) * 1000)
        platform.deploy(folder, install=install)
"""


@contextmanager
def _deploying(
    tmp_path: Path, folder: Path, what: str = "", number: int = 0
) -> Iterator[None]:
    """Run a process that deploys without end, and kill it with -9."""
    command = [sys.executable, "-c", DEPLOYING, tmp_path / "data", folder, what]
    with subprocess.Popen(
        [*map(str, command), str(number)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield
        finally:
            process.kill()


@pytest.mark.slow
def test_a_deploy_that_is_killed_at_any_moment_leaves_a_whole_build(
    tmp_path: Path,
) -> None:
    """Acceptance 17; the moments are random, of several deploys one after another."""
    folder = write_agent(tmp_path / "src", "echo")
    (folder / "data.txt").write_text("")
    cloud = Cloud(tmp_path)
    cloud.platform.deploy(folder)
    cloud.close()
    moments = random.Random(os.getpid())
    for attempt in range(4):
        with _deploying(tmp_path, folder, number=attempt * 10_000):
            threading.Event().wait(moments.uniform(0.0, 0.2))
        cloud = Cloud(tmp_path)
        try:
            sandbox_id = cloud.create("echo")
            assert cloud.agent(sandbox_id).status_code == 200
            app = tmp_path / "data" / "sandboxes" / sandbox_id / "app"
            text = (app / "data.txt").read_text()
            assert text == text[: len(text) // 1000] * 1000
            (folder / "data.txt").write_text("")
            template = cloud.platform.deploy(folder)
            assert cloud.ask("GET", "/templates/echo").json()["buildID"] == (
                template.build_id
            )
        finally:
            cloud.close()


def test_a_kill_while_requirements_are_installed_leaves_nothing_half_made(
    tmp_path: Path,
) -> None:
    """And the next deploy makes the environment."""
    folder = write_agent(tmp_path / "src", "echo", {"app.py": INSTALLED_AGENT})
    write_wheel(tmp_path / "wheels", "made_up").rename(folder / "requirements.txt")
    root = tmp_path / "data" / "environments"
    with _deploying(tmp_path, folder, "install"):
        wait_until(lambda: root.is_dir() and list(root.glob("new-*")), timeout=20)
    cloud = Cloud(tmp_path)
    try:
        wait_until(lambda: not list(root.glob("[0-9a-f]*")))
        assert cloud.ask("GET", "/templates/echo").status_code == 404
        cloud.platform.deploy(folder, api_key=RED, install=True)
        assert len(list(root.glob("[0-9a-f]*"))) == 1
        assert cloud.agent(cloud.create("echo")).status_code == 200
    finally:
        cloud.close()


@pytest.mark.parametrize("backend", ["process", "bubblewrap"])
def test_an_agent_runs_in_the_environment_of_its_requirements(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does `python` in its sandbox; the framework is there without being asked for."""
    if backend == "bubblewrap":
        needs_program("bwrap")
    write_wheel(tmp_path / "wheels", "made_up", "VALUE = 'own'\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    files = {"app.py": INSTALLED_AGENT, "requirements.txt": "made_up==1.0\n"}
    folder = write_agent(tmp_path / "src", "needy", files)
    cloud = Cloud(tmp_path, backend=backend, warm=0)
    try:
        assert _upload(cloud, folder, "?install=true") == (201, [])
        status = cloud.agent(cloud.create("needy")).json()["status"].split()
        (environment,) = (tmp_path / "data" / "environments").iterdir()
        assert status == [str(environment), str(environment), "own"]
        assert cloud.ask("DELETE", "/templates/needy").status_code == 204
        assert environment.exists(), "its sandbox still runs"
        assert _upload(cloud, folder, "?install=yes")[0] == 400
    finally:
        cloud.close()


def test_whoever_waits_for_requirements_is_told_that_the_platform_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And pip ends with it."""
    marker = f"MARK={tmp_path.name}"
    monkeypatch.setenv("PIP_MARK", marker)
    slow = ["sh", "-c", "sleep 100 & wait"]
    monkeypatch.setattr(
        Environments, "_install", lambda self, folder, _: self._run(folder, slow)
    )
    files = {"app.py": "", "requirements.txt": "x\n"}
    folder = write_agent(tmp_path / "src", "needy", files)
    cloud = Cloud(tmp_path)
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(_upload, cloud, folder, "?install=true")
            wait_until(lambda: len(list(processes_marked(marker))) >= 3)
            cloud.platform.close()
            assert answer.result(20) == (503, [])
        assert list(processes_marked(marker)) == []
    finally:
        cloud.close()


def test_faulty_uploads_are_refused_and_nothing_is_written(cloud: Cloud) -> None:
    """Acceptance 18: what leads out, what is no name, and five mistakes at once."""
    folder = write_agent(cloud.folder / "src", "faulty", version="one")
    manifest = folder / ".ppio-agent.yaml"
    text = manifest.read_text()
    for right, wrong in (
        ("kind: Agent", "kind: Job"),
        ("name: faulty", "name: Faulty"),
        ("tests@example.com", "nobody"),
        ("app.py", "a.py; rm -rf x"),
    ):
        text = text.replace(right, wrong)
    manifest.write_text(text)
    data = cloud.folder / "data"
    before = sorted(path for path in data.rglob("*") if "logs" not in path.parts)

    status, problems = _upload(cloud, folder, add={"../x": None, "leak": "/etc/passwd"})
    assert status == 400
    assert problems == [
        ("kind", 2),
        ("metadata.name", 4),
        ("metadata.version", 5),
        ("metadata.author", 6),
        ("spec.entrypoint", 8),
        ("../x", 0),
        ("leak", 0),
    ]
    with pytest.raises(TemplateManifestError):
        cloud.platform.deploy(folder)
    assert sorted(p for p in data.rglob("*") if "logs" not in p.parts) == before


def _upload(
    cloud: Cloud,
    folder: Path,
    query: str = "",
    add: dict[str, str | None] | None = None,
) -> tuple[int, list[tuple[str, int]]]:
    """Upload a folder with more entries, links where a target is given.

    Returns:
        The status, and path and line of each problem.
    """
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
        for name, target in (add or {}).items():
            member = tarfile.TarInfo(name)
            if target is not None:
                member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    response = cloud.http.post(
        f"{cloud.platform.url}/platform/v1/templates{query}",
        out.getvalue(),
        headers={"X-API-KEY": RED},
        timeout=60 * SLOW,
    )
    problems = response.json().get("problems", [])
    return response.status_code, [(p["path"], p["line"]) for p in problems]
