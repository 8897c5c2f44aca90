"""Packing a folder for an upload, and noting where it was deployed to."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path

import pytest

from ppio_agent.exceptions import TemplateManifestError
from ppio_agent.sandbox.templates.manifest import parse_manifest
from ppio_agent.sandbox.templates.packing import check, write_status
from ppio_agent.sandbox.templates.snapshot import Candidate, select
from ppio_agent.sandbox.templates.sources import ArchiveSource
from tests.sandbox.agents import write_agent

RECORD = {"templateID": "t" * 20, "names": ["my-agent"], "buildID": "b1"}


def test_a_package_holds_the_chosen_files_and_the_manifest(tmp_path: Path) -> None:
    """All others that are one file with them on the disk are files of their own."""
    folder = write_agent(tmp_path, "my-agent", {"app.py": "1", ".env": "s3cret"})
    (folder / "app.py").chmod(0o700)
    (folder / "same.py").hardlink_to(folder / "app.py")
    (folder / "link.py").symlink_to("app.py")

    package = check(folder)

    assert (package.name, package.version) == ("my-agent", "1.0.0")
    archive = BytesIO(package.archive())
    with ArchiveSource.open(archive, max_bytes=10_000, folder=tmp_path) as source:
        chosen, problems = select(source.candidates(), source.ignore())
        assert source.manifest_text() == package.source.manifest.read_text()
        assert [_shown(c) for c in chosen] == [
            ("app.py", b"1", True, ""),
            ("link.py", b"", False, "app.py"),
            ("same.py", b"1", True, ""),
        ]
    assert problems == []
    assert [c.path for c in package.chosen] == [c.path for c in chosen]


def _shown(candidate: Candidate) -> tuple[str, bytes, bool, str]:
    with candidate.open() if candidate.open else BytesIO() as content:
        return candidate.path, content.read(), candidate.executable, candidate.link


def test_a_folder_with_faults_is_no_package(tmp_path: Path) -> None:
    folder = write_agent(tmp_path, "my-agent", {"other.py": ""})

    with pytest.raises(TemplateManifestError, match=r"there is no file app\.py"):
        check(folder)


def test_the_status_is_written_back_with_all_else_kept(tmp_path: Path) -> None:
    manifest = write_agent(tmp_path, "my-agent", {"app.py": ""}) / ".ppio-agent.yaml"
    manifest.write_text(manifest.read_text() + "# the end\n")
    manifest.chmod(0o640)
    before = manifest.read_text()

    write_status(manifest, RECORD)

    status = parse_manifest(manifest.read_text()).status
    assert status["agent_id"] == f"my_agent-{'t' * 20}"
    assert (status["phase"], status["build_id"]) == ("deployed", "b1")
    assert (
        manifest.read_text()
        .replace("# the end\n", "")
        .startswith(before.replace("# the end\n", ""))
    )
    assert manifest.stat().st_mode & 0o777 == 0o640
    assert {p.name for p in manifest.parent.iterdir()} == {manifest.name, "app.py"}


def test_a_status_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        write_status(tmp_path / "gone.yaml", RECORD)

    assert "the status could not be written" in caplog.text
