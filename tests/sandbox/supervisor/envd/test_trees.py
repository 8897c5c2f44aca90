"""Whole trees. What callers see of it: `test_filesystem_service`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ppio_agent.sandbox.supervisor.envd.trees import carry, remove
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
    assert sum(1 for _ in remove(fd, "c")) > 100
    assert os.listdir(tmp_path) == ["b"]
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == handles


def test_what_others_remove_meanwhile_is_no_error(tmp_path: Path) -> None:
    """Only the whole has to be there."""
    (tmp_path / "a").mkdir()
    for number in range(5):
        (tmp_path / "a" / str(number)).write_text("x")
    fd = os.open(tmp_path, os.O_RDONLY)
    steps = remove(fd, "a")
    next(steps)
    next(steps)
    for path in (tmp_path / "a").iterdir():
        path.unlink()
    for _ in steps:
        pass

    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        next(remove(fd, "a"))
    os.close(fd)
