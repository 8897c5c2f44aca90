"""What this machine has and lacks for sandboxes in namespaces of their own."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from .uplink import TUN, find_helpers, refuse_device

__all__ = [
    "Check",
    "diagnose",
    "explain",
    "find_bwrap",
    "keeps_namespaces",
    "refuse_setuid",
]

_LIMIT = 5.0
_INSTALL = "install the package {} (apt install {}, dnf install {})"
_SETTINGS = (
    "kernel/apparmor_restrict_unprivileged_userns",
    "kernel/unprivileged_userns_clone",
    "user/max_user_namespaces",
)

_REFUSALS = (
    "namespace",
    "uid map",
    "RTM_NEWADDR",
    "not permitted",
    "Permission denied",
)


class Check(NamedTuple):
    """One thing that the bubblewrap backend needs.

    Attributes:
        what: The thing.
        ok: Whether it is there.
        how: How to get it; `""` if it is there.
    """

    what: str
    ok: bool
    how: str


def diagnose(environ: Mapping[str, str] = os.environ, *, tun: str = TUN) -> list[Check]:
    """Look for all that the bubblewrap backend needs.

    Args:
        environ: Whose `PATH` is searched.
        tun: The device by which a helper connects sandboxes to the network.

    Blocking: some milliseconds; 5 s at most.
    """
    bwrap = find_bwrap(environ)
    helpers = find_helpers(environ.get("PATH", os.defpath))
    refused = ""
    if bwrap is not None:
        refused = refuse_setuid(bwrap) or _try_namespaces(bwrap)
    checks = [
        Check("bwrap", bwrap is not None, _how("bubblewrap", missing=bwrap is None)),
        Check(
            "user namespaces",
            bwrap is not None and not refused,
            "install bwrap first" if bwrap is None else refused,
        ),
        Check(
            "pasta or slirp4netns",
            bool(helpers),
            _how("passt", missing=not helpers),
        ),
    ]
    if helpers:
        fault = refuse_device(tun)
        checks.append(Check(tun, not fault, fault))
    return checks


def _how(package: str, *, missing: bool) -> str:
    if not missing:
        return ""
    if sys.platform != "linux":
        return "it needs Linux"
    return _INSTALL.format(package, package, package)


def find_bwrap(environ: Mapping[str, str]) -> str | None:
    """Return the path of `bwrap`; None if there is none, or this is not Linux."""
    if sys.platform != "linux":
        return None
    return shutil.which("bwrap", path=environ.get("PATH", os.defpath))


def keeps_namespaces(bwrap: str) -> bool:
    """Return whether a `bwrap` can keep those inside from making user namespaces."""
    said = _run([bwrap, "--version"])[1]
    found = re.search(r"(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (0, 8)


def refuse_setuid(bwrap: str) -> str:
    """Return why a `bwrap` is not to be run, if it would run as root; else `""`.

    It could not make what is asked of it, and would leave processes of root behind.
    """
    if os.geteuid() == 0 or not os.stat(bwrap).st_mode & stat.S_ISUID:
        return ""
    return (
        f"{bwrap} is installed setuid: take that away (sudo chmod u-s {bwrap}) and let"
        " users make namespaces"
    )


def _try_namespaces(bwrap: str) -> str:
    """Return why no namespaces can be made, and what to do; `""` if they can."""
    options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--uid", "1000"]
    binds = ["--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    code, said = _run([bwrap, *options, *binds, "true"])
    return "" if code == 0 else explain(said) or f"{bwrap} ends with status {code}"


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return -1, str(exc)
    return done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace")


def _read_setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def explain(said: str, read: Callable[[str], str] = _read_setting) -> str:
    """Return what `bwrap` said, in one line, with the usual cause and what to do.

    Args:
        said: Its complaints.
        read: Gives a setting of the kernel by its name below `/proc/sys`; `""` if
            there is none.
    """
    restricted, allowed, most = map(read, _SETTINGS)
    said = "; ".join(filter(None, map(str.strip, said.splitlines())))
    if TUN in said or not any(word in said for word in _REFUSALS):
        return said
    if restricted == "1":
        cause = (
            "AppArmor keeps programs from making user namespaces: load the profile"
            " bwrap-userns-restrict, which up to Ubuntu 24.10 is in the package"
            " apparmor-profiles"
        )
    elif allowed == "0":
        cause = "user namespaces are off: sysctl kernel.unprivileged_userns_clone=1"
    elif most == "0":
        cause = "user namespaces are off: sysctl user.max_user_namespaces=15000"
    else:
        cause = (
            "usually user namespaces are disabled, as in most containers: allow them"
            " there, or run outside"
        )
    return f"{said} ({cause})"
