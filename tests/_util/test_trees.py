"""Whole trees by handles: of any depth, with few descriptors, no link followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent._util.trees import Climber, let_in, removal

_DEEP = 1100


@pytest.fixture
def top(tmp_path: Path) -> Iterator[int]:
    handles = len(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)
    # Fewer, if something of another test has been collected meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= handles


def _nest(top: int, depth: int, name: str = "d" * 20) -> None:
    """Make folders in one another, below a path longer than paths may be."""
    fd = os.dup(top)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("leaf", os.O_CREAT, dir_fd=fd))
    os.close(fd)


def _lowest_free(fd: int) -> int:
    free = os.dup(fd)
    os.close(free)
    return free


def test_a_tree_of_any_depth_is_removed_with_few_descriptors(top: int) -> None:
    """More levels than calls may be nested, or files be open."""
    _nest(top, _DEEP)
    before = _lowest_free(top)
    highest = max(_lowest_free(top) for _ in removal(top, "d" * 20))

    assert os.listdir(top) == []
    assert highest < before + 10


def test_no_link_is_followed(top: int, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    (tmp_path / "tree" / "in").mkdir(parents=True)
    (tmp_path / "tree" / "in" / "link").symlink_to(kept)
    (tmp_path / "tree" / "up").symlink_to("..")
    for _ in removal(top, "tree"):
        pass

    assert os.listdir(top) == ["kept"]
    assert (kept / "file").read_text() == "x"


def test_a_folder_that_is_moved_away_meanwhile_leads_nowhere(
    top: int, tmp_path: Path
) -> None:
    """Up is where it came from, or nowhere."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    climber = Climber(top, "a")
    climber.down("b")
    (tmp_path / "a" / "b").rename(tmp_path / "other" / "b")
    with pytest.raises(OSError, match="b was moved away"):
        climber.up()
    climber.close()
    climber.close()


def test_closed_folders_are_opened_to_their_owner(top: int, tmp_path: Path) -> None:
    for mode in (0, 0o500, 0o300):
        folder = tmp_path / "a"
        folder.mkdir()
        folder.chmod(mode)
        os.close(let_in("a", top))
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.rmdir()


def test_what_is_no_folder_is_removed_and_what_is_not_there_told(
    top: int, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for _ in removal(top, "pipe"):
        pass
    with pytest.raises(FileNotFoundError):
        next(removal(top, "pipe"))
    with pytest.raises(FileNotFoundError):
        let_in("pipe", top)
