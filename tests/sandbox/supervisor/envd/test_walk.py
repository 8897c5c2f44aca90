"""The way to a file, with links on it and people who move things meanwhile."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from ppio_agent.sandbox.supervisor.envd.roots import Roots
from ppio_agent.sandbox.supervisor.envd.rpc import RpcError
from ppio_agent.sandbox.supervisor.envd.walk import find


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    """The folders of a sandbox, and a secret beside them."""
    folders = {name: str(tmp_path / name) for name in ("home", "app", "tmp")}
    for folder in folders.values():
        os.mkdir(folder)
    (tmp_path / "secret").write_text("secret")
    return Roots.of(**folders, confined=True)


def read(roots: Roots, path: str, *, follow: bool = True) -> str:
    """Read a file as callers name it."""
    with (
        find(roots, roots.locate(path), follow=follow) as spot,
        open(spot.open(os.O_RDONLY), encoding="utf-8") as file,
    ):
        return file.read()


def handles() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def test_links_are_followed_as_long_as_they_stay_inside(
    roots: Roots, tmp_path: Path
) -> None:
    """Relative or by full path, in one another, to a folder or to the file."""
    home, app = tmp_path / "home", tmp_path / "app"
    (home / "a" / "b").mkdir(parents=True)
    (home / "a" / "f").write_text("found")
    (home / "a" / "b" / "up").symlink_to("../f")
    (home / "to-b").symlink_to(f"{home}/a/./b")
    (app / "over").symlink_to(f"{home}/to-b/../f")
    before = handles()

    for path in ("a/b/up", "to-b/up", "/app/over"):
        assert read(roots, path) == "found"
    with find(roots, roots.locate("to-b/up"), follow=True) as spot:
        assert spot.path == "/home/user/a/f"
    assert handles() <= before


@pytest.mark.parametrize(
    "target",
    [
        "../secret",
        "{}/secret",
        "/etc/passwd",
        "/app",
        "a/../../secret",
        "{}/home/../secret",
    ],
)
def test_a_link_that_leads_out_is_refused(
    roots: Roots, tmp_path: Path, target: str
) -> None:
    """As the file, or on the way to it; it leaves no handle open."""
    (tmp_path / "home" / "a").mkdir()
    (tmp_path / "home" / "link").symlink_to(target.format(tmp_path))
    before = handles()

    for path in ("link", "link/x", "link/../link"):
        with pytest.raises(RpcError) as caught:
            read(roots, path)
        assert caught.value.code == "permission_denied"
    assert handles() <= before


def test_links_in_circles_are_refused(roots: Roots, tmp_path: Path) -> None:
    """After a bounded number of steps."""
    (tmp_path / "home" / "x").symlink_to("y")
    (tmp_path / "home" / "y").symlink_to("x")

    with pytest.raises(RpcError) as caught:
        read(roots, "x")
    assert caught.value.code == "invalid_argument"


def test_a_link_is_opened_only_where_it_is_followed(
    roots: Roots, tmp_path: Path
) -> None:
    """Even a harmless one."""
    (tmp_path / "home" / "f").write_text("found")
    (tmp_path / "home" / "link").symlink_to("f")

    with pytest.raises(OSError, match="symbolic link") as caught:
        read(roots, "link", follow=False)
    assert caught.value.errno == errno.ELOOP


def test_missing_folders_are_made_if_asked_for(roots: Roots, tmp_path: Path) -> None:
    """Not the last name, and nothing otherwise."""
    with pytest.raises(FileNotFoundError):
        find(roots, roots.locate("a/b/c"), follow=True)
    find(roots, roots.locate("a/b/c"), follow=True, make=True).close()

    assert (tmp_path / "home" / "a" / "b").is_dir()
    assert not (tmp_path / "home" / "a" / "b" / "c").exists()


def test_a_file_on_the_way_is_no_folder(roots: Roots, tmp_path: Path) -> None:
    """Nothing is below it."""
    (tmp_path / "home" / "f").write_text("x")

    with pytest.raises(NotADirectoryError):
        read(roots, "f/x")


def test_without_a_host_links_lead_anywhere(tmp_path: Path) -> None:
    """The sandbox has a file system of its own; above its top is its top."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "f").write_text("found")
    (home / "up").symlink_to("../" * 40 + str(tmp_path).lstrip("/"))
    (home / "over").symlink_to(tmp_path)
    own = Roots.of(home=str(home), app="/app", tmp="/tmp", confined=False)

    for path in ("../f", "up/f", "over/f", str(tmp_path / "f")):
        assert read(own, path) == "found"


def test_nobody_who_swaps_a_folder_for_a_link_leads_out(
    roots: Roots, tmp_path: Path
) -> None:
    """Whatever moment it happens at."""
    home, inner, outer = tmp_path / "home", tmp_path / "home" / "d", tmp_path / "out"
    outer.mkdir()
    (outer / "f").write_text("secret")
    inner.mkdir()
    (inner / "f").write_text("own")
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            os.rename(inner, home / "aside")
            os.symlink(outer, inner)
            os.unlink(inner)
            os.rename(home / "aside", inner)

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(2000):
            try:
                seen.add(read(roots, "d/f"))
            except (RpcError, OSError):
                seen.add("refused")
    finally:
        over.set()
        thread.join()

    assert seen <= {"own", "refused"}
