"""Templates: one build for one content, found by every name, never half there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.exceptions import (
    ConflictError,
    PermissionDeniedError,
    TemplateManifestError,
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.sandbox.templates.blobs import BlobStore
from ppio_agent.sandbox.templates.builds import Builder
from ppio_agent.sandbox.templates.environments import Environments
from ppio_agent.sandbox.templates.manifest import Host
from ppio_agent.sandbox.templates.records import Build
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.sandbox.templates.store import BASE_ID, Templates
from ppio_agent.storage import open_store
from tests.sandbox.agents import write_agent

HOST = Host(memory_mb=4096, cpus=2.0)


class Rig:
    """Templates on a folder, with all that tests look at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.used: dict[str, Build] = {}
        self.found: dict[str, Path] = {}
        self.numbers = iter(range(1000))
        self.later = timedelta()
        self.store = open_store("memory://")
        self.templates = self.open()

    def open(self) -> Templates:
        return Templates(
            self.store,
            BlobStore(self.folder / "blobs"),
            Environments(self.folder / "environments"),
            host=HOST,
            id_factory=lambda: f"{next(self.numbers):020d}",
            find=self.found.get,
            in_use=lambda: self.used,
            clock=lambda: utc_now() + self.later,
        )

    def blobs(self) -> int:
        return sum(path.is_file() for path in (self.folder / "blobs").rglob("*"))


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def agent(tmp_path: Path) -> Callable[..., FolderSource]:
    def write(text: str = "x = 1\n", **more: str) -> FolderSource:
        folder = write_agent(tmp_path / "src", "bot", {"app.py": text}, **more)  # type: ignore[arg-type]
        return FolderSource.of(folder)

    return write


def test_the_base_template_is_everybodys(rig: Rig) -> None:
    record, build = rig.templates.choose("base", tenant="anyone")

    assert (record.id, record.tenant, build.entrypoint) == (BASE_ID, "", None)
    with pytest.raises(PermissionDeniedError):
        rig.templates.delete("base", tenant="anyone")


def test_two_deploys_of_one_folder_make_one_build(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    first, new = rig.templates.deploy(agent())
    second, again = rig.templates.deploy(agent())

    assert (new, again) == (True, False)
    assert first == second
    assert len(first.builds) == 1


def test_one_changed_byte_makes_a_second_build_of_the_same_template(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    first, _ = rig.templates.deploy(agent("x = 1\n"))
    second, new = rig.templates.deploy(agent("x = 2\n", version="1.1.0"))

    assert new
    assert first.id == second.id
    assert [b.version for b in second.builds] == ["1.0.0", "1.1.0"]
    assert second.latest.digest != first.latest.digest


def test_going_back_makes_the_old_build_the_latest_again(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    first, _ = rig.templates.deploy(agent("x = 1\n"))
    rig.templates.deploy(agent("x = 2\n"))
    back, new = rig.templates.deploy(agent("x = 1\n"))

    assert not new
    assert (len(back.builds), back.latest) == (2, first.latest)


def test_a_template_is_found_by_id_name_and_version(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    record, _ = rig.templates.deploy(agent())
    rig.templates.deploy(agent("x = 2\n", version="2.0.0"))
    refs = [record.id, "bot", "bot:1.0.0", f"{record.id}:2.0.0", "bot:latest"]
    versions = []
    for ref in [*refs, f"{record.id}-local"]:
        found, build = rig.templates.choose(ref)
        assert found.id == record.id
        versions += [b.version for b in found.builds if b.id == build.id]

    assert versions == ["2.0.0", "2.0.0", "1.0.0", "2.0.0", "2.0.0", "2.0.0"]
    for ref in ("bot:3.0.0", "bot2", "", "bo-t"):
        with pytest.raises(TemplateNotFoundError, match="deploy it first"):
            rig.templates.get(ref)


def test_another_tenants_template_is_not_there(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    mine, _ = rig.templates.deploy(agent(), tenant="red")
    theirs, _ = rig.templates.deploy(agent(), tenant="blue")

    assert mine.id != theirs.id
    assert rig.templates.get("bot", tenant="red").id == mine.id
    with pytest.raises(TemplateNotFoundError):
        rig.templates.get(theirs.id, tenant="red")
    seen = [r.id for r in rig.templates.list_templates(tenant="red")]
    assert sorted(seen) == sorted([BASE_ID, mine.id])
    assert len(rig.templates.list_templates()) == 3


def test_a_named_template_must_be_that_of_the_name(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    record, _ = rig.templates.deploy(agent())
    for template_id, fits in ((record.id, True), ("z" * 20, False)):
        source = agent("x = 3\n")
        text = source.manifest.read_text()
        source.manifest.write_text(
            f"{text}  sandbox:\n    template_id: '{template_id}'\n"
        )
        if fits:
            assert rig.templates.deploy(source)[0].id == record.id
        else:
            with pytest.raises(ConflictError, match="names template zzzz"):
                rig.templates.deploy(source)


def test_all_faults_are_told_at_once_and_nothing_is_written(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    source = agent(version="one")
    (source.folder / "leak").symlink_to("/etc/passwd")
    os.mkfifo(source.folder / "pipe")

    with pytest.raises(TemplateManifestError) as info:
        rig.templates.deploy(source)

    assert [p[0] for p in info.value.problems] == ["metadata.version", "leak", "pipe"]
    assert rig.blobs() == 0
    assert len(rig.templates.list_templates()) == 1


def test_the_newest_five_builds_and_those_in_use_are_kept(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    first, _ = rig.templates.deploy(agent("x = 0\n"))
    rig.used = {first.latest.id: rig.templates.choose("bot")[1]}
    for number in range(1, 8):
        record, _ = rig.templates.deploy(agent(f"x = {number}\n"))

    assert len(record.builds) == 6
    assert record.builds[0] == first.latest
    rig.used = {}
    record, _ = rig.templates.deploy(agent("x = 9\n"))
    assert len(record.builds) == 5


def test_files_of_dropped_builds_go_while_the_platform_runs(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    """At the second look, of which there is one an hour at most."""
    for number in range(7):
        rig.templates.deploy(agent(f"x = {number}\n"))
    before = rig.blobs()
    rig.templates.deploy(agent("x = 7\n"))
    rig.templates.tidy()
    assert rig.blobs() > before
    rig.later = timedelta(hours=1, seconds=1)
    record, _ = rig.templates.deploy(agent("x = 8\n"))
    rig.templates.tidy()
    rig.later *= 2
    rig.templates.tidy()

    # Five builds of one file each, what they share, and their compiled forms.
    assert rig.blobs() < before
    for build in record.builds:
        choice = rig.templates.choose(f"bot:{build.version}")[1]
        rig.templates.fill(choice, rig.folder / build.id)


def test_files_of_deploys_that_failed_go_without_another(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    """They were kept before it failed, and no build ever refers to them."""
    rig.templates.deploy(agent())
    kept = rig.blobs()
    source = agent("x = 2\n")
    manifest = source.folder / ".ppio-agent.yaml"
    named = f"  sandbox:\n    template_id: {'a' * 20}\n"
    manifest.write_text(manifest.read_text() + named)
    with pytest.raises(ConflictError):
        rig.templates.deploy(FolderSource.of(source.folder))
    assert rig.blobs() > kept
    rig.later = timedelta(hours=1, seconds=1)
    rig.templates.tidy()
    assert rig.blobs() == kept


def test_files_of_a_deploy_under_way_stay(
    rig: Rig, agent: Callable[..., FolderSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clocks say, and whatever becomes of a build that it takes some of."""
    rig.templates.deploy(agent())
    compiled = Builder.compiled

    def late(*args: Any) -> dict[str, str]:
        done = compiled(*args)
        rig.templates.delete("bot")
        for path in (rig.folder / "blobs").rglob("*"):
            os.utime(path, (0, 0))
        for hours in (8, 16):
            rig.later = timedelta(hours=hours)
            rig.templates.tidy()
        return done

    monkeypatch.setattr(Builder, "compiled", late)
    rig.templates.deploy(agent(version="2.0.0"))
    build = rig.templates.choose("bot")[1]
    assert build.compiled
    rig.templates.fill(build, rig.folder / "made")


@pytest.mark.parametrize("new", [True, False])
def test_a_sandbox_is_made_from_a_build_that_is_just_dropped(
    rig: Rig, agent: Callable[..., FolderSource], new: bool
) -> None:
    """Though the files of dropped builds are removed in the same moment."""
    rig.templates.deploy(agent())
    if not new:
        rig.templates.collect()
    build = rig.templates.choose("bot")[1]
    rig.later = timedelta(hours=2)
    rig.templates.delete("bot")
    rig.templates.tidy()

    rig.templates.fill(build, rig.folder / "made")
    assert (rig.folder / "made" / "app.py").read_text() == "x = 1\n"
    rig.later = timedelta(hours=4)
    rig.templates.tidy()
    with pytest.raises(FileNotFoundError):
        rig.templates.fill(build, rig.folder / "again")


def test_a_build_is_copied_with_links_modes_and_compiled_modules(
    rig: Rig, agent: Callable[..., FolderSource], tmp_path: Path
) -> None:
    source = agent("import lib.mod\n")
    (source.folder / "lib").mkdir()
    (source.folder / "lib" / "mod.py").write_text("x = 1\n")
    (source.folder / "lib" / "link").symlink_to("../run.sh")
    (source.folder / "run.sh").write_text("#!/bin/sh\n")
    (source.folder / "run.sh").chmod(0o700)
    rig.templates.deploy(source)
    _, build = rig.templates.choose("bot")

    rig.templates.fill(build, tmp_path / "app")

    app = tmp_path / "app"
    cached = f"mod.{sys.implementation.cache_tag}.pyc"
    assert (app / "lib" / "__pycache__" / cached).is_file()
    assert (app / "lib" / "link").resolve() == app / "run.sh"
    assert stat.S_IMODE((app / "run.sh").stat().st_mode) == 0o755
    assert not (app / ".ppio-agent.yaml").exists()


def test_a_reference_that_is_not_held_is_looked_for_and_deployed(
    rig: Rig, agent: Callable[..., FolderSource]
) -> None:
    rig.found["bot"] = agent().folder

    record, _ = rig.templates.choose("bot", tenant="red")

    assert (record.name, record.tenant) == ("bot", "red")
    assert "status" not in agent().manifest_text()


def test_deleting_frees_the_name(rig: Rig, agent: Callable[..., FolderSource]) -> None:
    record, _ = rig.templates.deploy(agent())
    rig.templates.delete(record.id)

    with pytest.raises(TemplateNotFoundError):
        rig.templates.get("bot")
    assert rig.templates.deploy(agent())[0].id != record.id


@pytest.mark.parametrize("ref", ["bot:1.0.0", "bot:latest", "bot:"])
def test_one_version_is_not_taken_for_all(
    rig: Rig, agent: Callable[..., FolderSource], ref: str
) -> None:
    rig.templates.deploy(agent())

    with pytest.raises(ValidationError, match=r"delete bot$"):
        rig.templates.delete(ref)
    assert rig.templates.get("bot").name == "bot"


def test_spawns_are_counted(rig: Rig) -> None:
    rig.templates.note_spawn(BASE_ID)
    rig.templates.note_spawn("no such template")

    record = rig.templates.get("base")
    assert record.spawn_count == 1
    assert record.last_spawned_at is not None


def test_what_nothing_refers_to_is_collected(
    rig: Rig, agent: Callable[..., FolderSource], tmp_path: Path
) -> None:
    rig.templates.deploy(agent())
    held = rig.blobs()
    rig.templates.deploy(agent("y = 2\n"))
    rig.templates.delete("bot")
    rig.templates.deploy(agent())

    rig.open().collect()

    assert rig.blobs() == held
    rig.templates.fill(rig.templates.choose("bot")[1], tmp_path / "app")


CRASH = """
import os, sys
from pathlib import Path
from ppio_agent.sandbox.templates.blobs import BlobStore
from ppio_agent.sandbox.templates.environments import Environments
from ppio_agent.sandbox.templates.manifest import Host
from ppio_agent.sandbox.templates.sources import FolderSource
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import open_store

data, source = Path(sys.argv[1]), Path(sys.argv[2])
store = open_store(f"sqlite:///{data}/x.db")
templates = Templates(store, BlobStore(data / "blobs"), Environments(data / "env"),
                      id_factory=lambda: "t" * 20,
                      host=Host(memory_mb=4096, cpus=2.0))
store.write = lambda *_: os.kill(os.getpid(), 9)
templates.deploy(FolderSource.of(source))
"""


def test_a_deploy_that_is_killed_leaves_the_old_build_and_can_be_repeated(
    tmp_path: Path, agent: Callable[..., FolderSource]
) -> None:
    """Killed at the worst moment: all files are written, the record is not."""
    rig = Rig(tmp_path / "data")
    rig.store = open_store(f"sqlite:///{rig.folder}/x.db")
    rig.templates = rig.open()
    old, _ = rig.templates.deploy(agent("x = 1\n"))
    held = rig.blobs()
    rig.store.close()
    source = agent("x = 2\n")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CRASH), rig.folder, source.folder],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9
    assert rig.blobs() > held

    rig.store = open_store(f"sqlite:///{rig.folder}/x.db")
    rig.templates = rig.open()
    rig.templates.collect()

    try:
        assert rig.templates.get("bot") == old
        assert rig.blobs() == held
        rig.templates.fill(rig.templates.choose("bot")[1], tmp_path / "app")
        assert (tmp_path / "app" / "app.py").read_text() == "x = 1\n"
        assert rig.templates.deploy(source)[1]
    finally:
        rig.store.close()
