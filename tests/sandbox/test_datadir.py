"""The data directory: one platform at a time, private, and found by others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import attrs
import pytest

from ppio_agent._util.files import UNFINISHED
from ppio_agent.exceptions import (
    ConfigurationError,
    PlatformAlreadyRunningError,
    SandboxUnavailableError,
)
from ppio_agent.sandbox import datadir
from ppio_agent.sandbox.datadir import DataDir, Running, read_running
from tests.support import wait_until

RUNNING = Running(url="http://127.0.0.1:1", pid=os.getpid(), api_key="sk_x")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[DataDir]:
    made = DataDir(tmp_path / "deep" / "data")
    made.acquire()
    yield made
    made.release()


def test_everything_in_it_is_private(data: DataDir) -> None:
    data.key()
    data.announce(RUNNING)

    modes = {p.name: p.stat().st_mode & 0o777 for p in data.path.iterdir()}
    assert modes == {
        "lock": 0o600,
        "key": 0o600,
        "platform.json": 0o600,
        "uploads": 0o700,
    }
    for folder in (data.path, data.path.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_the_generated_key_stays_the_same(data: DataDir) -> None:
    assert data.key() == data.key()
    assert len(data.key()) > 40


def test_an_empty_key_is_none(data: DataDir) -> None:
    """Nobody could show it."""
    (data.path / "key").write_text("\n")
    key = data.key()

    assert len(key) > 40
    assert data.key() == key


def test_what_a_killed_writer_left_half_written_is_removed(tmp_path: Path) -> None:
    """Each would stay for ever: none has the name of another."""
    first = DataDir(tmp_path / "data")
    first.acquire()
    first.release()
    first.tls.mkdir()
    halves = [first.path / f"platform.json.1{UNFINISHED}", first.tls / f"x{UNFINISHED}"]
    for half in halves:
        half.touch()
    second = DataDir(first.path)
    second.acquire()
    second.release()
    assert [half for half in halves if half.exists()] == []


def test_a_second_platform_is_told_of_the_first(data: DataDir) -> None:
    data.announce(RUNNING)

    with pytest.raises(PlatformAlreadyRunningError) as info:
        DataDir(data.path).acquire()

    assert (info.value.url, info.value.pid) == (RUNNING.url, RUNNING.pid)
    assert "sk_x" not in str(info.value)
    assert read_running(data.path) == RUNNING


def test_a_second_platform_waits_for_one_that_is_just_starting(data: DataDir) -> None:
    timer = threading.Timer(0.1, data.announce, [RUNNING])
    timer.start()

    with pytest.raises(PlatformAlreadyRunningError) as info:
        DataDir(data.path).acquire()

    assert info.value.url == RUNNING.url
    timer.join()


def test_one_that_was_killed_is_waited_for(data: DataDir) -> None:
    """A child that it was just making has its lock until it is another program."""
    with subprocess.Popen(["true"]) as process:
        pass
    data.announce(attrs.evolve(RUNNING, pid=process.pid))
    timer = threading.Timer(0.1, data.release)
    timer.start()

    other = DataDir(data.path)
    other.acquire()
    assert read_running(data.path) is None
    other.release()
    timer.join()


def test_one_that_was_killed_is_not_taken_for_who_has_its_pid(data: DataDir) -> None:
    """Its key would be sent to whoever listens at its address now."""
    data.announce(RUNNING)
    data.release()

    assert read_running(data.path) is None


@pytest.mark.parametrize("below", ["", "platform", "home/platform"])
def test_a_place_where_no_directory_can_be_is_told(tmp_path: Path, below: str) -> None:
    """The setting is wrong then, not the machine."""
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigurationError, match=r"file.*: .*take another by --data-dir"
    ):
        DataDir(tmp_path / "file" / below).acquire()


def test_a_directory_that_could_not_be_used_can_be_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the process that has tried."""
    monkeypatch.setattr(datadir, "_WAIT", 0.05)
    failed = DataDir(tmp_path)
    failed.uploads.touch()
    with pytest.raises(FileExistsError):
        failed.acquire()
    failed.uploads.unlink()
    again = DataDir(tmp_path)
    again.acquire()
    again.release()


def test_one_that_waits_has_the_directory_that_is_there_then(data: DataDir) -> None:
    """Not one that was removed meanwhile, which others have made anew."""
    other = DataDir(data.path)
    waiting = threading.Thread(target=other.acquire)
    waiting.start()
    wait_until(lambda: other._lock_fd is not None)
    shutil.rmtree(data.path)
    data.release()
    waiting.join()
    assert other.is_held
    other.release()


def test_a_command_is_waited_for(data: DataDir) -> None:
    """Commands announce nothing, and need the directory for a moment."""
    timer = threading.Timer(0.1, data.release)
    timer.start()

    other = DataDir(data.path)
    other.acquire()
    other.release()
    timer.join()


def test_a_command_that_takes_long_is_told_of(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datadir, "_WAIT", 0.05)

    with pytest.raises(PlatformAlreadyRunningError, match="try again when") as info:
        DataDir(data.path).acquire()
    assert (info.value.url, info.value.pid) == (None, None)


def test_after_release_another_may_have_it(data: DataDir) -> None:
    data.announce(RUNNING)
    data.release()
    data.release()
    other = DataDir(data.path)
    other.acquire()
    other.release()

    assert read_running(data.path) is None


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, os; from pathlib import Path;"
        "from ppio_agent.sandbox.datadir import DataDir;"
        "DataDir(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, check=False)
    assert done.returncode == -9

    again = DataDir(tmp_path)
    again.acquire()
    again.release()


def test_a_forked_child_does_not_keep_the_lock(data: DataDir) -> None:
    """As a worker of a server does that lives longer than the platform."""
    end, other_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(other_end)
        os.read(end, 1)
        os._exit(0)
    data.release()
    again = DataDir(data.path)
    try:
        again.acquire()
        again.release()
    finally:
        os.close(other_end)
        os.waitpid(child, 0)
        os.close(end)


def test_who_waits_for_what_a_platform_left_behind_is_told(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid is of no use, nor its address."""
    with subprocess.Popen(["true"]) as process:
        pass
    data.announce(attrs.evolve(RUNNING, pid=process.pid))
    monkeypatch.setattr(datadir, "_WAIT", 0.05)
    with pytest.raises(PlatformAlreadyRunningError, match="has ended, but") as info:
        DataDir(data.path).acquire()

    assert (info.value.url, info.value.pid) == (None, None)
    assert f"process {process.pid}" in str(info.value)


def test_the_lock_is_not_inherited_by_other_programs(data: DataDir) -> None:
    listing = "import os; print(os.listdir('/proc/self/fd'))"
    inherited = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True,
        close_fds=False,
    )  # fmt: skip

    assert str(data._lock_fd) not in json.loads(inherited.stdout.replace("'", '"'))


def test_a_folder_for_sockets_is_private_short_and_removed(data: DataDir) -> None:
    folder = data.make_socket_folder()

    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(str(folder / "control.sock")) < 100
    data.remove_socket_folder()
    data.remove_socket_folder()
    assert not folder.exists()


def test_the_socket_folder_goes_even_if_the_data_directory_went_before(
    data: DataDir,
) -> None:
    folder = data.make_socket_folder()
    shutil.rmtree(data.path)
    data.remove_socket_folder()

    assert not folder.exists()


def test_one_whose_folders_have_gone_is_told_so(data: DataDir) -> None:
    """It would serve on and be reached by nobody, or keep nothing."""
    data.check()
    shutil.rmtree(data.make_socket_folder())
    with pytest.raises(SandboxUnavailableError, match="the folder for sockets"):
        data.check()
    data.make_socket_folder()
    data.check()
    data.remove_socket_folder()
    shutil.rmtree(data.path)
    with pytest.raises(SandboxUnavailableError, match="the data directory was removed"):
        data.check()


def test_a_copy_of_a_data_directory_has_sockets_of_its_own(
    data: DataDir, tmp_path: Path
) -> None:
    """Those that its note tells of are in use."""
    folder = data.make_socket_folder()
    shutil.copytree(data.path, tmp_path / "copy")
    with closing(_Acquired(tmp_path / "copy")) as copy:
        assert copy.make_socket_folder() != folder
        copy.remove_socket_folder()
    assert (folder / "data").readlink() == data.path
    data.check()
    data.remove_socket_folder()


@pytest.mark.parametrize("call", ["mkdir", "symlink_to"])
def test_a_kill_amid_the_making_of_a_socket_folder_leaves_none(
    data: DataDir, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The next platform has the folder, and says whose it is."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, killed)
        with pytest.raises(KeyboardInterrupt):
            data.make_socket_folder()
    noted = Path((data.path / "sockets").read_text())
    folder = data.make_socket_folder()
    assert noted == folder or not noted.exists()
    assert (folder / "data").readlink() == data.path
    data.remove_socket_folder()


def test_the_socket_folder_of_a_killed_platform_is_that_of_the_next(
    data: DataDir,
) -> None:
    folder = data.make_socket_folder()
    data.release()
    again = DataDir(data.path)
    again.acquire()

    assert again.make_socket_folder() == folder
    again.remove_socket_folder()
    again.release()
    assert not folder.exists()


@pytest.mark.parametrize("spoil", ["open", "link", "gone"])
def test_a_socket_folder_that_is_not_ours_any_more_is_not_used(
    data: DataDir, tmp_path: Path, spoil: str
) -> None:
    folder = data.make_socket_folder()
    if spoil == "open":
        folder.chmod(0o777)
    else:
        shutil.rmtree(folder)
    if spoil == "link":
        folder.symlink_to(tmp_path)

    other = data.make_socket_folder()

    assert other != folder
    data.remove_socket_folder()
    if spoil != "gone":
        folder.unlink() if spoil == "link" else shutil.rmtree(folder)


def test_without_a_short_path_there_are_no_sockets(
    data: DataDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", "/" + "x" * 100)

    with pytest.raises(SandboxUnavailableError, match="set TMPDIR"):
        data.make_socket_folder()


def test_an_unreadable_announcement_is_none(tmp_path: Path) -> None:
    assert read_running(tmp_path) is None
    (tmp_path / "platform.json").write_text('{"url": 1')
    assert read_running(tmp_path) is None


def test_the_key_is_in_no_repr() -> None:
    assert "sk_x" not in repr(RUNNING)


def test_one_that_was_replaced_is_not_touched(data: DataDir) -> None:
    """What is there now is another platform's."""
    data.make_socket_folder()
    data.path.rename(data.path.with_name("away"))
    assert not data.is_held
    other = DataDir(data.path)
    other.acquire()
    other.announce(RUNNING)
    folder = other.make_socket_folder()
    data.withdraw()
    data.remove_socket_folder()
    assert read_running(data.path) == RUNNING
    assert (data.path / "sockets").read_text() == str(folder)
    assert (data.is_held, other.is_held) == (False, True)
    other.remove_socket_folder()
    other.release()


def test_sockets_of_what_was_killed_and_removed_go_with_a_later_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes them up; those of a data directory that is there are left alone."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="ppt-") as base:
        monkeypatch.setattr(tempfile, "tempdir", base)
        folders = []
        for name in ("gone", "there"):
            with closing(_Acquired(tmp_path / name)) as killed:
                folders.append(killed.make_socket_folder())
                (folders[-1] / "control.sock").touch()
        shutil.rmtree(tmp_path / "gone")
        with closing(_Acquired(tmp_path / "next")) as soon:
            soon.make_socket_folder()
            assert all(folder.exists() for folder in folders)
            assert not soon.has_sockets
        old = time.time() - 3601
        for folder in folders:
            os.utime(folder, (old, old))
        with closing(_Acquired(tmp_path / "last")) as late:
            late.make_socket_folder()
        assert [folder.exists() for folder in folders] == [False, True]


def test_sockets_in_use_are_not_removed_by_who_cannot_see_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where two containers share the folder for temporary files."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with tempfile.TemporaryDirectory(prefix="ppt-") as base:
        monkeypatch.setattr(tempfile, "tempdir", base)
        with closing(_Acquired(tmp_path / "one")) as one:
            folder = one.make_socket_folder()
            old = time.time() - 3601
            os.utime(folder, (old, old))
            one.path.rename(tmp_path / "unseen")
            with closing(_Acquired(tmp_path / "other")) as other:
                other.make_socket_folder()
            assert folder.exists()


class _Acquired(DataDir):
    """A data directory that is let go of as by one that was killed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.acquire()

    def close(self) -> None:
        self.release()
