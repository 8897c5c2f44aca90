"""Templates with installed requirements: what shares them, and how long they stay."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.exceptions import SandboxPlatformError, TemplateManifestError
from ppio_agent.sandbox.templates.blobs import BlobStore
from ppio_agent.sandbox.templates.environments import Environments
from ppio_agent.sandbox.templates.manifest import Host
from ppio_agent.sandbox.templates.records import Build
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import open_store
from tests.sandbox.agents import write_agent

Write = Callable[..., FolderSource]


class Rig:
    """Templates whose environments are made by a stand-in for pip."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.used: dict[str, Build] = {}
        self.made: list[bytes] = []
        self.later = timedelta()

        def run(_: Environments, folder: Path, command: list[str]) -> None:
            if "install" in command:
                wanted = (folder / "requirements.txt").read_bytes()
                if b"no-such" in wanted:
                    raise TemplateManifestError("no such distribution")
                self.made.append(wanted)
                return
            (folder / "bin").mkdir(parents=True)
            (folder / "lib" / "python3" / "site-packages").mkdir(parents=True)
            (folder / "bin" / "python").touch()

        monkeypatch.setattr(Environments, "_run", run)
        self.environments = Environments(folder / "environments")
        numbers = iter(range(1000))
        self.templates = Templates(
            open_store("memory://"),
            BlobStore(folder / "blobs"),
            self.environments,
            host=Host(memory_mb=4096, cpus=2.0),
            id_factory=lambda: f"{next(numbers):020d}",
            in_use=lambda: self.used,
            clock=lambda: utc_now() + self.later,
        )

    def build(self, name: str = "bot") -> Build:
        return self.templates.choose(name)[1]

    def left(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "environments").iterdir())


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path, monkeypatch)


@pytest.fixture
def agent(tmp_path: Path) -> Write:
    def write(
        text: str = "x = 1\n", wanted: str = "flask\n", name: str = "bot"
    ) -> FolderSource:
        files = {"app.py": text, "requirements.txt": wanted}
        return FolderSource.of(write_agent(tmp_path / "src", name, files))

    return write


def test_installing_makes_a_build_of_its_own(rig: Rig, agent: Write) -> None:
    """The same folder without and with it are two; twice with it are one."""
    rig.templates.deploy(agent())
    with rig.templates.keep_python(rig.build()) as python:
        assert python is None
    plain = rig.build()

    assert rig.templates.deploy(agent(), install=True)[1]
    assert not rig.templates.deploy(agent(), install=True)[1]
    build = rig.build()
    assert build.id != plain.id
    folder = rig.folder / "environments" / str(build.environment)
    with rig.templates.keep_python(build) as python:
        assert python == str(folder / "bin" / "python")


def test_builds_with_the_same_requirements_share_them(rig: Rig, agent: Write) -> None:
    """Of one agent and of several."""
    for source in (agent(), agent("x = 2\n"), agent(name="other")):
        rig.templates.deploy(source, install=True)
    rig.templates.deploy(agent(wanted="flask>=3\n"), install=True)

    assert rig.made == [b"flask\n", b"flask>=3\n"]
    assert len(rig.left()) == 2


def test_an_agent_without_requirements_needs_no_environment(
    rig: Rig, tmp_path: Path
) -> None:
    folder = write_agent(tmp_path, "bare", {"app.py": ""})
    rig.templates.deploy(FolderSource.of(folder), install=True)

    assert rig.build("bare").environment is None


def test_nothing_is_kept_of_what_cannot_be_installed(rig: Rig, agent: Write) -> None:
    rig.templates.deploy(agent(), install=True)
    before = rig.build()
    blobs = sorted((rig.folder / "blobs").rglob("*"))

    with pytest.raises(TemplateManifestError):
        rig.templates.deploy(agent("x = 2\n", "no-such\n"), install=True)
    assert rig.build() == before
    assert sorted((rig.folder / "blobs").rglob("*")) == blobs
    assert rig.left() == [before.environment]


def test_requirements_without_end_are_refused(rig: Rig, agent: Write) -> None:
    with pytest.raises(TemplateManifestError, match="larger than 1 MiB"):
        rig.templates.deploy(agent(wanted="#" * (1 << 20) + "\n"), install=True)


def test_the_environment_goes_with_the_last_that_needs_it(
    rig: Rig, agent: Write
) -> None:
    """Be that a build, or a sandbox of a template that was deleted."""
    for name in ("bot", "other"):
        rig.templates.deploy(agent(name=name), install=True)
    build = rig.build()
    rig.templates.delete("bot")
    assert rig.left() == [build.environment]

    rig.used = {build.id: build}
    rig.templates.delete("other")
    assert rig.left() == [build.environment]

    rig.used = {}
    rig.later = timedelta(hours=1, seconds=1)
    rig.templates.tidy()
    assert rig.left() == []


def test_the_environment_of_a_dropped_build_goes_with_it(
    rig: Rig, agent: Write
) -> None:
    """When five newer ones are kept."""
    rig.templates.deploy(agent(wanted="first\n"), install=True)
    first = rig.build().environment
    for number in range(5):
        assert first in rig.left()
        rig.templates.deploy(agent(f"x = {number}\n"), install=True)
    assert rig.left() == [rig.build().environment]


def test_an_environment_that_is_gone_is_told_before_a_sandbox_is_made(
    rig: Rig, agent: Write
) -> None:
    rig.templates.deploy(agent(), install=True)
    build = rig.build()
    rig.environments.python(str(build.environment)).unlink()

    with (
        pytest.raises(SandboxPlatformError, match="deploy it again"),
        rig.templates.keep_python(build),
    ):
        raise AssertionError("there is none to keep")
    rig.templates.deploy(agent(), install=True)
    with rig.templates.keep_python(build) as python:
        assert python
