"""What the calls of `filesystem.Filesystem` do, on folders of a test."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.sandbox.supervisor.envd import filesystem_service, trees
from ppio_agent.sandbox.supervisor.envd.filesystem_service import FilesystemService
from ppio_agent.sandbox.supervisor.envd.roots import Roots
from ppio_agent.sandbox.supervisor.envd.rpc import Message, as_rpc_error

Call = Callable[..., dict[str, Any]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home folder."""
    for name in ("home", "app", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "home"


@pytest.fixture
def call(home: Path) -> Call:
    """Make calls; a refused one gives its code, under `refused`."""
    above = home.parent
    folders = {name: str(above / name) for name in ("home", "app", "tmp")}
    service = FilesystemService(Roots.of(**folders, confined=True))

    def make(method: str, **message: object) -> dict[str, Any]:
        try:
            found = getattr(service, method)(Message(message))
            answer = _result(found) if isinstance(found, Generator) else found
            return json.loads(answer) if isinstance(answer, bytes) else answer
        except Exception as exc:
            return {"refused": as_rpc_error(exc).code}

    return make


def _result(steps: Generator[None, None, Any]) -> Any:
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def paths(answer: dict[str, Any]) -> list[str]:
    """Return the paths of a listing."""
    return [entry["path"] for entry in answer["entries"]]


# Stat


def test_an_entry_tells_all_about_a_file(call: Call, home: Path) -> None:
    """Sizes are text, times to the nanosecond, names those of the sandbox."""
    (home / "f").write_text("four")
    (home / "f").chmod(0o640)
    os.utime(home / "f", ns=(0, 1_700_000_000_000_000_007))

    assert call("stat", path="f") == {
        "entry": {
            "name": "f",
            "type": "FILE_TYPE_FILE",
            "path": "/home/user/f",
            "size": "4",
            "mode": 0o640,
            "permissions": "-rw-r-----",
            "owner": "user",
            "group": "user",
            "modifiedTime": "2023-11-14T22:13:20.000000007Z",
        }
    }


def test_a_link_is_of_the_kind_of_its_target(call: Call, home: Path) -> None:
    """As in the cloud, with where it leads; a broken one is a link."""
    (home / "d").mkdir()
    (home / "to-d").symlink_to(home / "d")
    (home / "broken").symlink_to("nowhere/at/all")
    to_d, broken = (call("stat", path=name)["entry"] for name in ("to-d", "broken"))

    assert (to_d["type"], to_d["symlinkTarget"]) == (
        "FILE_TYPE_DIRECTORY",
        "/home/user/d",
    )
    assert (broken["type"], broken["symlinkTarget"]) == (
        "FILE_TYPE_SYMLINK",
        "nowhere/at/all",
    )


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [(-1, "1969-12-31T23:59:59.999999999Z"), (2**62, "2116-02-20T23:53:38.427387904Z")],
)
def test_any_time_can_be_told(
    call: Call, home: Path, nanoseconds: int, expected: str
) -> None:
    """A program may have set it."""
    (home / "f").write_text("")
    os.utime(home / "f", ns=(0, nanoseconds))

    assert call("stat", path="f")["entry"]["modifiedTime"] == expected


def test_names_that_are_no_text_are_told_as_far_as_they_are(
    call: Call, home: Path
) -> None:
    """A listing does not fail for them."""
    (home / os.fsdecode(b"a\xff")).write_text("")

    assert paths(call("list_dir", path="")) == ["/home/user/a�"]


# MakeDir


def test_a_folder_is_made_with_those_above_it(call: Call, home: Path) -> None:
    """What exists already is an error, a file as well."""
    (home / "f").write_text("")

    assert call("make_dir", path="a/b/c")["entry"]["path"] == "/home/user/a/b/c"
    assert (home / "a" / "b" / "c").is_dir()
    for path in ("a/b/c", "a", "f", "", "/tmp"):
        assert call("make_dir", path=path) == {"refused": "already_exists"}


# Move


def test_a_file_replaces_a_file_and_a_tree_moves_whole(call: Call, home: Path) -> None:
    """To folders that are made for it."""
    (home / "old").write_text("new")
    (home / "there").write_text("old")
    (home / "tree" / "below").mkdir(parents=True)

    found = call("move", source="old", destination="there")["entry"]
    assert (found["name"], (home / "there").read_text()) == ("there", "new")
    assert not (home / "old").exists()
    call("move", source="tree", destination="/tmp/x/y")
    assert (home.parent / "tmp" / "x" / "y" / "below").is_dir()


def test_nothing_replaces_a_folder(call: Call, home: Path) -> None:
    """Nor does a folder replace a file."""
    (home / "d").mkdir()
    (home / "e").mkdir()
    (home / "f").write_text("kept")

    for source, destination in (("f", "d"), ("d", "e"), ("d", "f"), ("f", "/tmp")):
        refused = call("move", source=source, destination=destination)
        assert refused == {"refused": "already_exists"}
    assert (home / "f").read_text() == "kept"
    assert call("move", source="d", destination="d/x") == {
        "refused": "invalid_argument"
    }
    assert call("move", source="no", destination="x") == {"refused": "not_found"}


def test_a_move_to_another_file_system_is_a_copy_that_appears_whole(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders of a sandbox may be mounts of their own."""
    tree = home / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "f").write_bytes(b"x" * 3_000_000)
    (tree / "d" / "f").chmod(0o751)
    (tree / "link").symlink_to("d/f")
    os.utime(tree / "d", ns=(0, 5))
    rename = os.rename

    def refuse(source: str, target: str, **options: int) -> None:
        if not source.startswith(".move-"):
            raise OSError(errno.EXDEV, "another device")
        rename(source, target, **options)

    monkeypatch.setattr(filesystem_service.os, "rename", refuse)
    assert "refused" not in call("move", source="tree", destination="/app/new")

    new = home.parent / "app" / "new"
    assert (new / "d" / "f").read_bytes() == b"x" * 3_000_000
    assert stat.S_IMODE((new / "d" / "f").stat().st_mode) == 0o751
    assert (new / "link").readlink() == Path("d/f")
    assert (new / "d").stat().st_mtime_ns == 5
    assert not tree.exists()
    assert os.listdir(new.parent) == ["new"]


def test_a_copy_that_fails_leaves_things_as_they_were(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing half is left, nothing is lost."""
    (home / "tree").mkdir()
    (home / "tree" / "f").write_text("kept")
    os.mkfifo(home / "tree" / "pipe")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "another device")

    monkeypatch.setattr(trees.os, "rename", refuse)
    refused = call("move", source="tree", destination="/app/new")

    assert refused == {"refused": "invalid_argument"}
    assert sorted(os.listdir(home / "tree")) == ["f", "pipe"]
    assert os.listdir(home.parent / "app") == []


# ListDir


def test_a_listing_is_by_name_each_folder_before_what_it_holds(
    call: Call, home: Path
) -> None:
    """As deep as asked; links to folders are told, not entered."""
    (home / "b" / "c" / "d").mkdir(parents=True)
    (home / "b" / "a").write_text("")
    (home / "a").symlink_to("b")

    top = ["/home/user/a", "/home/user/b"]
    assert paths(call("list_dir", path="")) == top
    assert paths(call("list_dir", path="~", depth=0)) == top
    deeper = [*top, "/home/user/b/a", "/home/user/b/c"]
    assert paths(call("list_dir", path="/home/user", depth=2)) == deeper
    assert paths(call("list_dir", depth=16)) == [*deeper, "/home/user/b/c/d"]
    assert paths(call("list_dir", path="a")) == ["/home/user/a/a", "/home/user/a/c"]


def test_a_listing_has_bounds(
    call: Call, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past them it is refused, for a part would be taken for the whole."""
    monkeypatch.setattr(filesystem_service, "_MAX_ENTRIES", 5)
    (home / "d").mkdir()
    for number in range(4):
        (home / "d" / str(number)).write_text("")

    assert len(call("list_dir", path="", depth=2)["entries"]) == 5
    (home / "e").write_text("")
    assert call("list_dir", path="", depth=2) == {"refused": "invalid_argument"}
    assert call("list_dir", path="", depth=17) == {"refused": "invalid_argument"}
    assert call("list_dir", path="e") == {"refused": "invalid_argument"}


# Remove


def test_a_tree_is_removed_and_no_link_followed(call: Call, home: Path) -> None:
    """In steps, so that others are served meanwhile."""
    kept = home / "kept"
    kept.mkdir()
    (kept / "f").write_text("")
    (home / "tree" / "d").mkdir(parents=True)
    (home / "tree" / "link").symlink_to(kept)
    (home / "to-kept").symlink_to(kept)
    for number in range(50):
        (home / "tree" / "d" / str(number)).write_text("")

    for path in ("tree", "to-kept"):
        assert call("remove", path=path) == {}
    assert os.listdir(home) == ["kept"]
    assert os.listdir(kept) == ["f"]
    assert call("remove", path="tree") == {"refused": "not_found"}


def test_a_link_to_itself_can_be_looked_at_and_removed(call: Call, home: Path) -> None:
    """It leads nowhere, but it does not lead out."""
    (home / "loop").symlink_to("loop")

    assert call("stat", path="loop")["entry"]["type"] == "FILE_TYPE_SYMLINK"
    assert "refused" not in call("move", source="loop", destination="moved")
    assert call("remove", path="moved") == {}
    assert os.listdir(home) == []


def test_the_folders_of_the_sandbox_stay(call: Call, home: Path) -> None:
    """They can be neither removed nor moved away."""
    for path in ("", "/app", "/tmp", str(home)):
        assert call("remove", path=path) == {"refused": "permission_denied"}
        moved = call("move", source=path, destination="x")
        assert moved == {"refused": "permission_denied"}


# The way out


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../x", "link", "link/x", "dir/secret"]
)
@pytest.mark.parametrize("method", ["stat", "make_dir", "list_dir", "remove", "move"])
def test_nothing_leads_out(call: Call, home: Path, method: str, path: str) -> None:
    """Neither a path nor a link, as what is used, on the way or as the target."""
    (home / "f").write_text("")
    (home / "link").symlink_to("/etc/passwd")
    (home / "dir").symlink_to(home.parent)
    if method == "move":
        found = [
            call("move", source=path, destination="x"),
            call("move", source="f", destination=path),
        ]
    else:
        found = [call(method, path=path)]

    assert found == [{"refused": "permission_denied"}] * len(found)
    assert (home / "f").exists()
    assert (home.parent / "secret").read_text() == "secret"
    assert os.path.lexists(home / "link")
