"""Whole trees. What callers see of it: `test_filesystem_service`."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from ppio_agent._util.trees import removal
from ppio_agent.sandbox.supervisor.envd.rpc import RpcError
from ppio_agent.sandbox.supervisor.envd.trees import carry
from ppio_agent.sandbox.supervisor.envd.walk import Spot


def test_both_go_step_by_step_and_leave_no_handle(tmp_path: Path) -> None:
    """A step is an entry, or a piece of a file."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for number in range(100):
        (tmp_path / "a" / str(number)).write_text("x")
    handles = len(os.listdir("/proc/self/fd"))
    fd = os.open(tmp_path, os.O_RDONLY)
    old, new = Spot(fd, "a", "a"), Spot(fd, "c", "c")

    assert sum(1 for _ in carry(old, new)) > 200
    assert len(os.listdir(tmp_path / "c")) == 100
    assert sum(1 for _ in removal(fd, "c")) > 100
    assert os.listdir(tmp_path) == ["b"]
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) <= handles


def test_a_step_is_short_however_deep_a_tree_is(tmp_path: Path) -> None:
    """A folder without files is one, too; also when a copy is taken back."""
    deep = tmp_path.joinpath("a", *["d"] * 50)
    deep.mkdir(parents=True)
    os.mkfifo(deep / "pipe")
    fd = os.open(tmp_path, os.O_RDONLY)
    steps = itertools.count()
    with pytest.raises(RpcError, match="cannot leave"):
        list(zip(carry(Spot(fd, "a", "a"), Spot(fd, "c", "c")), steps, strict=False))

    assert next(steps) > 250  # there 3 a folder, and back again 2
    assert os.listdir(tmp_path) == ["a"]
    (deep / "pipe").unlink()
    assert sum(1 for _ in removal(fd, "a")) > 100
    os.close(fd)


def test_what_others_remove_meanwhile_is_no_error(tmp_path: Path) -> None:
    """Only the whole has to be there."""
    (tmp_path / "a").mkdir()
    for number in range(5):
        (tmp_path / "a" / str(number)).write_text("x")
    fd = os.open(tmp_path, os.O_RDONLY)
    steps = removal(fd, "a")
    next(steps)
    next(steps)
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    for _ in steps:
        pass

    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        next(removal(fd, "a"))
    os.close(fd)


def test_a_tree_of_any_depth_is_carried(tmp_path: Path) -> None:
    """Modes of folders and all; a program inside may have made it."""
    fd = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("b", dir_fd=fd)
    below = os.dup(fd)
    for _ in range(600):
        os.mkdir("a", 0o750, dir_fd=below)
        inner = os.open("a", os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = inner
    os.close(below)
    target = os.open("b", os.O_RDONLY, dir_fd=fd)
    for _ in carry(Spot(fd, "a", "a"), Spot(target, "c", "c")):
        pass

    assert os.listdir(tmp_path) == ["b"]
    deep = tmp_path / "b" / "c" / "/".join(["a"] * 599)
    assert deep.stat().st_mode & 0o777 == 0o750
    for _ in removal(target, "c"):
        pass
    os.close(target)
    os.close(fd)


def test_a_file_that_becomes_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """A program inside may swap it between two looks."""
    (tmp_path / "a").write_text("x")
    fd = os.open(tmp_path, os.O_RDONLY)
    steps = carry(Spot(fd, "a", "a"), Spot(fd, "b", "b"))
    next(steps)
    (tmp_path / "a").unlink()
    os.mkfifo(tmp_path / "a")

    with pytest.raises(RpcError, match="cannot leave"):
        list(steps)
    assert os.listdir(tmp_path) == ["a"]
    os.close(fd)
