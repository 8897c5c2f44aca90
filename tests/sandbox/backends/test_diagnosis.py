"""What a machine lacks for bubblewrap, and how to get it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ppio_agent.sandbox.backends.bubblewrap import diagnose
from ppio_agent.sandbox.backends.diagnosis import explain, keeps_namespaces
from ppio_agent.sandbox.backends.uplink import refuse_device
from tests.support import needs_program


def _program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_machine_with_nothing_lacks_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the package that has it."""
    monkeypatch.setattr("ppio_agent.sandbox.backends.uplink._ADMIN_PATH", "/none")
    found = diagnose({"PATH": str(tmp_path)})

    assert [check.what for check in found] == [
        "bwrap",
        "user namespaces",
        "pasta or slirp4netns",
    ]
    assert [check.ok for check in found] == [False] * 3
    assert "bubblewrap" in found[0].how
    assert "passt" in found[2].how


def test_namespaces_that_are_refused_come_with_the_reason(tmp_path: Path) -> None:
    """As bwrap gives it."""
    _program(
        tmp_path, "bwrap", "echo 'No permissions to create namespaces' >&2; exit 1"
    )
    found = {check.what: check for check in diagnose({"PATH": str(tmp_path)})}

    assert found["bwrap"].ok
    assert not found["user namespaces"].ok
    assert "No permissions to create namespaces" in found["user namespaces"].how


def test_a_machine_with_everything_is_well() -> None:
    """There is nothing to be done."""
    for name in ("bwrap", "pasta"):
        needs_program(name)

    assert [(check.ok, check.how) for check in diagnose()] == [(True, "")] * 4


def test_a_helper_without_its_device_is_told(tmp_path: Path) -> None:
    """As in most containers, where it would fail with each sandbox."""
    _program(tmp_path, "pasta", "exit 0")
    found = diagnose({"PATH": str(tmp_path)}, tun=str(tmp_path / "tun"))[-1]

    assert found.what == str(tmp_path / "tun")
    assert not found.ok
    assert "modprobe tun" in found.how


def test_a_device_that_is_there_and_may_not_be_opened_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is there, so that to load its module would change nothing."""

    def refuse(path: str, flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("os.open", refuse)

    assert "sudo chmod 666 /dev/tun" in refuse_device("/dev/tun")
    assert "modprobe" not in refuse_device("/dev/tun")


REFUSALS = (
    "bwrap: setting up uid map: Permission denied",
    "bwrap: loopback: Failed RTM_NEWADDR: Operation not permitted",
    "bwrap: No permissions to creating new namespace, likely because the kernel does not"
    " allow non-privileged user namespaces.",
    "bwrap: Creating new namespace failed, likely because the kernel does not support"
    " user namespaces.",
    "bwrap: Creating new namespace failed: nesting depth or"
    " /proc/sys/user/max_*_namespaces exceeded (ENOSPC)",
)
RESTRICTED = {"kernel/apparmor_restrict_unprivileged_userns": "1"}


@pytest.mark.parametrize("said", REFUSALS)
@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (RESTRICTED, "apparmor-profiles"),
        ({"kernel/unprivileged_userns_clone": "0"}, "unprivileged_userns_clone=1"),
        ({"user/max_user_namespaces": "0"}, "max_user_namespaces=15000"),
        ({}, "as in most containers"),
    ],
)
def test_the_cause_is_read_from_the_settings_of_the_kernel(
    settings: dict[str, str], advice: str, said: str
) -> None:
    """What bwrap said comes first."""
    text = explain(f"{said}\n", lambda name: settings.get(name, ""))

    assert text.startswith(f"{said} (")
    assert advice in text


@pytest.mark.parametrize(
    "said",
    [
        "Failed to open() /dev/net/tun: No such file or directory",
        'open("/dev/net/tun"): Permission denied',
    ],
)
def test_a_device_that_a_helper_lacks_is_not_put_down_to_namespaces(said: str) -> None:
    """Whatever the kernel allows."""
    assert explain(said, lambda name: RESTRICTED.get(name, "")) == said


def test_a_bwrap_that_is_setuid_is_not_even_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves behind nobody but root could end; as root it is as any other."""
    bwrap = Path(_program(tmp_path, "bwrap", "touch $0.tried; exit 1"))
    bwrap.chmod(0o4755)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    found = {check.what: check for check in diagnose({"PATH": str(tmp_path)})}

    assert f"chmod u-s {bwrap}" in found["user namespaces"].how
    assert not (tmp_path / "bwrap.tried").exists()

    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = {check.what: check for check in diagnose({"PATH": str(tmp_path)})}
    assert not found["user namespaces"].ok
    assert (tmp_path / "bwrap.tried").exists()


def test_another_failure_is_not_put_down_to_the_kernel() -> None:
    """It says itself what it is."""
    said = "bwrap: execvp python: No such file or directory"
    assert explain(said, lambda name: RESTRICTED.get(name, "")) == said


@pytest.mark.parametrize(
    ("said", "keeps"),
    [
        ("echo bubblewrap 0.8.0", True),
        ("echo bubblewrap 0.11.0", True),
        ("echo bubblewrap 1.0", True),
        ("echo bubblewrap 0.4.1", False),
        ("exit 1", False),
    ],
)
def test_what_a_bwrap_can_do_is_known_by_its_version(
    tmp_path: Path, said: str, *, keeps: bool
) -> None:
    """An old one cannot keep those inside from making user namespaces."""
    assert keeps_namespaces(_program(tmp_path, "bwrap", said)) is keeps
