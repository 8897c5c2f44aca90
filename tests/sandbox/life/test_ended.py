"""What stays of sandboxes: their logs, for a day, a hundred at most."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.life.ended import EndedLogs, remove_tree
from ppio_agent.storage import open_store


class Days:
    """A wall clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Days:
    return Days()


@pytest.fixture
def ended(tmp_path: Path, clock: Days) -> EndedLogs:
    return EndedLogs(open_store("memory://"), tmp_path / "logs", clock=clock)


def _end(ended: EndedLogs, folder: Path, sandbox_id: str) -> None:
    logs = folder / sandbox_id / "logs"
    logs.mkdir(parents=True)
    (logs / "agent.log").write_text(sandbox_id)
    ended.bury(sandbox_id, tenant="red", reason="request", root=logs.parent)


def test_the_logs_of_an_ended_sandbox_are_its_tenants(
    ended: EndedLogs, tmp_path: Path
) -> None:
    _end(ended, tmp_path, "one")

    found = ended.find("one", "red")
    assert found is not None
    assert (found / "agent.log").read_text() == "one"
    assert ended.find("one", None) == found
    assert ended.find("one", "blue") is None
    assert ended.find("two", "red") is None


def test_after_a_day_they_are_gone(
    ended: EndedLogs, tmp_path: Path, clock: Days
) -> None:
    _end(ended, tmp_path, "one")
    clock.now += timedelta(hours=25)

    assert ended.find("one", "red") is None
    _end(ended, tmp_path, "two")
    assert [p.name for p in (tmp_path / "logs").iterdir()] == ["two"]


def test_the_newest_hundred_are_kept(
    ended: EndedLogs, tmp_path: Path, clock: Days
) -> None:
    for number in range(103):
        clock.now += timedelta(seconds=1)
        _end(ended, tmp_path, f"s{number}")

    left = {p.name for p in (tmp_path / "logs").iterdir()}
    assert left == {f"s{number}" for number in range(3, 103)}


def test_a_sandbox_that_wrote_nothing_ends_too(
    ended: EndedLogs, tmp_path: Path
) -> None:
    ended.bury("one", tenant="red", reason="crashed", root=tmp_path / "none")

    assert ended.find("one", "red") is not None


def test_a_folder_is_removed_whatever_modes_it_has(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    (tmp_path / "a" / "b").chmod(0)
    (tmp_path / "a").chmod(0o500)

    remove_tree(tmp_path / "a")
    remove_tree(tmp_path / "a")

    assert list(tmp_path.iterdir()) == []


def test_only_log_files_are_kept(ended: EndedLogs, tmp_path: Path) -> None:
    """An agent may have used the folder for other things."""
    root = tmp_path / "r"
    (root / "logs" / "deep" / "er").mkdir(parents=True)
    for name in ("agent.log", "agent.log.1", "other"):
        (root / "logs" / name).write_text("x")
    (root / "logs" / "agent.log.2").symlink_to(tmp_path)
    with (root / "logs" / "agent.log.1").open("wb") as file:
        file.truncate(2**40)
    ended.bury("r", tenant="red", reason="request", root=root)

    folder = ended.find("r", "red")
    assert folder is not None
    assert [entry.name for entry in folder.iterdir()] == ["agent.log"]
