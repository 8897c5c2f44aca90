"""What the doctor finds, and what it advises."""

from __future__ import annotations

import json
import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from ppio_agent.cli.doctor import Check, examine
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from ppio_agent.sandbox.backends import bubblewrap, delegation
from ppio_agent.sandbox.backends.delegation import Place
from tests.cli.clikit import Command


@pytest.fixture(autouse=True)
def _a_machine_with_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    _bubblewrap(monkeypatch, ok=True)


def _bubblewrap(monkeypatch: pytest.MonkeyPatch, *, ok: bool) -> None:
    found = [bubblewrap.Check("bwrap", ok, "" if ok else "install bubblewrap")]
    monkeypatch.setattr(bubblewrap, "diagnose", lambda: found)


def _find(config: PlatformConfig, word: str) -> Check:
    (found,) = [check for check in examine(config) if word in check.what]
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _doctor(command: Command, data_dir: Path, *options: str) -> tuple[int, str]:
    done = command("doctor", "--data-dir", str(data_dir), *options)
    return done.status, done.out


def test_a_machine_with_everything_is_well(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Status 0, and a line for each thing that was looked at."""
    monkeypatch.setenv("PPIO_PLATFORM_PORT", str(_free_port()))
    status, out = _doctor(command, tmp_path / "data")

    assert status == 0, out
    assert "ok        bwrap" in out
    assert "MISSING" not in out
    assert not (tmp_path / "data").exists()


def test_what_is_missing_comes_with_how_to_get_it(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Status 1, for people and for programs."""
    _bubblewrap(monkeypatch, ok=False)
    monkeypatch.setenv("PPIO_PLATFORM_PORT", str(_free_port()))
    status, out = _doctor(command, tmp_path)
    assert status == 1
    assert "MISSING   bwrap\n          install bubblewrap\n" in out

    status, out = _doctor(command, tmp_path, "--json")
    found = json.loads(out)
    assert (status, found["ok"]) == (1, False)
    wrong = [check for check in found["checks"] if not check["ok"]]
    assert {
        "what": "bwrap", "ok": False, "how": "install bubblewrap", "optional": False,
    } in wrong  # fmt: skip


def test_control_groups_are_an_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """How to get them is said where there are none."""
    config = PlatformConfig(data_dir=tmp_path)
    place = Place(path=Path("/cg/a.scope"), controllers=frozenset({"memory"}))
    monkeypatch.setattr(delegation, "look", lambda: place)
    assert _find(config, "control groups").ok

    monkeypatch.setattr(delegation, "look", lambda: "there is no bread")
    found = _find(config, "control groups")
    assert (found.ok, found.optional) == (False, True)
    assert found.what.endswith("limits are sampled: there is no bread")
    assert "systemd-run --user --scope -p Delegate=yes" in found.how


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """By whoever it is; one of ours is told as what it is."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = _find(PlatformConfig(data_dir=tmp_path, port=port), f"port {port}")
    assert not found.ok
    assert "--port 0" in found.how


def test_a_running_platform_is_told(platform: SandboxPlatform) -> None:
    """Its port is not free, and that is well."""
    data_dir = platform._config.data_dir
    found = _find(PlatformConfig(data_dir=data_dir), "a platform runs")

    assert found.ok
    assert platform.url in found.what
    assert str(os.getpid()) in found.what


def test_the_record_of_a_platform_that_was_killed_is_no_platform(
    tmp_path: Path,
) -> None:
    """Nobody answers where it says."""
    port = _free_port()
    record = {"url": f"http://127.0.0.1:{port}", "pid": 1, "api_key": "sk"}
    (tmp_path / "platform.json").write_text(json.dumps(record))
    config = PlatformConfig(data_dir=tmp_path, port=port)
    assert _find(config, f"port {port}").ok


def test_a_data_directory_in_which_nothing_can_be_made_is_told(tmp_path: Path) -> None:
    """Even of one that root may write to; its disk is not looked at then."""
    data = Path("/proc/nope") if Path("/proc/self").exists() else tmp_path / "file"
    (tmp_path / "file").touch()
    checks = list(examine(PlatformConfig(data_dir=data, port=_free_port())))

    (found,) = [check for check in checks if "data directory" in check.what]
    assert not found.ok
    assert f"data directory {data}" in found.what
    assert "cannot be written: " in found.what
    assert not any("MiB free" in check.what for check in checks)


def test_programs_are_told_how_of_what_is_missing_only(
    command: Command, tmp_path: Path
) -> None:
    found = json.loads(_doctor(command, tmp_path, "--json")[1])["checks"]
    assert {check["how"] for check in found if check["ok"]} == {""}
    assert all(check["how"] for check in found if not check["ok"])


def test_a_data_directory_that_others_can_read_is_not_private(tmp_path: Path) -> None:
    """It holds keys."""
    tmp_path.chmod(0o755)
    config = PlatformConfig(data_dir=tmp_path, port=_free_port())
    found = _find(config, "is private")
    assert (found.ok, found.how) == (False, f"chmod 700 {tmp_path}: it holds keys")
    tmp_path.chmod(0o700)
    assert _find(config, "is private").ok
    assert not any("private" in c.what for c in examine(
        PlatformConfig(data_dir=tmp_path / "none", port=config.port)
    ))  # fmt: skip


def test_limits_that_are_too_low_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before streams or sandboxes fail for want of them; processes not to root."""
    found = {resource.RLIMIT_NOFILE: (64, 1024), resource.RLIMIT_NPROC: (200, 9000)}
    monkeypatch.setattr(resource, "getrlimit", found.__getitem__)
    config = PlatformConfig(data_dir=tmp_path, port=_free_port())
    for user, expected in ((1000, [1024, 200]), (0, [1024])):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        lacking = [c for c in examine(config) if not c.ok and "for " in c.what]
        assert [int(check.what.split()[0]) for check in lacking] == expected
        assert all("ulimit" in check.how for check in lacking)


def test_the_disk_of_another_machine_is_no_place_for_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor one without room for files."""
    mounts = [
        SimpleNamespace(mountpoint="/", fstype="ext4"),
        SimpleNamespace(mountpoint=str(tmp_path.resolve()), fstype="nfs4"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    full = SimpleNamespace(
        f_files=100, f_favail=7, f_frsize=1, f_bavail=7, f_blocks=9, f_bfree=7
    )
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    config = PlatformConfig(data_dir=tmp_path / "data", port=_free_port())

    for word in ("of another machine (nfs4)", "7 more files", "0 MiB free"):
        assert not _find(config, word).ok


def test_a_port_for_tls_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = PlatformConfig(
            data_dir=tmp_path, port=_free_port(), tls_port=port, domain="sandbox.test"
        )
        assert "--tls 0" in _find(config, f"port {port}").how
