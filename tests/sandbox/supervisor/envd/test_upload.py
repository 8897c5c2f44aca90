"""Bodies that become files, on folders of a test."""

from __future__ import annotations

import errno
import gzip
import os
import stat
from pathlib import Path

import pytest

from ppio_agent.sandbox.supervisor.envd import upload
from ppio_agent.sandbox.supervisor.envd.roots import Roots
from ppio_agent.sandbox.supervisor.envd.rpc import RpcError
from ppio_agent.sandbox.supervisor.envd.upload import Upload

FORM = "multipart/form-data; boundary=sep"
RAW = "application/octet-stream"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder."""
    for name in ("home", "app", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path / "home"


def take(body: Upload, piece: bytes) -> None:
    """Let a body take a piece, in as many steps as it needs."""
    for _ in body.feed(piece):
        pass


def send(
    home: Path, *pieces: bytes, path: str = "", kind: str = RAW, encoding: str = ""
) -> list[dict[str, str]]:
    """Send a body to its end; one that is refused is given up."""
    folders = {name: str(home.parent / name) for name in ("home", "app", "tmp")}
    roots = Roots.of(**folders, confined=True)
    body = Upload(roots, path, content_type=kind, encoding=encoding)
    try:
        for piece in pieces:
            take(body, piece)
        return body.finish()
    finally:
        body.abandon()


def form(*parts: tuple[str, str, bytes]) -> bytes:
    """Return a form of parts: field, name of the file, content."""
    whole = b""
    for field, name, data in parts:
        head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
        whole += b"--sep\r\n" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
    return whole + b"--sep--\r\n"


def test_a_file_is_there_when_it_is_whole(home: Path) -> None:
    """Before that what was there is; folders above it are made."""
    (home / "f").write_text("old")
    folders = {name: str(home.parent / name) for name in ("home", "app", "tmp")}
    body = Upload(
        Roots.of(**folders, confined=True), "f", content_type=RAW, encoding=""
    )
    take(body, b"ne")
    assert (home / "f").read_text() == "old"
    take(body, b"w")

    assert body.finish() == [{"path": "/home/user/f", "name": "f", "type": "file"}]
    assert (home / "f").read_text() == "new"
    assert send(home, path="/app/a/b")[0]["path"] == "/app/a/b"
    assert (home.parent / "app" / "a" / "b").read_bytes() == b""


def test_a_replaced_file_keeps_its_mode(home: Path) -> None:
    """A script stays one."""
    (home / "f").write_text("old")
    (home / "f").chmod(0o750)
    send(home, b"new", path="f")

    assert stat.S_IMODE((home / "f").stat().st_mode) == 0o750


def test_a_link_is_written_through_and_stays(home: Path) -> None:
    """As long as it leads to a file of the sandbox."""
    (home / "f").write_text("old")
    (home / "link").symlink_to("f")
    (home / "new").symlink_to("a/b")
    send(home, b"new", path="link")
    send(home, b"made", path="new")

    assert (home / "f").read_text() == "new"
    assert (home / "link").is_symlink()
    assert (home / "a" / "b").read_text() == "made"
    (home / "out").symlink_to(home.parent / "x")
    with pytest.raises(RpcError) as caught:
        send(home, b"x", path="out")
    assert caught.value.code == "permission_denied"
    assert not (home.parent / "x").exists()


def test_each_part_named_file_is_a_file(home: Path) -> None:
    """Where its name says; other parts are nothing."""
    body = form(("file", "a/1", b"one"), ("text", "z", b"no"), ("file", "/tmp/2", b""))
    written = send(home, body[:50], body[50:], kind=FORM)

    assert [each["path"] for each in written] == ["/home/user/a/1", "/tmp/2"]
    assert (home / "a" / "1").read_text() == "one"
    assert not (home / "z").exists()


def test_a_path_of_the_request_wins_over_that_of_the_part(home: Path) -> None:
    """Of one part, that is."""
    send(home, form(("file", "ignored", b"one")), path="f", kind=FORM)
    assert os.listdir(home) == ["f"]
    body = form(("file", "a", b"one"), ("file", "b", b"two"))

    with pytest.raises(RpcError, match="two parts"):
        send(home, body, path="f", kind=FORM)


def test_what_is_no_file_is_not_replaced_by_one(home: Path) -> None:
    """A pipe, or a device such as `/dev/null`, is there for programs to use."""
    os.mkfifo(home / "pipe")

    with pytest.raises(RpcError, match="no file"):
        send(home, b"x", path="pipe")
    assert (home / "pipe").is_fifo()
    assert os.listdir(home) == ["pipe"]


def test_a_packed_body_is_unpacked_as_it_comes(home: Path) -> None:
    """In pieces of a bounded size, whatever it grows to."""
    data = bytes(5_000_000) + os.urandom(100_000)
    packed = gzip.compress(data)
    pieces = [packed[at : at + 1000] for at in range(0, len(packed), 1000)]
    send(home, *pieces, path="f", encoding="gzip")

    assert (home / "f").read_bytes() == data


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"x", {}),
        (b"x", {"path": "d"}),
        (b"x", {"path": "f", "kind": "text/plain"}),
        (b"x", {"path": "f", "encoding": "br"}),
        (b"x", {"path": "f", "encoding": "gzip"}),
        (gzip.compress(b"x")[:-1], {"path": "f", "encoding": "gzip"}),
        (gzip.compress(b"x") + b"y", {"path": "f", "encoding": "gzip"}),
        (b"", {"kind": "multipart/form-data"}),
        (b"", {"kind": FORM}),
        (form(("text", "a", b"x")), {"kind": FORM}),
        (form(("file", "f", b"x"))[:-9], {"kind": FORM}),
        (form(("file", "", b"x")), {"kind": FORM}),
        (b"--sep\r\nX: \xff\r\n\r\n", {"kind": FORM}),
    ],
    ids=[
        "no path",
        "a folder",
        "another type",
        "another encoding",
        "not packed",
        "packed and cut",
        "packed and more",
        "no boundary",
        "no part",
        "no file",
        "no end",
        "no name",
        "no text",
    ],
)
def test_a_body_that_is_not_what_it_says_is_refused(
    home: Path, body: bytes, options: dict[str, str]
) -> None:
    """And leaves nothing behind."""
    (home / "d").mkdir()
    with pytest.raises(RpcError) as caught:
        send(home, body, **options)

    assert caught.value.code == "invalid_argument"
    assert os.listdir(home) == ["d"]


def test_what_grows_too_large_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpacked size counts; so does the number of parts."""
    monkeypatch.setattr(upload, "MAX_UPLOAD", 1000)
    for body, options in (
        (bytes(1001), {"path": "f"}),
        (gzip.compress(bytes(1001)), {"path": "f", "encoding": "gzip"}),
    ):
        with pytest.raises(OSError, match="more than 1000") as caught:
            send(home, body, **options)
        assert caught.value.errno == errno.EFBIG
    monkeypatch.setattr(upload, "_MAX_PARTS", 2)
    with pytest.raises(RpcError, match="more than 2 parts"):
        send(home, form(*[("file", str(n), b"") for n in range(3)]), kind=FORM)
    assert sorted(os.listdir(home)) == ["0", "1"]


def test_a_full_disk_is_told_and_nothing_is_left(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there stays."""
    (home / "f").write_text("old")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upload.os, "write", full)
    with pytest.raises(OSError, match="No space") as caught:
        send(home, b"new", path="f")
    monkeypatch.undo()

    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(home) == ["f"]
    assert (home / "f").read_text() == "old"
