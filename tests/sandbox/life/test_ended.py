"""What stays of sandboxes: their logs, for a day, a hundred at most."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from glob import glob
from pathlib import Path

import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent.sandbox.life.ended import SANDBOX_ROW, EndedLogs, remove_tree
from ppio_agent.storage import Put, open_store

_NOBODY = 65534
_SET_DUMPABLE = 4


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


def test_an_agent_that_nests_folders_ends_like_others(
    ended: EndedLogs, tmp_path: Path
) -> None:
    """Deeper than calls may be nested, and below a path that is too long for any."""
    home = tmp_path / "one" / "home"
    home.mkdir(parents=True)
    below = os.open(home, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("deep", dir_fd=below)
        inner = os.open("deep", os.O_RDONLY, dir_fd=below)
        os.close(below)
        below = inner
    os.close(below)
    _end(ended, tmp_path, "one")

    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert ended.find("one", "red") is not None


def test_logs_behind_closed_folders_are_kept(tmp_path: Path) -> None:
    """Whoever runs the platform: an agent may close what is its own."""
    logs = tmp_path / "one" / "logs"
    logs.mkdir(parents=True)
    (logs / "agent.log").write_text("last words")
    for path in (logs / "agent.log", logs, logs.parent):
        path.chmod(0)

    def bury() -> None:
        ended = EndedLogs(open_store("memory://"), Path("logs"))
        ended.bury("one", tenant="red", reason="request", root=Path("one"))

    assert _as_user(tmp_path, bury)
    kept = tmp_path / "logs" / "one" / "agent.log"
    assert kept.read_text() == "last words"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not logs.parent.exists()


def _as_user(folder: Path, action: Callable[[], None]) -> bool:
    """Do something in a folder as a user whom modes bind; return whether it worked."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    try:
        # The way to it may be closed to others.
        os.chdir(folder)
        if os.getuid() == 0:
            for name in (".", *glob("**", recursive=True)):
                os.chown(name, _NOBODY, _NOBODY)
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
            ctypes.CDLL(None).prctl(_SET_DUMPABLE, 1, 0, 0, 0)
        action()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_link_in_place_of_the_logs_leads_to_nothing_else(
    ended: EndedLogs, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    for name in ("agent.log", "letter"):
        (private / name).write_text("kept")
    root = tmp_path / "one"
    root.mkdir()
    (root / "logs").symlink_to(private)
    ended.bury("one", tenant="red", reason="request", root=root)

    assert sorted(path.name for path in private.iterdir()) == ["agent.log", "letter"]
    assert not root.exists()
    assert not (tmp_path / "logs" / "one" / "agent.log").exists()


def test_what_cannot_be_removed_is_told_and_no_error(
    ended: EndedLogs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Such as a file that its owner made immutable."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.rmdir", refuse)
        patch.setattr("os.rename", refuse)
        _end(ended, tmp_path, "one")

    assert "could not be removed" in caplog.text
    assert "could not be kept" in caplog.text
    assert ended.find("one", "red") is not None


def test_a_row_that_cannot_be_read_is_forgotten(tmp_path: Path) -> None:
    store = open_store("memory://")
    store.write(Put("ended", "odd", {"tenant": 7}))
    ended = EndedLogs(store, tmp_path / "logs")

    assert ended.find("odd", None) is None
    ended.prune()
    assert store.scan("ended") == ()


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


def test_logs_that_no_row_is_of_are_removed(ended: EndedLogs, tmp_path: Path) -> None:
    """As those of a store that was damaged and made anew; nobody else may see them."""
    _end(ended, tmp_path, "one")
    for name in ("stray", "unburied"):
        (tmp_path / "logs" / name).mkdir()
    (tmp_path / "logs" / "platform.log").touch()
    ended._store.write(Put(SANDBOX_ROW, "unburied", {}))
    ended.remove_strays()

    found = {path.name for path in (tmp_path / "logs").iterdir()}
    assert found == {"one", "unburied", "platform.log"}
