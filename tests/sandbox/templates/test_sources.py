"""Folders and archives as sources of templates."""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from ppio_agent.exceptions import TemplateManifestError, ValidationError
from ppio_agent.sandbox.templates.sources import ArchiveSource, FolderSource


def _archive(*members: tuple[str, bytes | str | None]) -> BytesIO:
    """Return a gzipped tar: bytes is a file, str a link, None a folder."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size, info.mode = len(content), 0o755
            data = content if isinstance(content, bytes) else b""
            tar.addfile(info, BytesIO(data))
    out.seek(0)
    return out


def test_a_folder_yields_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "a.py").write_text("x")
    (tmp_path / "run").write_text("")
    (tmp_path / "run").chmod(0o755)
    (tmp_path / "link").symlink_to("pkg/a.py")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "x").write_text("")
    (tmp_path / ".dockerignore").write_text("skipped\n")

    source = FolderSource.of(tmp_path)
    found = {c.path: (c.kind, c.size, c.executable) for c in source.candidates()}

    assert found == {
        ".dockerignore": ("file", 8, False),
        "link": ("link", 0, False),
        "pipe": ("other", 0, False),
        "pkg": ("folder", 0, False),
        "pkg/a.py": ("file", 1, False),
        "run": ("file", 0, True),
    }


def test_a_path_may_name_the_manifest_itself(tmp_path: Path) -> None:
    manifest = tmp_path / "agent.yaml"
    manifest.write_text("a: b")

    source = FolderSource.of(manifest)

    assert (source.folder, source.manifest_path) == (tmp_path, "agent.yaml")
    assert source.manifest_text() == "a: b"


def test_a_missing_or_unreadable_manifest_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(TemplateManifestError, match="no such file"):
        FolderSource.of(tmp_path).manifest_text()
    (tmp_path / ".ppio-agent.yaml").write_bytes(b"a: b\nc: \xff")
    with pytest.raises(TemplateManifestError, match=r"line 2\): is not UTF-8"):
        FolderSource.of(tmp_path).manifest_text()


def test_a_manifest_that_is_no_file_is_a_problem_and_not_waited_for(
    tmp_path: Path,
) -> None:
    """A pipe would be opened only when somebody writes to it."""
    os.mkfifo(tmp_path / ".ppio-agent.yaml")
    with pytest.raises(TemplateManifestError, match="is not a regular file"):
        FolderSource.of(tmp_path).manifest_text()


def test_an_archive_yields_what_is_in_it() -> None:
    members = [
        ("./", None),
        ("./.ppio-agent.yaml", b"a: b"),
        ("d/x", b"12"),
        ("l", "d/x"),
    ]
    with ArchiveSource.open(_archive(*members), max_bytes=100) as source:
        found = [(c.path, c.kind, c.size, c.link) for c in source.candidates()]
        contents = [c.open().read() for c in source.candidates() if c.open]
        text = source.manifest_text()

    assert text == "a: b"
    assert found == [
        (".ppio-agent.yaml", "file", 4, ""),
        ("d/x", "file", 2, ""),
        ("l", "link", 0, "d/x"),
    ]
    assert contents == [b"a: b", b"12"]


def test_names_that_lead_out_are_kept_as_they_are_for_the_rules_to_see() -> None:
    with ArchiveSource.open(
        _archive(("../x", b""), ("/etc/y", b"")), max_bytes=100
    ) as source:
        assert [c.path for c in source.candidates()] == ["../x", "/etc/y"]


def test_an_archive_without_a_manifest_is_a_problem() -> None:
    with (
        ArchiveSource.open(_archive(("a", b"")), max_bytes=9) as source,
        pytest.raises(TemplateManifestError, match="is not in the archive"),
    ):
        source.manifest_text()


def _read_all(data: bytes) -> None:
    with ArchiveSource.open(BytesIO(data), max_bytes=10_000) as source:
        for candidate in source.candidates():
            assert candidate.open is not None
            candidate.open().read()


@pytest.mark.parametrize("cut", [0, 10, 60, 2000])
def test_a_broken_archive_is_refused(cut: int) -> None:
    data = _archive(("a", os.urandom(3000))).getvalue()

    with pytest.raises(ValidationError, match="not a gzipped tar archive"):
        _read_all(data[:cut])


def test_what_is_no_archive_is_refused() -> None:
    with pytest.raises(ValidationError, match="not a gzipped tar archive"):
        _read_all(b"not an archive")


def test_an_archive_that_unpacks_to_too_much_is_refused() -> None:
    with (
        pytest.raises(ValidationError, match="holds more than"),
        ArchiveSource.open(_archive(("a", bytes(5000))), max_bytes=4999),
    ):
        pass
