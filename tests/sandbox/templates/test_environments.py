"""Environments are whole or not there, made once, and removed when nobody needs them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ppio_agent.exceptions import (
    RateLimitError,
    ServerBusyError,
    ServerDrainingError,
    ServiceUnavailableError,
    TemplateManifestError,
)
from ppio_agent.sandbox.templates import environments as environments_module
from ppio_agent.sandbox.templates.environments import Environments
from tests.sandbox.agents import write_wheel
from tests.support import processes_marked, wait_until


@pytest.fixture
def environments(tmp_path: Path) -> Environments:
    return Environments(tmp_path / "environments")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with one whole environment, and its key."""
    folder = tmp_path_factory.mktemp("whole")
    wanted = write_wheel(folder / "wheels", "made_up").read_bytes()
    with Environments(folder / "environments").hold(wanted) as key:
        yield folder, key


def _fake(root: Path, name: str) -> None:
    """Make what looks like an environment from outside."""
    (root / name / "bin").mkdir(parents=True)
    (root / name / "bin" / "python").touch()


def _says(python: Path, code: str) -> str:
    command = [python, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_an_environment_has_what_was_asked_for_and_the_framework(
    whole: tuple[Path, str],
) -> None:
    folder, key = whole
    python = Environments(folder / "environments").python(key)

    assert _says(python, "import made_up; print(made_up.VALUE)") == "1"
    assert _says(python, "import ppio_agent, flask; print('both')") == "both"
    assert _says(python, "import sys; print(sys.prefix)") == str(python.parents[1])


def test_its_commands_know_where_they_are(whole: tuple[Path, str]) -> None:
    """Though they were written in a folder of another name."""
    folder, key = whole
    command = folder / "environments" / key / "bin" / "made_up"

    assert subprocess.check_output([command], text=True) == "1\n"
    assert [path.name for path in (folder / "environments").iterdir()] == [key]


def test_equal_requirements_share_one(whole: tuple[Path, str]) -> None:
    """Which is found again by the next platform, and made without another pip."""
    folder, key = whole
    wanted = (folder / "wheels" / "requirements.txt").read_bytes()
    before = (folder / "environments" / key).stat()

    with Environments(folder / "environments", timeout=0.0).hold(wanted) as again:
        assert again == key
    assert (folder / "environments" / key).stat().st_ino == before.st_ino


def test_what_cannot_be_installed_is_told_in_the_words_of_pip(
    environments: Environments, tmp_path: Path
) -> None:
    wanted = write_wheel(tmp_path / "wheels", "made_up").read_text()
    wanted = wanted.replace("made_up==1.0", "made_up==2.0")

    with (
        pytest.raises(TemplateManifestError, match=r"made.up==2\.0") as info,
        environments.hold(wanted.encode()),
    ):
        pass
    ((path, line, message),) = info.value.problems
    assert (path, line) == ("requirements.txt", 0)
    assert message.startswith("cannot be installed: pip ended with 1; ")
    assert list((tmp_path / "environments").iterdir()) == []


def _installs(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have a script of the shell stand in for pip."""
    monkeypatch.setattr(
        Environments,
        "_install",
        lambda self, folder, _: self._run(folder, ["sh", "-c", script]),
    )


_LONG = "sleep 100 & setsid sleep 100 & wait"


def _hold(environments: Environments, requirements: bytes, tenant: str = "red") -> None:
    with environments.hold(requirements, tenant=tenant):
        pass


def test_pip_is_given_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After which its children are ended, too, in sessions of their own as well."""
    marker = f"MARK={tmp_path.name}"
    monkeypatch.setenv("PIP_MARK", marker)
    _installs(monkeypatch, _LONG)
    environments = Environments(tmp_path / "environments", timeout=0.3)

    with pytest.raises(TemplateManifestError, match=r"took longer than 0\.3 s"):
        _hold(environments, b"x")
    assert list(processes_marked(marker)) == []
    assert list((tmp_path / "environments").iterdir()) == []


def test_errors_of_pip_come_before_its_last_lines(
    environments: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it printed before them, and after."""
    script = "seq 5000; echo 'ERROR: this is why'; seq -f 'note %g' 20; exit 1"
    _installs(monkeypatch, script)

    with pytest.raises(TemplateManifestError) as info:
        _hold(environments, b"x")
    ((_, _, message),) = info.value.problems
    fault, *lines = message.splitlines()
    assert fault == "cannot be installed: pip ended with 1; ERROR: this is why"
    assert lines == [f"note {number}" for number in range(11, 21)]


def test_what_pip_leaves_behind_ends_with_it(
    environments: Environments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = f"MARK={tmp_path.name}"
    monkeypatch.setenv("PIP_MARK", marker)
    _installs(monkeypatch, "setsid sleep 100 & echo no; exit 3")

    with pytest.raises(TemplateManifestError, match=r"pip ended with 3; no$"):
        _hold(environments, b"x")
    assert list(processes_marked(marker)) == []


def test_closing_ends_pip_and_tells_all_who_wait(
    environments: Environments, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    marker = f"MARK={tmp_path.name}"
    monkeypatch.setenv("PIP_MARK", marker)
    _installs(monkeypatch, _LONG)
    with ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(_hold, environments, b"x", tenant) for tenant in ("red", "blue")
        ]
        wait_until(lambda: len(list(processes_marked(marker))) >= 3)
        environments.close(20)
        assert list(processes_marked(marker)) == []
        for future in waiting:
            with pytest.raises(ServerDrainingError):
                future.result(20)
    assert list((tmp_path / "environments").iterdir()) == []
    with pytest.raises(ServerDrainingError):
        _hold(environments, b"y")
    environments.close(0)


_PLATFORM = """
import os, subprocess, sys
from pathlib import Path
from ppio_agent.sandbox.templates.environments import Environments

os.environ["PIP_MARK"] = sys.argv[2]
environments = Environments(Path(sys.argv[1]))
run, Popen = environments._run, subprocess.Popen
Environments._install = lambda self, folder, _: run(folder, ["sh", "-c", sys.argv[3]])

def popen(*args, **more):
    process = Popen(*args, **more)
    if os.fork() == 0:
        sys.stdin.read()  # holds all that the platform has open
        os._exit(0)
    return process

subprocess.Popen = popen
with environments.hold(b"x"):
    pass
"""


def test_pip_does_not_outlive_a_platform_that_is_killed(tmp_path: Path) -> None:
    """Though a fork of the platform may go on."""
    marker = f"MARK={tmp_path.name}"
    command = [sys.executable, "-c", _PLATFORM, tmp_path / "e", marker, _LONG]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as platform:
        try:
            wait_until(lambda: len(list(processes_marked(marker))) >= 3)
        finally:
            platform.kill()
        wait_until(lambda: not list(processes_marked(marker)))


def test_nothing_is_run_for_a_platform_that_has_ended(tmp_path: Path) -> None:
    """It may end before it is watched."""
    script = (
        "from ppio_agent.sandbox.templates.installer import main;"
        f" main(1, 9.0, ['touch', {str(tmp_path / 'ran')!r}])"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert not (tmp_path / "ran").exists()


def test_each_tenant_has_one_made_at_a_time_and_few_wait(
    environments: Environments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are refused at once: who waits holds a thread that others need."""
    go_on = threading.Event()
    monkeypatch.setattr(Environments, "_make", lambda *_: go_on.wait(20))
    with ThreadPoolExecutor(5) as pool:
        try:
            for number in range(5):
                pool.submit(_hold, environments, b"%d" % number, str(number))
            wait_until(lambda: environments._seats.count == 5)
            with pytest.raises(RateLimitError) as info:
                _hold(environments, b"x", "0")
            assert info.value.retry_after == 60.0
            with pytest.raises(ServerBusyError):
                _hold(environments, b"x", "other")
        finally:
            go_on.set()
    _hold(environments, b"x", "other")


def test_whoever_waits_too_long_for_others_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But whoever needs only what is there already does not wait."""
    environments = Environments(tmp_path / "environments", timeout=0.2)
    going, go_on = threading.Event(), threading.Event()

    def made(self: Environments, key: str, requirements: bytes) -> None:
        del self, key, requirements
        going.set()
        go_on.wait(20)

    monkeypatch.setattr(Environments, "_make", made)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(_hold, environments, b"a")
        assert going.wait(20)
        with pytest.raises(ServiceUnavailableError):
            _hold(environments, b"b", "blue")
        _fake(tmp_path / "environments", environments_module._key(b"c"))
        _hold(environments, b"c")
        go_on.set()
        first.result(20)


def test_an_environment_that_is_held_is_not_retired(tmp_path: Path) -> None:
    """So that a deploy may come to refer to it."""
    root = tmp_path / "environments"
    environments = Environments(root)
    key, other = environments_module._key(b"x"), "0" * 64
    _fake(root, key)
    _fake(root, other)

    with environments.hold(b"x"):
        environments.retire(environments.keys())
        assert environments.keys() == {key}
    environments.retire(environments.keys())
    assert environments.keys() == set()
    environments.clear_away()
    assert list(root.iterdir()) == []


def test_what_a_crash_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    root = tmp_path / "environments"
    environments = Environments(root)
    _fake(root, "0" * 64)
    _fake(root, "new-1")

    environments.clear_away()
    assert len(list(root.iterdir())) == 2
    environments.clear_away(unfinished=True)
    assert {path.name for path in root.iterdir()} == {"0" * 64}


def test_one_whose_interpreter_has_gone_is_made_again(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    root = tmp_path / "environments"
    environments = Environments(root)
    wanted = (whole[0] / "wheels" / "requirements.txt").read_bytes()
    _fake(root, whole[1])
    (root / whole[1] / "bin" / "python").unlink()

    with environments.hold(wanted) as key:
        assert _says(environments.python(key), "import made_up; print(2)") == "2"


def test_where_nothing_may_run_only_plain_names_are_installed(tmp_path: Path) -> None:
    """An option or an address may lead to sources, whose build runs their code."""
    environments = Environments(tmp_path / "environments", wheels_only=True)
    wanted = b"# fine\nattrs>=23\n--no-binary :all:\n./here\n"

    with pytest.raises(TemplateManifestError) as info, environments.hold(wanted):
        pass
    assert [(path, line) for path, line, _ in info.value.problems] == [
        ("requirements.txt", 3),
        ("requirements.txt", 4),
    ]


def test_where_nothing_may_run_no_source_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a source distribution that the index has."""
    ran = tmp_path / "ran"
    source = tmp_path / "source" / "evil-1.0"
    source.mkdir(parents=True)
    (source / "setup.py").write_text(f"open({str(ran)!r}, 'w')\n")
    (source / "PKG-INFO").write_text(
        "Metadata-Version: 1.0\nName: evil\nVersion: 1.0\n"
    )
    archive = tmp_path / "wheels" / "evil-1.0.tar.gz"
    archive.parent.mkdir()
    command = ["tar", "czf", archive, "-C", source.parent, source.name]
    subprocess.run(command, check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    environments = Environments(tmp_path / "environments", wheels_only=True)

    with pytest.raises(TemplateManifestError), environments.hold(b"evil==1.0"):
        pass
    assert not ran.exists()


def test_a_pip_of_old_gets_a_pip_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot install elsewhere, or none; the interpreter brings another."""
    commands: list[list[str]] = []

    def run(self: Environments, folder: Path, command: list[str]) -> None:
        del self
        commands.append(command)
        (folder / "lib" / "python3" / "site-packages").mkdir(
            parents=True, exist_ok=True
        )
        (folder / "bin").mkdir(exist_ok=True)

    monkeypatch.setattr(Environments, "_run", run)
    for version, own in (("22.2.1", True), ("22.3", False), ("100.0", False)):
        monkeypatch.setattr(
            environments_module.metadata, "version", lambda _name, v=version: v
        )
        with Environments(tmp_path / version).hold(b"x"):
            made, installed = commands[-2:]
        assert ("--without-pip" in made) is not own
        assert (installed[0] == sys.executable) is not own
        assert ("--python" in installed) is not own
    assert os.path.basename(commands[1][0]) == "python"
