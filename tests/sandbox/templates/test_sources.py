"""Folders and archives as sources of templates."""

from __future__ import annotations

import gzip
import os
import tarfile
import tracemalloc
from contextlib import AbstractContextManager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def _opened(
    archive: BytesIO, folder: Path, *, max_bytes: int = 100_000
) -> AbstractContextManager[ArchiveSource]:
    return ArchiveSource.open(archive, max_bytes=max_bytes, folder=folder)


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


def test_an_archive_yields_what_is_in_it(tmp_path: Path) -> None:
    members = [
        ("./", None),
        ("./.ppio-agent.yaml", b"a: b"),
        ("d/x", b"12"),
        ("l", "d/x"),
    ]
    with _opened(_archive(*members), tmp_path, max_bytes=100) as source:
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


def test_names_that_lead_out_are_kept_as_they_are_for_the_rules_to_see(
    tmp_path: Path,
) -> None:
    with _opened(_archive(("../x", b""), ("/etc/y", b"")), tmp_path) as source:
        assert [c.path for c in source.candidates()] == ["../x", "/etc/y"]


def test_an_archive_without_a_manifest_is_a_problem(tmp_path: Path) -> None:
    with (
        _opened(_archive(("a", b"")), tmp_path) as source,
        pytest.raises(TemplateManifestError, match="is not in the archive"),
    ):
        source.manifest_text()


def _read_all(data: bytes, folder: Path) -> None:
    with _opened(BytesIO(data), folder) as source:
        for candidate in source.candidates():
            if candidate.open is not None:
                with candidate.open() as content:
                    assert len(content.read()) == candidate.size


@pytest.mark.parametrize("cut", [0, 10, 60, 2000])
def test_a_broken_archive_is_refused(cut: int, tmp_path: Path) -> None:
    data = _archive(("a", os.urandom(3000))).getvalue()

    with pytest.raises(ValidationError, match="not a gzipped tar archive"):
        _read_all(data[:cut], tmp_path)


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not a gzipped tar archive"):
        _read_all(b"not an archive", tmp_path)


def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValidationError, match="holds more than"),
        _opened(_archive(("a", bytes(5000))), tmp_path, max_bytes=4999),
    ):
        pass


def test_files_of_an_archive_are_read_in_any_order_and_in_parts(tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    archive = _archive(("a", content), ("b", b"12"))

    with _opened(archive, tmp_path) as source:
        a, b = (found.open for found in source.candidates())
        assert a is not None
        assert b is not None
        with b() as second, a() as first:
            assert (second.read(1), first.read(300)) == (b"1", content[:300])
            assert (second.read(), first.read()) == (b"2", content[300:])
            first.seek(0)
            assert first.read() == content


def _header(kind: bytes, data: bytes, name: str = "h") -> bytes:
    """Return a member that is about the next one, such as a long name."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def _pax(**records: str) -> bytes:
    text = b""
    for name, value in records.items():
        record = f" {name.replace('__', '.')}={value}\n"
        length = len(record) + len(str(len(record) + 2))
        text += f"{length}{record}".encode()
    return _header(tarfile.XHDTYPE, text)


def _file(name: str = "a", content: bytes = b"12") -> bytes:
    return _header(tarfile.REGTYPE, content, name)


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_what_comes_before_a_member_is_not_read_if_it_is_large(
    kind: bytes, tmp_path: Path
) -> None:
    """An archive of some kilobytes would have filled the memory."""
    data = gzip.compress(_header(kind, bytes(16 << 20)) + _file(), 1)
    tracemalloc.start()
    try:
        with pytest.raises(ValidationError, match="a header of more than 64 KiB"):
            _read_all(data, tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


_SENSELESS = {
    "long names of long names": _header(b"L", b"n") * 1000,
    "no map": _pax(GNU__sparse__map="abc"),
    "no version": _pax(GNU__sparse__major="1", GNU__sparse__minor="0"),
    "no number": _pax(GNU__sparse__size="x"),
    "sparse": _pax(GNU__sparse__map="0,2", GNU__sparse__size="2"),
    "sparse of old": _header(b"S", b""),
    "backwards": _pax(size="-5"),
    "too far": _pax(size="9" * 99),
    "no charset": _header(b"x", b"21 hdrcharset=\xff\xff\xff\n"),
    "a number without end": _header(b"x", b"9" * 60_000),
    "names": b"".join(_header(b"L", b"n" * 60_000) + _file() for _ in range(150)),
}


@pytest.mark.parametrize("data", _SENSELESS.values(), ids=_SENSELESS.keys())
def test_headers_without_sense_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        _read_all(gzip.compress(data + _file()), tmp_path)


def test_headers_of_common_programs_are_understood(tmp_path: Path) -> None:
    """Long names of both forms, global comments as of git, times as fractions."""
    long = "d/" * 60 + "x"
    comment = _header(b"g", b"52 comment=" + b"c" * 40 + b"\n")
    pax = _pax(path=long, mtime="1700000000.5", uname="me")
    gnu = _header(b"L", f"{long}2".encode() + b"\0")
    data = gzip.compress(comment + pax + _file() + gnu + _file())

    with _opened(BytesIO(data), tmp_path) as source:
        found = [(c.path, c.size) for c in source.candidates()]
    assert found == [(long, 2), (f"{long}2", 2)]


_PIECES = st.sampled_from([
    *(_header(bytes([kind]), b"x\0") for kind in b"LKxgSX01235D"),
    *(_pax(**{name: value})
      for name in ("size", "path", "GNU__sparse__map", "GNU__sparse__size", "mtime")
      for value in ("-1", "0", "x", "1,2", "99999999999999999999")),
    _file(),
    bytes(512),
])  # fmt: skip


@given(
    pieces=st.lists(_PIECES, max_size=6),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8))),
    packed=st.booleans(),
)
def test_whatever_is_sent_is_read_or_refused(
    pieces: list[bytes], changes: list[tuple[int, bytes]], packed: bool
) -> None:
    """With the one error that callers are told of."""
    data = bytearray(b"".join(pieces))
    if not packed:
        data = bytearray(gzip.compress(data))
    for at, change in changes:
        data[at : at + len(change)] = change
    with TemporaryDirectory() as folder, suppress(ValidationError):
        _read_all(gzip.compress(data) if packed else bytes(data), Path(folder))


@given(st.binary(max_size=2000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with TemporaryDirectory() as folder, suppress(ValidationError):
        _read_all(gzip.compress(data), Path(folder))
