"""The platform as a program: what it prints, how it ends, what it logs."""

from __future__ import annotations

import errno
import json
import logging
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import pytest

from ppio_agent.cli import up
from ppio_agent.cli.doctor import examine
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from ppio_agent.sandbox.datadir import read_running
from tests.cli.clikit import AGENT, line, start
from tests.support import SLOW, processes_marked, wait_until, write_agent

STUBBORN = """
    import signal, threading
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    threading.Event().wait()
"""


def _up(data_dir: Path, *options: str) -> subprocess.Popen[str]:
    argv = ["up", "--port", "0", "--backend", "process", "--export", *options]
    return start(*argv, data_dir=data_dir)


def _end(platform: subprocess.Popen[str]) -> tuple[str, str]:
    platform.send_signal(signal.SIGINT)
    return platform.communicate(timeout=30 * SLOW)


def _variables(platform: subprocess.Popen[str]) -> dict[str, str]:
    """Return what it says that clients are to be given."""
    found = {}
    for name in ("PPIO_API_KEY", "PPIO_API_URL"):
        found[name] = line(platform, name).partition("=")[2].strip()
    return found


def test_up_serves_until_it_is_stopped(tmp_path: Path) -> None:
    """Other commands find it; a second one says so; Ctrl-C ends it with status 0."""
    folder = write_agent(tmp_path / "a", AGENT, name="asked")
    with _up(tmp_path) as platform:
        url = line(platform, "PPIO_API_URL").partition("=")[2].strip()
        with _up(tmp_path) as second:
            error = second.communicate(timeout=30 * SLOW)[1]
            assert second.returncode == 3
            assert url in error
        for argv in (["deploy", str(folder)], ["invoke", "asked", "hi"]):
            with start(*argv, data_dir=tmp_path) as other:
                out, err = other.communicate(timeout=60 * SLOW)
                assert other.returncode == 0, err
        assert out == "you said hi\n"
        _end(platform)
    assert platform.returncode == 0


def test_a_command_leaves_the_sandboxes_of_a_crash_to_the_next_platform(
    tmp_path: Path,
) -> None:
    """Neither the listing of templates nor a call of its own ends or takes them."""
    folder = write_agent(tmp_path / "a", AGENT, name="asked")
    with _up(tmp_path) as platform:
        line(platform, "PPIO_API_URL")
        with start("deploy", str(folder), data_dir=tmp_path) as deploying:
            deploying.communicate(timeout=60 * SLOW)
        with start("invoke", "--keep", "asked", "hi", data_dir=tmp_path) as other:
            _, told = other.communicate(timeout=60 * SLOW)
        kept = re.search(r"[a-z0-9]{20}", told)
        assert kept, told
        platform.kill()
    for argv in (["templates", "list"], ["invoke", "asked", "x"]):
        with start(*argv, data_dir=tmp_path) as command:
            out, err = command.communicate(timeout=60 * SLOW)
            assert command.returncode == 0, err
            assert kept[0] not in out
    with _up(tmp_path) as platform:
        line(platform, "PPIO_API_URL")
        with start("sandboxes", "list", "--json", data_dir=tmp_path) as listing:
            out, _ = listing.communicate(timeout=60 * SLOW)
        assert [item["sandboxID"] for item in json.loads(out)] == [kept[0]]
        _end(platform)
    assert list(processes_marked(kept[0])) == []


def test_a_new_data_directory_is_private(tmp_path: Path) -> None:
    """All that the first start makes, as the doctor wants it."""
    home = tmp_path / "home"
    with _up(home) as platform:
        line(platform, "PPIO_API_URL")
        _end(platform)
    made = [home, *(path for path in home.rglob("*") if path.is_dir())]
    assert home / "platform" / "logs" in made
    assert [path for path in made if path.stat().st_mode & 0o077] == []
    checks = examine(PlatformConfig(data_dir=home / "platform"))
    assert all(check.ok for check in checks if "data directory" in check.what)


def test_it_takes_as_many_descriptors_as_it_may_have(tmp_path: Path) -> None:
    """The usual limit of 1024 would do for 500 streams only."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with _up(tmp_path) as platform:
            line(platform, "PPIO_API_URL")
            soft, hard = resource.prlimit(platform.pid, resource.RLIMIT_NOFILE)
            _end(platform)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (soft, hard) == (min(16_384, limits[1]), limits[1])


def test_it_ends_when_its_data_directory_is_removed(tmp_path: Path) -> None:
    """What it keeps would be lost; whoever starts it again has one that works."""
    with _up(tmp_path / "d") as platform:
        line(platform, "PPIO_API_URL")
        shutil.rmtree(tmp_path / "d")
        error = platform.communicate(timeout=30 * SLOW)[1]
    assert platform.returncode == 5
    assert "the data directory was removed" in error
    assert not (tmp_path / "d").exists()


def test_a_signal_is_heard_at_once_whichever_thread_meets_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system chooses one of them, and the main thread alone can handle it."""
    monkeypatch.setattr(up, "_LOOK_EVERY", 600.0)
    looked = threading.Event()
    stopping = up._Stopping(Mock(check=looked.set))

    def meet() -> None:
        looked.wait()
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: stopping.ask())
    meeting = threading.Thread(target=meet)
    try:
        meeting.start()
        stopping.wait()
    finally:
        signal.signal(signal.SIGUSR1, before)
        meeting.join()


def test_its_own_log_tells_what_it_did(tmp_path: Path) -> None:
    """In the data directory, without a secret; the screen says what is not safe."""
    with _up(tmp_path / "d", "--key", "sk_the_key_of_this_test") as platform:
        assert line(platform, "backend") == "backend: process\n"
        assert line(platform, "limits").startswith(("limits: kept", "limits: sampled"))
        assert "run only code that you would run yourself" in line(platform, "plain")
        key = _variables(platform)["PPIO_API_KEY"]
        assert key == "sk_the_key_of_this_test"
        _end(platform)
    log = (tmp_path / "d" / "platform" / "logs" / "platform.log").read_text()

    assert "the platform is at http://127.0.0.1:" in log
    assert key not in log


def test_nobody_has_to_hear_what_it_says(tmp_path: Path) -> None:
    """It serves on, and ends in order, as in `ppio-agent up | head -1`."""
    with _up(tmp_path) as platform:
        assert platform.stdout is not None
        platform.stdout.close()
        wait_until(
            lambda: read_running(tmp_path / "platform") is not None, timeout=30.0
        )
        error = _end(platform)[1]
    assert (platform.returncode, "Traceback" in error) == (0, False)


@pytest.mark.parametrize(
    ("terminal", "export", "told"),
    [(True, False, True), (False, False, False), (False, True, True)],
)
def test_its_key_is_shown_on_a_terminal_or_if_asked_for(
    platform: SandboxPlatform,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    terminal: bool,
    export: bool,
    told: bool,
) -> None:
    """The journal of a service names the file that it is in."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    up._announce(platform, Path("there/key"), export=export)
    out = capsys.readouterr().out

    assert f"the local sandbox platform is at {platform.url}" in out
    assert (f"export PPIO_API_KEY={platform.api_key}\n" in out) == told
    assert (platform.api_key in out) == told
    assert ("the key for clients is in there/key\n" in out) == (not told)


def test_tls_is_told_with_what_clients_need_for_it(tmp_path: Path) -> None:
    """Its address, and the variables of clients that know https only."""
    pytest.importorskip("cryptography")
    with _up(tmp_path, "--tls", "0") as platform:
        assert " and https://" in line(platform, "the local sandbox platform")
        bundle = line(platform, "SSL_CERT_FILE").partition("=")[2].strip()
        assert Path(bundle).is_file()
        _end(platform)
    assert platform.returncode == 0


def test_a_second_ctrl_c_does_not_wait_for_agents(tmp_path: Path) -> None:
    """One that ignores SIGTERM would take the grace of five seconds."""
    folder = write_agent(tmp_path / "a", STUBBORN, name="deaf")
    with _up(tmp_path) as platform:
        variables = _variables(platform)
        with start("deploy", str(folder), data_dir=tmp_path) as deploy:
            deploy.communicate(timeout=60 * SLOW)
        marker = f"PPIO_SANDBOX_ID={_create(variables, 'deaf')}"
        logs = tmp_path / "platform" / "sandboxes"
        wait_until(
            lambda: any("deaf" in log.read_text() for log in logs.rglob("agent.log")),
            timeout=30.0,
        )
        platform.send_signal(signal.SIGINT)
        assert platform.stderr is not None
        while "ending all sandboxes" not in platform.stderr.readline():
            pass
        platform.send_signal(signal.SIGINT)
        platform.communicate(timeout=4 * SLOW)
    assert platform.returncode == 130
    wait_until(lambda: not list(processes_marked(marker)), what="all processes gone")


def _create(variables: dict[str, str], template: str) -> str:
    request = urllib.request.Request(
        f"{variables['PPIO_API_URL']}/sandboxes",
        json.dumps({"templateID": template}).encode(),
        {"X-API-KEY": variables["PPIO_API_KEY"]},
    )
    with urllib.request.urlopen(request, timeout=30 * SLOW) as response:
        return str(json.load(response)["sandboxID"])


def test_a_terminal_that_is_closed_ends_it_in_order(tmp_path: Path) -> None:
    """It may be told twice of that: by the system, and by the shell."""
    with _up(tmp_path) as platform:
        line(platform, "PPIO_API_URL")
        platform.send_signal(signal.SIGHUP)
        platform.send_signal(signal.SIGHUP)
        platform.communicate(timeout=30 * SLOW)
    assert platform.returncode == 0


def test_a_log_that_cannot_be_written_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What goes wrong is shown in one line, however it came to that."""
    path = tmp_path / "logs" / "platform.log"
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    with up._logging_to(path):
        try:
            raise OSError(errno.ENOSPC, "no space")
        except OSError:
            logging.getLogger("ppio_agent.test").exception("it failed")
    assert capsys.readouterr().err == f"it failed: [Errno {errno.ENOSPC}] no space\n"


def test_a_full_disk_is_named_by_its_folder(tmp_path: Path) -> None:
    """The system does not say of what file a failed write was."""
    with pytest.raises(OSError, match="no space") as caught, up._naming(tmp_path):
        raise OSError(errno.ENOSPC, "no space")
    assert caught.value.filename == str(tmp_path)


def test_a_variable_that_is_no_setting_is_told(
    platform: SandboxPlatform,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would be without effect, and nobody would know why."""
    monkeypatch.setenv("PPIO_PLATFORM_WRAM", "0")
    up._announce(platform, None, export=False)

    (told,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told == (
        "the variable PPIO_PLATFORM_WRAM is no setting of the platform:"
        " is PPIO_PLATFORM_WARM meant?"
    )


def test_its_log_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three files at most, whatever is logged, and none before the first record."""
    monkeypatch.setattr(up, "_LOG_SIZE", 1000)
    path = tmp_path / "logs" / "platform.log"
    log, package = logging.getLogger("ppio_agent.test"), logging.getLogger("ppio_agent")
    level, handlers = package.level, list(package.handlers)
    with up._logging_to(path):
        assert list(path.parent.iterdir()) == []
        for number in range(200):
            log.info("record %d", number)
    names = sorted(file.name for file in path.parent.iterdir())

    assert names == ["platform.log", "platform.log.1", "platform.log.2"]
    assert all(file.stat().st_size <= 1000 for file in path.parent.iterdir())
    assert "record 199" in path.read_text()
    assert re.match(r"\d{4}-\d\d-\d\d .* INFO ppio_agent.test: ", path.read_text())
    assert (package.level, package.handlers) == (level, handlers)
